"""Annotated templates as people write them: read as they are meant, or refused with the place and the remedy."""

import json
import time
from fractions import Fraction
from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cca.errors import InputError
from cca.problems.templates import draws
from cca.problems.templates.annotated import Template, check
from cca.problems.templates.spelling import spelled, worded_number

QUESTION = "Ada has {n,12} plums and gives away {k,5}. How many are left?"
INIT = "\n#init:\n- $n = range(10, 20)\n- $k = [3, 5]\n"
CONDITIONS = "#conditions:\n- k < n\n"
ANSWER = "#answer: n - k"
SOLUTION = "{n} - {k} = <<{n}-{k}={n-k}>>{n-k}\n#### {n-k}"


def read(
    question: str = QUESTION,
    init: str = INIT,
    conditions: str = CONDITIONS,
    answer: str = ANSWER,
    solution: str = SOLUTION,
    **more: object,
) -> Template:
    annotated = "\n".join((question, init, conditions, answer))
    return Template.parse(json.dumps({"question_annotated": annotated, "answer_annotated": solution, **more}), "own")


def questions(template: Template) -> set[str]:
    return {item.question for item in template.instances(0)}


PLAIN = questions(read())


@pytest.mark.parametrize(
    "changed",
    [
        {"init": "\n#init:\n-\t$n\t=\trange(10,\t20)\n-   $k =  [3, 5] \n"},
        {"init": "\r\n#init:\r\n- $n = range(10, 20)\r\n- $k = [3, 5]\r\n"},
        {"init": "\n# Init :\n- $n = range(10, 20),\n- $k = [3, 5,],\n"},
        {"init": "\n#INIT\n* $n = range(10, 20) # plums\n• $k = [3, 5]\n# these are few\n"},
        {"init": "\n#init:\n-$n = range(10,\u00a020)\n–\u00a0$k\u00a0= [3, 5]\n-\n"},
        {"init": "\n#init:\n- $n = np.arange(10, 20, 1.0)\n- $k = range(3, 6, 2)\n"},
        {"init": "\ufeff\n#init:\n- $n = range（10，20）\n- $k = [3,\u200b 5]\n"},
        {"init": "\n#init:\n- $n = range(1, 5)\n- $n = range(10, 20)\n- $k = [3, 5]\n"},
        {"init": "\n#init:\n- $n = range(10, 20)\n- $k = [3, 5]\n- name = “Ada’s”\n- unused = 7\n"},
        {"conditions": ""},
        {"conditions": "#conditions:\n"},
        {"conditions": "#condition: k < n"},
        {"conditions": "# Conditions:\n- True\n- (k < n) == True\n"},
        {"conditions": "#conditions:\n- (k > n) == False\n- (k ≥ n) is False\n- not k > n\n"},
        {"conditions": "#conditions:\n- k in [3, 5] and n not in (1, 2, 3)\n- k in {3, 5}\n- n in range(10, 20)\n"},
        {"conditions": "#conditions:\n- 0 < k < n ≤ 19\n- k ≠ n or k == n\n- k × 2 − 1 < 2^5\n- n % 2 < +2\n"},
        {"conditions": "#conditions:\n- max(n, k) == n and min(n, 9) == 9 and abs(k - n) == n - k\n- n÷1 > 1\n"},
        {"answer": "# Answer = $n - $k"},
        {"answer": "#answer:\n- n - k"},
        {"answer": "#answer:\nn − k"},
        {"answer": "#answer: {n} - {k}  # what is left"},
        {"answer": "#answer:\n-k + n"},
        {"question": QUESTION.replace("{n,12}", "{$n, 12}").replace("{k,5}", "{ k }")},
        {"question": QUESTION.replace("{n,12}", "{n,twelve}").replace("{k,5}", "{k,}")},
        {"solution": SOLUTION.replace("{n-k}", "{ $n − k }").replace("\n", "\r\n\r\n")},
        {"question": "\n" + QUESTION, "answer": ANSWER + "\n\n"},
        {"answer": ANSWER, "question": QUESTION, "solution": SOLUTION + " plums"},
    ],
)  # fmt: skip
def test_what_people_type_is_read_as_they_mean_it(changed):
    found = read(**changed)
    assert questions(found) == PLAIN
    for item in found.instances(0):
        words = item.question.split()
        assert item.answer == str(int(words[2]) - int(words[7].strip(".")))
    assert check(found).failures == ()


def test_names_may_have_accents_however_they_are_encoded():
    for init in ("$prénom", "$pre\u0301nom"):
        found = read(
            question="{prénom,4} et {pre\u0301nom,4} ?",
            init=f"\n#init:\n- {init} = range(3, 6)",
            conditions="",
            answer="#answer: prénom",
            solution="#### {pre\u0301nom}",
        )
        assert questions(found) == {"3 et 3 ?", "4 et 4 ?", "5 et 5 ?"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init": "\n#init:\n- $n = range(10, 20)\n- $k = range(1, n)"}, r"#init line 2 .*no name n here.*#conditions"),
        ({"init": "\n#init:\n- $n = [10-19]\n- $k = [3]"}, r"#init line 1 .*difference.*range\(first"),
        ({"init": "\n#init:\n- $n = [10–19]\n- $k = [3]"}, r"#init line 1 .*difference"),
        ({"init": "\n#init:\n- $n = range(1,000, 2,000)\n- $k = [3]"}, r"#init line 1 .*1,000 is two.*write 1000"),
        ({"init": "\n#init:\n- $n = range(1, 10**9)\n- $k = [3]"}, r"#init line 1 .*more than 100000"),
        ({"init": "\n#init:\n- $n = 5 * 2\n- $k = [3]"}, r"#init line 1 .*where a list is needed"),
        ({"init": "\n#init:\n- $n = range(10, 20, 0)\n- $k = [3]"}, r"#init line 1 .*divides by zero"),
        ({"init": "\n#init:\n- $n = range(10, 20)\n  $k = [3]"}, r"#init line 2 .*begins with a -"),
        ({"init": "\n#init:\n- $n = sample([10,\n  11])\n- $k = [3]"}, r"#init line 2 .*not broken into two"),
        ({"init": "\n#init:\n- class = range(10, 20)\n- $k = [3]"}, r"#init line 1 .*choose another name"),
        ({"init": "\n#init:\n- $n, $n = sample(range(9), 2)\n- $k = [3]"}, r"#init line 1 .*n stands twice"),
        ({"init": "\n#init:\n- n, k = sample(range(9), 2)\n- $n = [3]"}, r"#init line 2 .*set twice, once with other"),
        ({"init": INIT + "".join(f"- $x{i} = range(99999)\n" for i in range(9))}, r"#init line \d .*a step"),
        ({"conditions": "#conditons:\n- k < n"}, r"no section #conditons:.*#init, #conditions and #answer"),
        ({"conditions": "#conditions:\n- k = n"}, r"#conditions line 1 `k = n`.*=="),
        ({"conditions": "#conditions:\n- k is 3"}, r"#conditions line 1 .*write =="),
        ({"conditions": "#conditions:\n-5 < k"}, r"#conditions line 1 .*write `- -5 < k`"),
        ({"conditions": "#conditions:\n- k < n²"}, r"#conditions line 1 .*not an expression"),
        ({"conditions": "#conditions:\n- 9**9**9 > k"}, r"#conditions line 1 .*exponent"),
        ({"conditions": "#conditions:\n- " + "(" * 500 + "k" + ")" * 500}, r"#conditions line 1 .*too many nested"),
        ({"conditions": "#conditions:\n- k in range(n, 99999)"}, r"#conditions line 1 .*use comparisons"),
        ({"conditions": "#conditions:\n- k == 'five'"}, r"#conditions line 1 .*'five' is compared with the number"),
        ({"conditions": "#conditions:\n- n / (k - 3) > 0"}, r"#conditions line 1 .*divides by zero"),
        ({"answer": "#answer: n - k\n#answer: n"}, r"expected one line `#answer: expression`, found 2"),
        ({"answer": ""}, r"expected one line `#answer: expression`, found 0"),
        ({"answer": "#answer: (n - k) / (k - 3) * (k - 3)"}, r"divides by zero.*#conditions"),
        ({"question": "Ada has {n,12} plums {and {k,5}?"}, r"question_annotated: \{ without its partner"),
        ({"solution": SOLUTION.replace("}>>", "")}, r"answer_annotated: .* without its partner"),
        ({"solution": "It is {n-k}."}, r"its last line must be `#### \{expression\}`"),
        ({"solution": "#### {n - }"}, r"slot \{n - \}: .*not an expression"),
        ({"solution": "#### {n - k + 1}"}, r"contradicts itself.*ends with .*, not .*mend"),
        ({"question": ""}, r"no question before the sections"),
        ({"question": "x" * 30_000}, r"question_annotated: has 30\d\d\d characters"),
        ({"question": "\ud800 {n,1} {k,2}"}, r"question_annotated: .*half a character"),
        ({"question_annotated": ["a"]}, r"question_annotated: is of type list"),
        ({"answer_annotated": None}, r"answer_annotated: is of type NoneType"),
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused_with_the_file_and_the_place(changed, message):
    began = time.process_time()
    with pytest.raises(InputError, match=r"own\.json.*" + message):
        list(islice(read(**changed).instances(0), 50))
    assert time.process_time() - began < 2


def test_json_that_is_broken_over_lines_or_too_deep_never_crashes():
    text = '{"question_annotated": "%s?\n#init:\n-\t$n = [1]\n#answer: n", "answer_annotated": "#### {n}"}'
    assert questions(Template.parse(text % "{n,1}", "own")) == {"1?"}
    with pytest.raises(InputError, match=r"own\.json is not a template"):
        Template.parse("[" * 100_000, "own")


def test_a_condition_that_names_a_pair_by_its_wording_is_not_silently_false():
    init = '\n#init:\n- $n = range(10, 20)\n- $k = sample([("twice", 2), ("thrice", 3)])\n'
    with pytest.raises(InputError, match=r"name\[0\] is the wording"):
        next(read(init=init, conditions="#conditions:\n- k != 'twice'").instances(0))
    assert {q.split()[7] for q in questions(read(init=init, conditions="#conditions:\n- k[0] != 'twice'"))} == {
        "thrice."
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(t, Fraction(1, 3)) for t in ("third", "a third", "one third", "One-Third", "1/3", "⅓")],
        *[(t, Fraction(2, 3)) for t in ("two-thirds", "two thirds", "2/3")],
        *[(t, Fraction(1, 2)) for t in ("half", "a half", "one-half", "0.5", "½")],
        *[(t, Fraction(1, 4)) for t in ("quarter", "a quarter", "one fourth")],
        *[(t, Fraction(3, 2)) for t in ("one and a half", "1 1/2", "1½")],
        *[(t, 2) for t in ("double", "twice", "two times", "2 times", "a couple")],
        *[(t, 12) for t in ("a dozen", "dozen", "twelve", "12")],
        ("three quarters", Fraction(3, 4)),
        ("two hundred and five", 205),
        ("two thousand three hundred", 2300),
        ("forty-two", 42),
        ("33%", 33),
        ("1,200", 1200),
        ("-5", -5),
        *[(t, None) for t in ("", "$5", "5 plums", "1/0", "red", "and", "half half", "x" * 10_000, "²")],
    ],
)
def test_wordings_of_numbers_are_understood(text, value):
    assert worded_number(text) == value


@pytest.mark.parametrize(
    "default", ["third", "a third", "one-third", "1/3", "0.5", "Half", "quarter", "three quarters"]
)
def test_any_wording_of_a_fraction_may_be_a_default(default):
    found = read(
        question=f"Of {{n,12}} plums {{part,{default}}} are ripe. How many?",
        init="\n#init:\n- $n = range(12, 60, 12)\n- $part = sample(fractions)",
        conditions="#conditions:\n- is_int(n * part)",
        answer="#answer: n * part",
        solution="{n} * {part}\n#### {n * part}",
    )
    value = worded_number(default)
    assert value
    assert found.default().answer == str(12 * value)
    assert default.casefold() in found.default().question.casefold()
    assert check(found).failures == ()


def test_a_default_that_is_not_understood_is_a_note_and_instances_are_drawn_all_the_same():
    found = read(question=QUESTION.replace("{n,12}", "{n,a few}"))
    assert len(questions(found)) == 20
    verdict = check(found)
    assert verdict.failures == ()
    assert any("n is a number, and its default a few is not" in note for note in verdict.notes)


def test_shares_are_shown_as_per_cent_where_the_default_is():
    found = read(
        question="Of {n,200} plums {part,25%} are ripe. How many?",
        init="\n#init:\n- $n = [200]\n- $part = [0.25, 0.5]",
        conditions="",
        answer="#answer: n * part",
        solution="{n} * {part}\n#### {n * part}",
        question_of="",
    )
    assert found.default().answer == "50"
    assert {(i.question.split()[3], i.answer) for i in found.instances(0)} == {("25%", "50"), ("50%", "100")}


def test_what_stands_in_quotation_marks_keeps_its_signs():
    assert spelled("$n − 1 ≤ 2^k and t == “Ada’s × $n”") == 'n - 1 <= 2**k and t == "Ada’s × $n"'
    assert spelled("t in [‘Ada’s’, 'it\\'s ≤', \"a × b\"]") == 't in ["Ada’s", \'it\\\'s ≤\', "a × b"]'


def test_a_name_that_is_set_twice_has_its_last_list_and_a_note_says_so():
    found = read(init="\n#init:\n- $n = [1]\n- $k = [5]\n- $n = [12]")
    assert questions(found) == {"Ada has 12 plums and gives away 5. How many are left?"}
    assert "#init sets n twice; the last line counts" in check(found).notes


GOOD = json.dumps(
    {
        "question": "Ada has 12 plums and gives away a third. How many are left?",
        "answer": "#### 8",
        "question_annotated": "{who,Ada} has {n,12} plums and gives away {part,a third}. How many are left?\n\n#init:\n"
        "- who = sample(names)\n- $n = range(12, 60)\n- $part = sample(fraction_alph)\n- $ans = range(1, 60)\n\n"
        "#conditions:\n- is_int(n * part)\n- n - n * part == ans\n- 0 < ans < 50 and not divides(n, 7)\n\n#answer: ans",
        "answer_annotated": "{who} keeps {n} - {int(n*part)} = <<{n}-{int(n*part)}>>{n - int(n*part)}.\n#### {ans}",
    },
    indent=1,
)
TOKENS = [
    *"{}[](),.$-+*/<>=#%^_ 0159nkx\"'\\",
    "\n",
    "\t",
    "\r\n",
    "\u00a0",
    "−",
    "×",
    "“",
    "’",
    "é",
    "##",
    "**9",
    "00",
    "//",
]
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(GOOD) - 1),
        st.sampled_from(["delete", "insert", "replace", "delete line", "repeat line", "swap"]),
        st.sampled_from(TOKENS),
    ),
    min_size=1,
    max_size=3,
)


def edited(text: str, edits: list[tuple[int, str, str]]) -> str:
    for place, kind, token in edits:
        i = min(place, len(text) - 1)
        if kind.endswith("line"):  # a line of a section, which JSON writes as \n
            lines = text.split("\\n")
            n = place % len(lines)
            lines[n : n + 1] = [] if kind == "delete line" else [lines[n]] * 2
            text = "\\n".join(lines) or " "
        elif kind == "swap":
            text = text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :]
        else:
            written = "" if kind == "delete" else json.dumps(token)[1:-1] if place % 2 else token
            text = text[:i] + written + text[i + (kind != "insert") :]
    return text


@settings(max_examples=200)
@given(EDITS)
def test_a_template_with_slips_samples_or_is_refused_by_name(edits):
    began = time.process_time()
    try:
        found = Template.parse(edited(GOOD, edits), "own")
        for item in islice(found.instances(0), 3):
            assert item.question
            assert "{" not in item.question + item.solution
        check(found, 3)
    except InputError as error:
        assert "own.json" in str(error)
    assert time.process_time() - began < 5


class Script:
    """In place of a random generator: takes the branches that it is told, and notes how many there were."""

    def __init__(self, taken: list[int]):
        self.taken, self.widths = taken, []

    def randrange(self, width: int) -> int:
        self.widths.append(width)
        return self.taken[len(self.widths) - 1] if len(self.widths) <= len(self.taken) else 0


def chances(found: Template) -> dict[tuple, Fraction]:
    """The exact chance of each assignment in one try, from every branch that drawing can take."""
    result: dict[tuple, Fraction] = {}
    taken: list[int] = []
    while True:
        script = Script(taken)
        try:
            variables = found.draws.draw(script)  # pyright: ignore[reportArgumentType]
        except InputError:
            variables = None
        chance = Fraction(1)
        for width in script.widths:
            chance /= width
        if variables:
            key = tuple(sorted((name, str(value)) for name, value in variables.items()))
            result[key] = result.get(key, Fraction(0)) + chance
        taken = [*taken, *[0] * (len(script.widths) - len(taken))]
        while taken and taken[-1] + 1 == script.widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return result
        taken[-1] += 1


POOLS = (
    "[1, 2, 3]",
    "range(0, 4)",
    "[2, 4]",
    "[0.5, 1, 2]",
    '[("one", 1), ("a single", 1), ("two", 2)]',
    "range(1, 7)",
)
RELATIONS = (
    "c == a + b", "a + b - c == 0", "a == 2 * c - b", "c / 2 == a", "b - c == -a", "a + b == c and c > 1",
    "c - 1 == a * b", "a * c == b", "b / c == a", "a < c", "c in [1, 2]", "3 * (a - c) == 6 - b", "c == 2", "a == b",
)  # fmt: skip


@settings(max_examples=60)
@given(st.tuples(*[st.sampled_from(POOLS)] * 3), st.lists(st.sampled_from(RELATIONS), max_size=2, unique=True))
def test_whatever_is_solved_for_every_assignment_keeps_the_same_chance(pools, relations):
    lines = "".join(f"- ${name} = {pool}\n" for name, pool in zip("abc", pools, strict=True))
    found = read(
        question="{a} {b}?",
        init="\n#init:\n" + lines,
        conditions="#conditions:\n" + "".join(f"- {relation}\n" for relation in relations),
        answer="#answer: a + b + c",
        solution="#### {a + b + c}",
    )
    options = [found.draws.options(name) for name in "abc"]
    wanted = set()
    for values in product(*options):
        variables = dict(zip("abc", values, strict=True))
        try:
            met = all(condition.met(variables) for condition in found.draws.conditions)
        except InputError:  # a division by zero: the template is refused
            return
        if met:
            wanted.add(tuple((name, str(value)) for name, value in variables.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "MAX_DRAWS", 1)
        try:
            drawn = chances(found)
        except InputError:
            drawn = {}
    assert set(drawn) == wanted
    assert len(set(drawn.values())) <= 1


@pytest.mark.parametrize(
    "condition",
    ["ans == n - k", "ans + k == n", "n - k - ans == 0", "2 * ans == 2 * n - 2 * k", "n == ans + k and ans > 0"],
)
@pytest.mark.parametrize("size", [100, 90_000])
def test_a_variable_that_the_question_never_shows_is_solved_for(condition, size):
    began = time.process_time()
    found = read(
        init=f"\n#init:\n- $n = range(50, 900)\n- $k = range(1, 60)\n- $ans = range(20, {size})",
        conditions=f"#conditions:\n- {condition}",
        answer="#answer: ans",
        solution="{n} - {k} = {ans}\n#### {ans}",
    )
    for item in islice(found.instances(0), 300):
        words = item.question.split()
        assert item.answer == str(int(words[2]) - int(words[7].strip(".")))
        assert 20 <= int(item.answer) < size
    verdict = check(found, 20)
    assert (verdict.distinct, verdict.failures) == (20, ())
    assert any("published instance" in note for note in verdict.notes) == ("no default" in str(verdict.notes))
    assert time.process_time() - began < 3
