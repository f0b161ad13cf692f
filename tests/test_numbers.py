"""What is one number and what is not, and which number a text ends with, however they are written."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cca.grading.answers import final_text, grade_exact, grade_number
from cca.grading.characters import plain
from cca.grading.numbers import last_number, one_number

# fmt: off
NUMBERS = {
    "5": [
        "5", "5.", "5.0", "05", "+5", "$5", "\\$5", "5 dollars", "$5.00", "€5", "5€", "5 €", "£5", "₩5", "USD 5",
        "5 USD", "US$5", "Rs. 5", "5¢", "5 cents", "5%", "5\\%", "5 percent", "5 %", "５", "𝟓", "**5**", "`5`",
        "**5 apples**", "\\boxed{5}", "$\\boxed{5}$", "$5$", "\\(5\\)", "\\[5\\]", "$$5$$", "{5}", "(5)", '"5"',
        "\\text{5 apples}", "5 \\text{ cm}", "5\\text{ cm}^2", "5\\,\\mathrm{km/h}", "5\\ \\text{kg}",
        "5 \\, \\text{cm}^{2}", "5 cm", "5cm", "5 cm^2", "5 cm²", "5cm2", "5 m/s", "5 m/s^2", "5 m s^{-2}",
        "5 km/h", "5 kg·m", "5 square meters", "5 meters^2", "5^\\circ", "5^{\\circ}", "5°", "5 °C", "5°C", "5 mL",
        "5 L", "5 V", "5 Ω", "5 kWh", "5 GB", "$5/hr", "$5 per day", "5 a day", "5 days/week", "5th", "5 pm",
        "5pm", "5 p.m.", "5 apples", "5 apples.", "5-year", "5-year-old", "5 hour(s)", "5 яблок", "5个", "5 (five)",
        "about 5", "The answer is 5.", "Answer: 5", "well-known 5", "x = 5", "x=5", "$x = 5$", "area = 5 cm^2",
        "5 <|im_end|>", "5</s>", "5<|reserved_7|>", "5 [EOS]", "<extra_id_0>5", "5\n```", "<｜end▁of▁sentence｜>5",
        "\u200b5", "5\ufeff", "9 - 4 = 5\n#### 5", "5 days a week", "5 I think", "5;", "5?",
    ],
    "-5": [
        "-5", "−5", "–5", "—5", "‑5", "－5", "﹣5", "⁻5", "- 5", "− 5", "-  5 apples", "$-5", "-$5", "-\\$5", "-$ 5",
        "\\boxed{- 5}", "-5 °C", "x = -5", "x = - 5",
    ],
    "12": [
        "１２％", "١٢",
    ],
    "1234.5": [
        "1,234.50",
    ],
    "1234567": [
        "1,234,567",
    ],
    "100000": [
        "1,00,000", "1e5",
    ],
    "1234": [
        "1{,}234", "1\\,234", "1,\\!234", "1\xa0234", "1\u202f234", "1'234", "1’234", "１，２３４",
    ],
    "12345": [
        "12\u2009345",
    ],
    "3.5": [
        "٣٫٥", "３．５",
    ],
    "1500": [
        "1.5e3",
    ],
    "0.5": [
        "5e-1", ".5", "0.50",
    ],
    "5000": [
        "5E3",
    ],
    "-0.5": [
        "-.5",
    ],
    "1/2": [
        "\\frac12", "\\dfrac12", "\\tfrac{1}2", "\\frac{1}{2}", "\\frac 1 2", "\\frac1{2}", "\\frac{ 1 }{ 2 }",
        "½", "1/2", "1 / 2", "1⁄2", "１／２", "$1/2$", "$\\frac12$", "\\boxed{\\frac12}", "½ hour", "x = 1/2",
        "x = \\frac12",
    ],
    "3/4": [
        "¾", "3/4 cup", "3/4 of a cup", "\\frac{3}{4}\\text{ cups}",
    ],
    "1/3": [
        "⅓",
    ],
    "-3/4": [
        "-\\frac{3}{4}", "\\frac{-3}{4}", "-\\frac34", "- \\frac34",
    ],
    "-1/2": [
        "−½", "-1/2",
    ],
    "3/2": [
        "1 1/2", "1½", "1 ½", "1 1/2 hours",
    ],
    "5/2": [
        "2\\frac12", "2 \\frac{1}{2}",
    ],
    "-3/2": [
        "-1 1/2",
    ],
    "3": [
        "6/2",
    ],
}
TEXTS = {
    "-5": [
        "#### –5", "#### ‑5", "#### －5", "#### - 5", "#### − 5", "#### —5", "####- 5", "####\n- 5", "\\boxed{- 5}",
        "\\boxed{–5}", "\\boxed{−5}", "x = - 5", "x = − 5", "the answer is –5", "the answer is −5", "#### -$5",
        "#### - $5", "#### $-5", "#### $- 5$", "#### -$ 5", "#### −$5", "#### $−5", "#### -€5", "#### - \\$5",
        "- 5", "10 - 3 = - 5", "#### -**5**", "#### **-5**", "#### **- 5**", "#### -\u200b5", "#### \u200e-5",
    ],
    "5": [
        "#### (5)", "10 - 5 = 5", "10 – 5 = 5", "10 - 5", "10−5", "3–5 days", "3 – 5 days", "pages 3-5",
        "pages 3—5", "a well-known 5", "a well‑known 5", "- 5 apples", "list:\n- 3 pears\n- 5 apples",
        "list:\n\u2013 3 pears\n\u2013 5 apples", "so it is — 5 in all", "the total—5", "#### ５", "#### 5.0",
        "#### +5", "in '97 5", "3 * 4 * 5", "#### \u20685\u2069", "a<b 5", "[5]", "<5>", "5 <s>",
    ],
    "-8": [
        "\n- 5 apples\n- 3 pears\n#### - 8",
    ],
    "19": [
        "COVID‑19",
    ],
    "12": [
        "#### ١٢", "#### १२", "#### 12 cm^2", "#### 12 m/s^2", "#### 12 cm2", "#### 12 m²", "#### 12\\text{ cm}^2",
        "#### 12\u200b",
    ],
    "-12": [
        "#### −١٢",
    ],
    "1234": [
        "#### １，２３４", "#### 1\xa0234", "#### 1'234",
    ],
    "200": [
        "价格是100，200",
    ],
    "1234567": [
        "#### 1\u202f234\u202f567",
    ],
    "12345": [
        "#### 12\\,345",
    ],
    "345": [
        "#### 12 345",
    ],
    "1234.5": [
        "#### 1’234.50",
    ],
    "15": [
        "#### 1,5",
    ],
    "5.5": [
        "#### 5.50",
    ],
    "5000": [
        "#### 5e3",
    ],
    "7": [
        "#### 007",
    ],
    "": [
        "#### five", "<|5|>",
    ],
    "1/2": [
        "#### ½",
    ],
    "5/2": [
        "#### 2½",
    ],
    "-1/2": [
        "#### −½",
    ],
    "8": [
        "#### ½ of 8",
    ],
    "2": [
        "#### \\frac12", "x^2", "5²",
    ],
    "6": [
        "it's 5'6",
    ],
    "72": [
        "#### 72<|im_end|>", "#### 72</s>", "72.</s>", "#### 72<|endoftext|>", "#### 72<eos>", "#### 72<pad><pad>",
        "#### 72 [EOS]", "#### 72[PAD][PAD]", "#### 72<|reserved_5|>", "#### 72<|reserved_special_token_5|>",
        "#### 72<extra_id_0>", "#### 72<unused12>", "#### 72<end_of_turn>", "#### 72<|eot_id|>",
        "#### 72<｜end▁of▁sentence｜>", "#### 72[/INST]", "#### 72<0x0A>", "#### **72**", "**#### 72**", "#### `72`",
        "```\n#### 72\n```", "**Answer:** 72", "#### *72*",
    ],
    "4": [
        "2**3**2 and 4",
    ],
    "3": [
        "10^3", "x < 5 > 3",
    ],
}
NO_NUMBERS = [
    "x-5", "x -5", "x+5", "x +5", "a-5", "COVID-19", "x5", "3h^2", "2A^2", "-x = 5", "n-1/2", "+x5", "", "five",
    "three", "husband", "\\sqrt{3}", "\\sqrt3", "√3", "sqrt(3)", "sqrt 3", "5!", "2^3", "2**3", "2^{3}", "5²",
    "5³", "2⁻³", "10^{-3}", "10⁻³", "3x+1", "3x", "3 x", "3x^2", "2y", "5n", "x^5", "f(5)", "P(5)", "2\\pi", "2π",
    "2 π", "2 pi", "2pi", "\\pi/2", "π/2", "e^2", "ln 5", "log 5", "\\log 5", "log_2 5", "sin 30",
    "\\sin 30^\\circ", "|5|", "|-5|", "(1,2)", "(1, 2)", "(10,100)", "(1,234)", "[0,1)", "[5, 10]", "(0, 5]",
    "[5]", "{1, 2}", "\\{5\\}", "1,2", "1,5", "12,34", "1, 2", "1 and 2", "50 or 60", "5, 6 or 7", "5-6", "5 - 6",
    "5–6", "5 to 6", "10-15", "3:30", "2:30 pm", "1:2", "> 5", "≥ 5", "< 5", "\\leq 5", "\\geq 5", "x > 5",
    "x \\ne 5", "± 3", "\\pm 3", "5 ± 1", "5+", "5 + x", "x - 5", "5 - x", "5/x", "x/5", "5 \\cdot 10^3",
    "5 \\times 10^3", "5×10^3", "5 * 10^3", "5*x", "5i", "5 + 2i", "1/2 + 1/3", "\\frac{x}{2}", "\\frac{1}{2}x",
    "\\frac{\\sqrt3}{2}", "\\frac{1.5}{2}", "\\frac{1}{0}", "1/0", "3/4 of 8", "1-1/2", "1/2/3", "12/3/4",
    "5 million", "2 dozen", "3 thousand", "3 hundred", "5k", "5M", "-(5)", "minus 5", "negative 5", "2 and a half",
    "5 hours and 20 minutes", "5 ft 6 in", '5\'6"', "6'2", "1.2.3", "1.234.567", "1 234", "1_000", "x_5",
    "\\infty", "∞", "5\\sqrt{2}", "\\sqrt[3]{5}", "\\binom{5}{2}", "5 choose 2", "5 mod 7", "5 \\mod 7",
    "x_1 = 5, x_2 = 6", "x = 5 or x = -5", "y = 2x", "2x = 5", "x = y = 5", "~5", "≈5", "C(5,2)", "2001-05-07",
    "5.5.5", "#5#", "5=5", "5 2/1", "2 3/2", "\\overline{5}", "0.\\overline{3}", "0.(3)", "5A3", "0x1F",
    "5\\angle 3", "1e9999", "…5…6",
]
# fmt: on


@pytest.mark.parametrize(("value", "golds"), NUMBERS.items(), ids=NUMBERS)
def test_a_gold_answer_that_is_one_number_is_read_whatever_its_unit_and_writing(value, golds):
    for gold in golds:
        assert Fraction(one_number(final_text(gold))) == Fraction(value), gold
        for text in (value, gold, f"so 3 + 4 = 7\n#### {gold}", f"\\boxed{{{value}}}"):
            assert grade_number(f"#### {text}", gold).correct, (text, gold)
        assert not grade_number(f"#### {Fraction(value) + 1}", gold).correct, gold


def test_a_gold_answer_with_other_mathematics_or_several_numbers_equals_nothing():
    for gold in NO_NUMBERS:
        assert one_number(final_text(gold)) == "", gold
        for text in (
            gold,
            *re.findall(r"\d+", gold),
            *re.findall(r"\d/\d", gold),
            plain(gold),
            "5",
            "15",
            "1/2",
            "0.5",
        ):
            assert not grade_number(f"#### {text}", gold).correct, (text, gold)


@pytest.mark.parametrize(("number", "texts"), TEXTS.items(), ids=TEXTS)
def test_dashes_digits_separators_and_special_tokens_do_not_change_the_last_number(number, texts):
    for text in texts:
        assert last_number(text) == number, text


@pytest.mark.parametrize("half", ["1/2", "\\frac{1}{2}", "\\frac12", "0.5", ".5", "½", "2/4", "\\dfrac 1 2"])
@pytest.mark.parametrize("gold", ["\\frac12", "½", "1/2", "0.5"])
def test_a_half_is_a_half_and_no_twelve(half, gold):
    assert grade_number(f"so it is {half}", gold).correct
    assert not grade_number("#### 12", gold).correct
    assert not grade_number(f"#### {half}", "12").correct
    assert not grade_number(f"#### 3{half}", gold).correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("**#### husband**", "husband"),
        ("#### `husband`", "husband"),
        ("\\boxed{\\text{husband}}", "husband"),
        ("#### husband</s>", "husband"),
        ("```\n#### husband\n```", "husband"),
        ("#### husband<|im_end|><|im_end|>", "husband"),
        ("#### husband\u200b", "husband"),
        ("#### 3–5", "3-5"),
        ("#### - 5", "-5"),
        ("#### －５", "-5"),
        ("#### $-5", "-5"),
        ("#### 1\u202f234", "1,234"),
        ("#### 5。", "5"),
        ("#### ½", "1/2"),
    ],
)
def test_exact_reads_the_same_characters(text, gold):
    assert grade_exact(text, gold).correct
    assert grade_exact(gold, text).correct


@pytest.mark.parametrize("text", ["", " \n", "####", "so 72\n####", "\\boxed{}", "</s>", "<|im_end|>", "<pad><pad>"])
def test_exact_says_no_answer_where_the_final_text_is_empty(text):
    assert grade_exact(text, "72") == ("", False)


@pytest.mark.parametrize("text", ["", "no idea", "####", "<|reserved_5|>", "</s>", "five"])
def test_number_says_no_answer_where_there_is_no_number(text):
    assert grade_number(text, "5") == ("", False)


ANY = st.text(st.one_of(st.characters(), st.sampled_from("0123456789.,-−–/\\{}()$%^ #xe½²٣５'\n")), max_size=40)
_DASHES = st.sampled_from("-‐‑‒–—―−﹘﹣－⁻")
_ZEROS = st.sampled_from("0٠०๐０𝟎")
_LEFT = st.sampled_from(
    ["", "</s>", "<|im_end|>", "<|reserved_5|>", "<pad><pad>", " [EOS]", "<extra_id_0>", "\n```", "\u200b"]
)


@given(ANY, ANY)
def test_no_text_and_no_gold_make_a_grader_raise(text, gold):
    for grade in (grade_number, grade_exact):
        answer, correct = grade(text, gold)
        assert isinstance(answer, str) and isinstance(correct, bool) and not (correct and not answer)
        assert grade(text, gold) == (answer, correct)
    assert plain(text).isascii() or not text.isascii()


@given(ANY, ANY)
def test_a_text_that_ends_with_its_gold_is_right_for_every_gold_that_is_read(text, gold):
    gold = final_text(gold)
    assert grade_number(f"{text}\n#### {gold}", gold).correct is (one_number(gold) != "")
    assert grade_exact(f"{text}\n#### {gold}", gold).correct is (gold != "")


@given(
    st.integers(1, 10**12), _DASHES, _ZEROS, st.sampled_from(["", ",", "\u00a0", "\u202f", "\u2009", "'", "’"]), _LEFT
)
def test_a_negative_number_in_any_script_is_that_number(n, dash, zero, separator, left):
    digits = f"{n:,}".replace(",", separator)
    written = dash + "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in digits)
    for text in (
        f"#### {written}",
        f"it is {written}",
        f"\\boxed{{{written}}}",
        f"#### $ {written}",
        f"x = {dash} {n}",
    ):
        assert grade_number(text + left, str(-n)).correct, text
        assert not grade_number(text + left, str(n)).correct, text
    assert grade_exact(f"#### {written}{left}", str(-n)).correct
    assert grade_number(f"#### {-n}", written).correct
    assert grade_number(f"10{dash}{n}", str(n)).correct, "a subtraction or a range"


_AMOUNT = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "-", "$", "-$"]),
    st.integers(0, 10**7).map(lambda n: f"{n:,}" if n % 2 else str(n)),
    st.sampled_from(["", ".5", ".00", ".125"]),
)
_PROSE = st.lists(
    st.one_of(_AMOUNT, st.sampled_from(["+", "=", "*", "is", "a", "#", ":", "apples", "so,", "costs"])),
    min_size=1,
    max_size=9,
)


@given(_PROSE, st.sampled_from(["", ".", "\n", " apples", "%", "!"]))
def test_on_ascii_prose_the_last_number_is_the_published_heuristics(words, end):
    """But for the sign, which that misses in "-$5"."""
    text = " ".join(words) + end
    published = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    found = last_number(text)
    assert (found != "") == bool(published)
    assert not published or abs(Fraction(found)) == abs(Fraction(published[-1].rstrip(".")))


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10_000,
        "-" + "9," * 10_000,
        "1e999999",
        "{" * 20_000 + "5",
        "\\boxed{" * 20_000 + "5",
        "\\frac" * 20_000,
        "\\text{" * 20_000,
        "5\x00",
        "\ud8005",
        "5\u2028\u20296\x85",
        "<|" * 20_000,
        "*`" * 20_000,
        "**a " * 20_000,
        "#### " + " " * 100_000 + "-" + " " * 100_000,
        "- " * 50_000,
        "1'" * 50_000,
        "1\u00a0234" * 20_000,
        "m^2" * 30_000,
        "(" * 50_000 + "0" + "," * 50_000,
        "(0" * 50_000,
        "(" * 50_000 + "0",
        "a(" * 50_000,
        "1 " * 50_000 + "½",
        "x" * 200_000,
    ],
    ids=lambda text: ascii(text[:9]),
)  # fmt: skip
def test_no_text_and_no_gold_take_long(text):
    began = time.process_time()
    for gold in ("18", "1/2", text):
        grade_number(text, gold)
        grade_exact(text, gold)
    assert time.process_time() - began < 3


def test_a_long_number_is_read_to_its_last_digit():
    n = "7" * 10_000
    assert grade_number(f"#### {n}", n).correct
    assert not grade_number(f"#### {n[:-1]}8", n).correct
