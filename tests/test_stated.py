"""The answer that a text states first, whatever is written before and after it."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_numbers import ANY, NO_NUMBERS, NUMBERS

from cca.grading.answers import final_text, grade_number, grade_stated
from cca.grading.numbers import one_number
from cca.grading.stated import stated_number

# fmt: off
STATED = {
    "42": [
        "The answer is **42**.", "**The answer is** 42.", "**The answer is 42**.", "**Answer:** 42", "**Answer**: 42",
        "the answer is:\n\n42", "THE FINAL ANSWER IS 42", "Answer : 42", "final_answer: 42", '{"answer": 42}',
        "#### 42",
        "####42", "####\n42", "#### **42**", "#### $42", "\\boxed{42}", "\\fbox{42}", "so \\boxed{42} it is",
        "$\\boxed{42}$",
        "\\[\n\\boxed{\n42\n}\n\\]", "The answer is \\boxed{42}", "The answer is:\n\\[\n\\boxed{42}\n\\]",
        "The answer is $x = \\boxed{42}$, where y = 3", "\\boxed{x = 42}", "\\boxed{42\\text{ cm}}",
        "the answer is ４２",
        "The answer is 42 eggs for 3 children", "The answer is 42, since x = 3", "The answer is 42 (as 6 * 7 is)",
        "The answer is 6 * 7 = 42", "The answer is 6 x 7 = $42.00", "The answer is 6 * (3 + 4) = 42 eggs",
        "The answer is 42 (6 * 7 = 42 and 2 * 3 = 6)", "The answer is 42 eggs (9 = 3 * 3)", "The answer is 6 * 7\n= 42",
        "The answer is 6 * 7 =\n42", "The answer is 42 = forty-two", "The answer is x = 42 and y = 3",
        "#### 6 * 7 = 42",
        "The answer is USD 42", "The answer is Rs. 42", "The answer is approx. 42", "Answer: \\text{42 eggs}",
        "answer is 42.Then 3 = 3",
        "The answer is\u00a042", "The answer is ... 42", "The answer is 42 cm^2", "The answer is 42%",
        "The answer is 84/2",
        "#### Step 1: 3\nThe answer is 42", "Answer: Let us see. 3 + 4 is 7.\n#### 42",
        "The answer is simple. 3 + 4 is 7.\nThe answer is 42",
        "The answer is not 3. The answer is 42", "The answer isn't 3.\n\\boxed{42}", "\\boxed{}\nThe answer is 42",
        "The answer is:\n\nShe has 3 and 4.\n#### 42",
    ],
    "3.5": ["The final answer is 3.5", "Answer: 3.50", "\\boxed{3.5}", "The answer is 7/2", "The answer is 3 1/2"],
    "5.99": ["The final answer is $5.99", "The answer is $5.99 per pound", "The answer is 2 * 2.995 = \\$5.99"],
    "1234": ["The answer is 1,234", "The answer is $1,234.00", "$\\boxed{1{,}234}$", "The answer is 1'234"],
    "-5": [
        "The answer is -5", "The answer is – 5", "The answer is -$5", "#### - 5", "answer:-5",
        "The answer is 3 - 8 = -5",
    ],
    "3/4": [
        "The answer is 3/4", "The answer is \\frac{3}{4}", "Answer: $\\frac34$", "The answer is 0.75",
        "The answer is ¾ of it",
    ],
    "120": ["The answer is 5! = 120"],
    "0.5": ["The answer is .5", "The answer is ½", "the answer is 5e-1"],
}
NOTHING = [
    "", "42", "The answer is", "The answer is simple.", "The answer is not 12 but 15", "The answer isn't 12",
    "\\boxed{x}",
    "The answer is unknown. It may be 12.", "#### Step 1", "Answer: She has 12.", "The answers are 12", "####",
    "in answer 12",
]
# fmt: on
AFTER = [
    "",
    " ",
    ".",
    ". 7 - 4 = 3",
    ".\n\nQ: How many are 3 and 4?\nA: 7",
    ". The answer is 7.",
    ".\n#### 7",
    "\n7",
    ".\\boxed{7}",
]


@pytest.mark.parametrize(("value", "texts"), STATED.items(), ids=STATED)
def test_the_first_statement_counts_and_nothing_behind_it(value, texts):
    for text in texts:
        for after in AFTER:
            before = "3 + 4 = 7. "
            found = grade_stated(f"{before}{text}{after}", value)
            assert found.correct, (text, after, found)
            assert not grade_stated(f"{before}{text}{after}", "7").correct, (text, after)


def test_where_nothing_is_stated_the_last_number_counts():
    for text in NOTHING:
        assert stated_number(text) == "", text
        for gold in ("12", "15", "42", "3/4"):
            assert grade_stated(text, gold) == grade_number(text, gold)


def test_every_gold_answer_that_is_read_is_read_where_it_is_stated_too():
    for value, golds in NUMBERS.items():
        for gold in golds:
            for text in (f"#### {gold}", f"\\boxed{{{value}}} 99", f"The final answer is {value}. 99"):
                found = grade_stated(text, gold)
                assert found.correct, (text, gold, found)
            assert not grade_stated(f"The answer is {Fraction(value) + 1}.\n#### {gold}", gold).correct, gold


def test_a_gold_answer_that_is_no_one_number_equals_nothing():
    for gold in NO_NUMBERS:
        for text in (gold, *re.findall(r"\d+", gold), "5"):
            assert not grade_stated(f"The answer is {text}.", gold).correct, (text, gold)


def test_a_fraction_that_is_stated_is_none_of_its_parts():
    for gold in ("3", "4"):
        assert not grade_stated("The answer is 3/4.", gold).correct
    assert grade_stated("The answer is 6/2.", "3").correct


SILENT = ANY.filter(lambda text: not re.search(r"####|boxed|fbox|answer|\\$", text))
FORMS = st.sampled_from(
    [
        "{n}",
        "{n:,}",
        "${n}",
        "${n:,}",
        "**{n}**",
        "{n}%",
        "{n} dollars",
        "{n}.0",
        "${n:,}.00",
        "\\boxed{{{n}}}",
        "$\\boxed{{{n:,}}}$",
    ]
    + ["({n})", "€{n:,}", "`{n}`", "x = {n}", "1 + 1 = {n}", "\\${n:,}", "{n}e0", "{n} m²", "about {n} apples"]
)


@given(SILENT, st.integers(-(10**9), 10**9), FORMS, st.sampled_from([".", ".\n", "!", "\n"]), ANY)
def test_any_number_in_any_form_counts_whatever_text_is_around_it(before, n, form, end, after):
    after = re.sub(r"\A[^\s]", " ", after) if end in ".!" else after.lstrip("= ")
    text = f"{before}\nThe final answer is {form.format(n=n)}{end}{after}"
    assert grade_stated(text, str(n)).correct, text
    assert not grade_stated(text, str(n + 1)).correct, text


@given(SILENT, st.integers(0, 10**9), st.integers(1, 99), ANY)
def test_any_decimal_and_any_fraction_counts(before, n, m, after):
    for number in (f"{n}.{m:02}", f"${n:,}.{m:02}", f"{n}/{m}", f"\\frac{{{n}}}{{{m}}}"):
        value = Fraction(n, m) if "/" in number or "frac" in number else Fraction(f"{n}.{m:02}")
        text = f"{before}\nThe final answer is {number}. {after}"
        assert grade_stated(text, f"{n}.{m:02}" if "." in number else f"{n}/{m}").correct, text
        assert Fraction(stated_number(text)) == value


@given(ANY, ANY)
def test_no_text_and_no_gold_make_it_raise(text, gold):
    answer, correct = grade_stated(text, gold)
    assert isinstance(answer, str) and isinstance(correct, bool) and not (correct and not answer)
    bare = final_text(gold)
    assert grade_stated(f"{text.replace('####', '')}", bare).correct <= (one_number(bare) != "")


LONG = [
    "answer is ",
    "answer: ",
    "####",
    "\\boxed{",
    "answer: abc 5 ",
    "answer is\nabc 5",
    "#### abc",
    "answer ",
    "answer is\n",
]
TAILS = ["9", "=", "1 ", "(0", ".", "a", "._", "1=", " ", ", ", "!", "\\"]


@pytest.mark.parametrize(
    "text", [*(t * 20_000 for t in LONG), *("answer is " + t * 100_000 for t in TAILS)], ids=lambda t: ascii(t[:15])
)
def test_no_text_takes_long(text):
    began = time.process_time()
    grade_stated(text, "18")
    grade_stated(f"{text}5", "5")
    assert time.process_time() - began < 3
