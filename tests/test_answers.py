import random
import subprocess
import sys
import time

import pytest

from cca.grading.answers import final_text, grade_exact, grade_number
from cca.grading.numbers import last_number, normal_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("it costs $1,234.50 in all", "1234.5"),
        ("#### 3.0", "3"),
        ("#### 108.0", "108"),
        ("he owes -5", "-5"),
        ("left with -$5", "-5"),
        ("19-5", "5"),
        ("(19)-5", "5"),
        ("50%-20", "20"),
        ("it was 75%", "75"),
        ("€12", "12"),
        ("about .5 of it", "0.5"),
        ("12,345,678", "12345678"),
        ("no number here", ""),
        ("", ""),
        ("#### 0", "0"),
        ("-0", "0"),
        ("ends with 7,", "7"),
        ("2/3", "3"),
        # signs
        ("#### −5", "-5"),
        ("19−5", "5"),
        ("\\frac{1}{2}-5", "5"),
        ("$-5", "-5"),
        ("-\\$5", "-5"),
        ("x=-5", "-5"),
        ("#### +5", "5"),
        ("#### ±5", "5"),
        ("pages 3–5", "5"),
        ("-0.0", "0"),
        # separators: by the paper every comma goes
        ("1,234,567", "1234567"),
        ("1, 2 and 3", "3"),
        ("12,34", "1234"),
        ("$\\boxed{1{,}234}$", "1234"),
        ("1\\,234", "1234"),
        ("1,\\!234", "1234"),
        ("#### 0012", "12"),
        # points
        ("version 1.2.5", "5"),
        ("the answer is...5", "5"),
        ("End of sentence.5", "5"),
        ("-.5", "-0.5"),
        ("$.50", "0.5"),
        ("#### 18.", "18"),
        ("#### 18.00", "18"),
        ("0.10", "0.1"),
        # units
        ("#### 5 dollars", "5"),
        ("5€", "5"),
        ("#### £5", "5"),
        ("¥500", "500"),
        ("12.5 %", "12.5"),
        ("a 5-year plan", "5"),
        ("5 m²", "5"),
        ("**18**", "18"),
        ("\\boxed{18}", "18"),
        ("\\boxed{-18.50}", "-18.5"),
        ("#### 18\n\nQ: 5 apples?", "5"),
        # exponents
        ("1.5e3", "1500"),
        ("#### 1e-05", "0.00001"),
        ("2E+3.", "2000"),
        ("1e−2", "0.01"),
        ("1e9999", "9999"),
        ("3e5x", "5"),
        ("10^3", "3"),
        # digits that are not ASCII
        ("#### ١٢", "12"),
        ("#### １，２３４", "1234"),
        ("½", "1/2"),
        ("x²", ""),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number_is_found_however_it_is_written(text, answer):
    assert last_number(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 3.0", "3", True),
        ("#### 1,000", "1000", True),
        ("#### 4", "3", False),
        ("nothing", "3", False),
        ("#### 18", "18.0", True),
        ("#### 1000", "$1,000", True),
        ("#### 12.5", "12.5%", True),
        ("#### 5", "5 dollars", True),
        ("#### 5", "9 - 4 = 5\n#### 5", True),
        ("#### 5", "\\boxed{5}", True),
        ("#### 1500", "1.5e3", True),
        ("#### -5", "5", False),
        ("#### 0", "-0", True),
        ("nothing", "", False),
        ("nothing", "nothing", False),
        ("5", "", False),
        ("5", "five", False),
        ("", "", False),
    ],
)
def test_number_compares_values(text, gold, correct):
    assert grade_number(text, gold).correct is correct


@pytest.mark.parametrize(("text", "gold"), [("2", "1 1/2"), ("30", "2:30"), ("15", "10-15"), ("2", "(1, 2)")])
def test_a_gold_answer_with_several_numbers_is_not_taken_for_its_last_one(text, gold):
    assert not grade_number(text, gold).correct


@pytest.mark.parametrize(
    ("text", "gold", "answer", "correct"),
    [
        ("#### 3/4", "3/4", "3/4", True),
        ("#### 6/8.", "3/4", "3/4", True),
        ("#### 0.75", "3/4", "0.75", True),
        ("\\boxed{\\frac{3}{4}}", "3/4", "3/4", True),
        ("#### 3 / 4 of it", "\\frac{3}{4}", "3/4", True),
        ("#### -3/4", "-\\dfrac{3}{4}", "-3/4", True),
        ("#### −3/4", "$-3/4$", "-3/4", True),
        ("#### -3/4", "3/4", "-3/4", False),
        ("5-3/4", "3/4", "3/4", True),
        ("#### 3/5", "3/4", "3/5", False),
        ("#### 4", "3/4", "4", False),
        ("3/4 of 8", "3/4", "8", False),
        ("#### 0.333", "1/3", "0.333", False),
        ("#### 6/2", "6/2", "3", True),
        ("on 12/3/4", "3/4", "4", False),
        ("#### 3/0", "3/4", "0", False),
        ("#### 3/4.5", "3/4", "4.5", False),
        ("nothing", "3/4", "", False),
        ("9" * 5000, "3/4", "9" * 5000, False),
        ("#### 3/" + "4" * 5000, "3/4", "4" * 5000, False),
        ("#### 3/0", "3/0", "0", False),
    ],
)
def test_a_gold_fraction_is_compared_as_a_fraction(text, gold, answer, correct):
    assert grade_number(text, gold) == (answer, correct)


def test_the_heuristic_reads_a_fraction_as_its_last_number_where_the_gold_answer_is_none():
    assert grade_number("#### 3/4", "4") == ("4", True)


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        (" husband", "husband", True),
        ("Husband ", "husband", True),
        ("['56', '25']", "['56', '25']", True),
        ("['56']", "['56', '25']", False),
        (" 07", "7", True),
        ("", "", False),
        ("the husband", "husband", False),
        ("They are in-laws.\n#### husband", "husband", True),
        ("so \\boxed{husband}.", "husband", True),
        ("\\boxed{wife}, no: \\boxed{husband}", "husband", True),
        ("\\boxed{wife}\n#### husband", "husband", True),
        ("#### \\boxed{husband}", "husband", True),
        ("husband\n####", "husband", False),
        ("\\boxed{}", "", False),
        ("#### $1,234.50", "1234.5", True),
        ("1,2", "12", False),
        ("1 2", "12", False),
        ("9 5\n4 1", "95 41", False),
        ("9 5\n4 1", "9 5\n4 1", True),
        ("50%", "50", True),
        ("1_000", "1000", False),
        ("nan", "NaN", True),
        ("husband.", "husband", False),
    ],
)
def test_exact_compares_the_final_text(text, gold, correct):
    assert grade_exact(text, gold).correct is correct


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("#### 1\n#### 2", "2"),
        ("so \\boxed{2}.", "2"),
        ("\\boxed{\\frac{1}{2}} cups", "\\frac{1}{2}"),
        ("\\boxed{1} or \\fbox {2}", "2"),
        ("\\boxed{\\boxed{2}}", "2"),
        ("\\boxed{2", "2"),
        ("\\boxed{1} #### 2", "2"),
        ("#### 1 is \\boxed{2}", "2"),
        (" all of it ", "all of it"),
    ],
)
def test_final_text_is_what_the_last_marker_or_box_holds(text, final):
    assert final_text(text) == final


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" nan ", "nan"),
        ("ten", "ten"),
        ("-1,200.50", "-1200.5"),
        ("−$ 5", "-5"),
        ("$-5", "-5"),
        ("+5", "5"),
        ("12,34", "12,34"),
        ("5 6", "5 6"),
        ("1e3", "1000"),
        (".5e1", "5"),
        ("5.", "5"),
        ("20 €", "20"),
        ("1e999999999", "1e999999999"),
    ],
)
def test_normal_number_changes_numbers_and_leaves_text_alone(text, number):
    assert normal_number(text) == number


_LETTERS = "0123456789" * 2 + ".,-−+$€%/\\{}#_ \n\teE" + "\\boxed{\\frac{####"


def scrambled(rng: random.Random, length: int) -> str:
    """Any code points at all, lone surrogates too, among the characters that graders look for."""
    return "".join(
        rng.choice(_LETTERS) if rng.random() < 0.8 else chr(rng.randrange(sys.maxunicode + 1)) for _ in range(length)
    )


def test_no_text_makes_a_grader_raise_and_no_text_without_digits_is_a_number():
    rng = random.Random(0)
    for _ in range(3000):
        text, gold = scrambled(rng, rng.randrange(40)), scrambled(rng, rng.randrange(8))
        for grade in (grade_number, grade_exact):
            answer, correct = grade(text, gold)
            assert isinstance(answer, str) and isinstance(correct, bool)
            assert not (correct and not answer)
        assert grade_exact(text, text).correct is (final_text(text) != "")
        bare = "".join(c for c in text if not c.isnumeric())
        assert grade_number(bare, gold) == ("", False)


_FORMS = (
    "{n}", "{n:,}", "${n}", "${n:,}", "€{n:,}", "{n}%", "{n:,} %", "{n} dollars", "{n}.", "{n}.0", "${n:,}.00",
    "\\boxed{{{n}}}", "**{n}**", "$\\boxed{{{n:,}}}$", "({n})", "{n}\n", "= {n}", "\\${n:,}", "{n}e0", "{n} m²",
)  # fmt: skip


def test_number_finds_the_answer_after_any_text_in_any_form():
    rng = random.Random(1)
    for _ in range(300):
        n = rng.choice([1, -1]) * rng.randrange(10 ** rng.randrange(1, 10))
        text = scrambled(rng, rng.randrange(30))
        for form in _FORMS:
            ended = f"{text} #### {form.format(n=n)}"
            assert grade_number(ended, str(n)) == (str(n), True), ended
            assert not grade_number(ended, str(n + 1)).correct, ended


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "1e999999999",
        "#### 1e" + "9" * 1000,
        "9" * 300_000,
        "1," * 100_000,
        "$" + " " * 100_000 + "x",
        "\\boxed{" * 30_000,
        "#### " * 50_000,
        "1/" * 100_000,
        "." * 200_000 + "1",
        "-$" * 100_000,
        "{" * 200_000,
        "\\frac{1}{" * 30_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long(text):
    began = time.monotonic()
    for gold in ("18", "3/4", "husband", text[:100]):
        grade_number(text, gold)
        grade_exact(text, gold)
        grade_exact(gold, text)
    assert time.monotonic() - began < 10


def test_graders_load_neither_sympy_nor_torch_until_one_is_called_that_needs_them():
    code = "import sys, cca.grading.answers, cca.grading.graders\n"
    code += "assert not {'sympy', 'math_verify', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
