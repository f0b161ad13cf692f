import json
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from test_answers import scrambled
from test_numbers import ANY, NO_NUMBERS, NUMBERS

from cca.errors import InputError
from cca.grading.answers import Graded, final_text, grade_exact, grade_number
from cca.grading.characters import plain
from cca.grading.graders import Disagreement, disagreements, load_grader
from cca.grading.mathematics import MathVerify, math_verify
from cca.grading.numbers import one_number

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_test.jsonl"


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 18", "18", True),
        ("The answer is 18.", "18", True),
        ("The answer is $18$.", "18", True),
        ("so \\boxed{18} in 3 days", "18", True),
        ("#### 19", "18", False),
        ("\\boxed{7}\n#### 8", "8", True),
        ("#### 7\nso \\boxed{8}", "8", True),
        ("#### 18.", "18", True),
        ("\\boxed{18.}", "18", True),
        ("#### **18**", "18", True),
        ("#### 18.0", "18", True),
        ("#### 18", "6 * 3 = 18\n#### 18", True),
        # money, separators, units
        ("#### 1000", "$1,000", True),
        ("#### \\$1,000", "1000", True),
        ("it costs \\$1,000", "1000", True),
        ("$\\boxed{1{,}234}$", "1234", True),
        ("#### €20", "20", True),
        ("#### 18 dollars", "18", True),
        ("#### 18", "18 dollars", True),
        ("#### 18 kg", "18", True),
        ("\\boxed{50\\text{ cm}}", "50", True),
        # signs
        ("#### −5", "-5", True),
        ("#### -5", "−5", True),
        ("The answer is −5.", "-5", True),
        ("#### 5", "-5", False),
        # fractions and percent
        ("#### 3/4", "\\frac{3}{4}", True),
        ("\\boxed{\\frac{6}{8}}", "3/4", True),
        ("#### 0.75", "3/4", True),
        ("#### 3/5", "3/4", False),
        ("#### 4", "3/4", False),
        ("#### 0.333333", "1/3", True),
        ("#### 0.33", "1/3", False),
        ("\\boxed{1\\frac{1}{2}}", "3/2", True),
        ("#### 12.5%", "12.5%", True),
        ("#### 12.5\\%", "12.5%", True),
        ("#### 0.125", "12.5%", True),
        ("#### 50 percent", "50%", True),
        ("#### 13%", "12%", False),
        # other mathematics
        ("#### x = 5", "5", True),
        ("#### 5", "x = 5", True),
        ("#### x = 6", "5", False),
        ("#### 2\\sqrt{3}", "\\sqrt{12}", True),
        ("#### 2\\sqrt{3}", "2", False),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", True),
        ("#### (1, 2)", "(1,2)", True),
        ("#### (1, 2)", "2", False),
        ("\\boxed{(2, 1)}", "(1,2)", False),
        ("#### 2^{10}", "1024", True),
        # no mathematics
        ("#### husband", "husband", True),
        ("#### wife", "husband", False),
        ("no idea", "", False),
        ("", "", False),
        ("", "18", False),
        ("#### 18", "", False),
    ],
)
def test_math_verify_compares_mathematics(text, gold, correct):
    assert math_verify(text, gold).correct is correct


# fmt: off
UNITS = [
    "12 km/h", "12 oz", "12 L", "$12/hr", "12/hr", "12 cm^2", "12 cm²", "12 cm2", "12 square meters", "12 apples",
    "12 °C", "12°C", "12^\\circ", "12 pm", "12AM", "12 p.m.", "12 m/s", "12 m/s^2", "12 kg m/s", "12 N/m^2", "12 mL",
    "$12", "12 V", "12 K", "12 Hz", "12 GB", "12 in", "12 in.", "12 mi", "12 yd", "12 sq. ft.", "12kg",
    "12 miles per hour", "12\\text{ cm}^2", "12 \\mathrm{km/h}", "\\text{12 apples}", "12€", "12 USD", "12¢",
    "12 (apples)", "about 12", "12.", "12.00", "+12", "１２", "**12**", "`12`", "12</s>", "12<|im_end|>",
    "12 [EOS]", "12\n```", "<extra_id_0>12", "x = 12 km/h", "6 * 2 = 12", "6 × 2 = 12", "\\frac{24}{2} = 12", "12e0",
    "12 L/min", "12<|reserved_5|>",
]
PARTS = [
    "12!", "12x", "12 x", "12\\pi", "12π", "2\\sqrt{12}", "12^2", "12²", "12:30", "12½", "12 1/2", "(12, 13)", "12, 13",
    "12 or 13", "-12", "- 12", "–12", "−12", "1{,}212", "12'000",
]
# fmt: on


@pytest.mark.parametrize("text", UNITS)
def test_math_verify_reads_a_number_with_its_unit_as_that_number(text):
    for a, b in ((f"#### {text}", "12"), (f"so \\boxed{{{text}}}", "12"), ("#### 12", text), (f"#### {text}", text)):
        assert math_verify(a, b).correct, (a, b)
    assert not math_verify(f"#### {text}", "13").correct
    assert not math_verify("#### 13", text).correct


def test_math_verify_takes_no_part_of_other_mathematics_for_the_whole():
    for text in PARTS:
        assert not math_verify(f"#### {text}", "12").correct, text
        assert not math_verify("#### 12", text).correct, text
        assert math_verify(f"#### {text}", text).correct, text


def test_math_verify_reads_one_number_however_it_is_written():
    for value, texts in NUMBERS.items():
        for text in (
            t for t in texts if not re.search("[%％]|percent", t)
        ):  # of which it knows that they are hundredths
            assert math_verify(f"#### {text}", value).correct, (text, value)
            assert math_verify(f"#### {value}", text).correct, (value, text)


def test_math_verify_takes_what_is_no_number_for_itself_and_not_for_its_first_number():
    for gold in filter(None, NO_NUMBERS):
        assert math_verify(f"#### {gold}", gold).correct, gold
    for gold in ("5!", "5²", "5n", "5 + x", "x - 5", "(0, 5]", "5k", "5–6", "5\\sqrt{2}", "ln 5"):
        assert not math_verify("#### 5", gold).correct and not math_verify(f"#### {gold}", "5").correct, gold


@settings(max_examples=40)
@given(ANY, ANY)
def test_a_text_that_ends_with_its_gold_is_right_to_math_verify_wherever_that_is_a_number(text, gold):
    if one_number(gold) and not re.search("[%‰]|pct|percent", plain(gold).casefold()):
        assert math_verify(f"{text}\n#### {gold}", gold).correct
    answer, correct = math_verify(text, gold)
    assert isinstance(answer, str) and isinstance(correct, bool) and not (correct and not answer)


@pytest.mark.parametrize("text", ["", " \n", "no idea", "####", "72 so\n####", "</s>", "<|reserved_5|>"])
def test_math_verify_says_no_answer_where_it_reads_none(text):
    assert math_verify(text, "72") == ("", False)


@pytest.mark.parametrize("text", ["#### {", "#### ?", "#### husband", "#### \\frac{1}{", "\\boxed{?}"])
def test_math_verify_says_wrong_and_not_no_answer_where_the_answer_is_no_mathematics(text):
    answer, correct = math_verify(text, "72")
    assert answer and not correct


@pytest.mark.parametrize(
    "text", ["#### 5\x00", "#### 5\u2028\u2029\x85", "#### 5\ud800", "#### 5\r\n", "7\n\n#### 5\n\n"]
)
def test_no_character_breaks_the_talk_with_the_worker(text):
    math_verify(text, text)
    assert math_verify("#### 5", "5") == ("5", True)


@pytest.mark.parametrize(
    "text", ["{" * 20_000 + "5", "\\boxed{" * 5_000 + "5", "7" * 10_000, "1e999999", "x " * 100_000]
)
def test_a_text_of_any_length_and_depth_leaves_the_next_one_alone(text):
    answer, correct = math_verify(f"#### {text}", "18")
    assert answer and not correct
    assert math_verify("#### 5", "5") == ("5", True)


def test_math_verify_says_which_answer_it_read():
    assert math_verify("so the answer is $\\frac{6}{8}$, I hope", "3/4").answer == "\\frac{6}{8}"
    assert math_verify("no idea", "3/4").answer == ""


ENDLESS = {
    "tower": "#### 9**9**9**9",
    "power of a thousand digits": "\\boxed{18^{" + "9" * 1000 + "}}",
    "factorial": "the answer is $((10!)!)!$",
    "while parsing": "\\boxed{\\binom{1000000}{500000}}",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_mathematics_without_end_is_wrong_and_the_next_text_is_graded(text):
    """Off the main thread too, where the library's own timeouts do not work."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(math_verify, text, "18").result() == (final_text(text), False)
    assert math_verify("#### 18", "18") == ("18", True)
    assert time.monotonic() - began < 60  # a second or two where the machine is not busy


@pytest.mark.skipif(sys.platform != "linux", reason="not every system limits the memory of a process")
def test_mathematics_that_needs_much_memory_is_refused_before_it_gets_it():
    """It is refused by the library, at the allocation, and not ended by the clock after it has filled gigabytes."""
    huge = "\\operatorname{zeros}(20000,20000)"
    assert math_verify(f"\\boxed{{{huge}}}", "18") == (huge, False)


def test_no_text_makes_math_verify_raise():
    rng = random.Random(2)
    for _ in range(100):
        text, gold = scrambled(rng, rng.randrange(30)), scrambled(rng, rng.randrange(8))
        answer, correct = math_verify(text, gold)
        assert isinstance(answer, str) and isinstance(correct, bool) and not (correct and not answer)


def test_threads_get_the_answers_to_their_own_texts():
    items = [(f"#### {i % 7}", str(i % 5)) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        graded = list(pool.map(lambda item: math_verify(*item), items))
    assert graded == [(str(i % 7), i % 7 == i % 5) for i in range(200)]


def test_an_interrupted_question_leaves_no_answer_to_the_next_one(monkeypatch):
    def interrupted(process, question):
        process.stdin.write(question + "\n")
        process.stdin.flush()
        raise KeyboardInterrupt

    assert math_verify("#### 1", "1").correct
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(math_verify, "_ask", interrupted)
        math_verify("#### 1", "1")
    assert math_verify("#### 2", "1") == ("2", False)


def test_a_worker_that_was_ended_from_outside_costs_no_answer():
    math_verify("#### 1", "1")
    assert math_verify._process
    math_verify._process.kill()
    math_verify._process.wait()
    assert math_verify("#### 1", "1").correct


def test_a_forked_process_has_a_worker_of_its_own_and_leaves_its_parents_alone():
    code = """
import os, sys
from cca.grading.mathematics import math_verify
assert math_verify("#### 1", "1").correct
mine = math_verify._process.pid
if not (child := os.fork()):
    assert math_verify("#### 2", "2").correct and math_verify._process.pid != mine
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert math_verify("#### 3", "3").correct and math_verify._process.pid == mine
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_end_of_the_program_ends_the_worker_without_a_word():
    code = (
        "from cca.grading.mathematics import math_verify; math_verify('#### 1', '1'); print(math_verify._process.pid)"
    )
    ended = subprocess.run([sys.executable, "-X", "dev", "-c", code], check=True, capture_output=True, text=True)
    assert ended.stderr == ""
    assert not Path(f"/proc/{int(ended.stdout)}").exists()


def test_the_worker_runs_the_package_that_asked_it_and_not_another_one(tmp_path, monkeypatch):
    (tmp_path / "cca").mkdir()
    (tmp_path / "cca" / "__init__.py").write_text("raise ImportError('another one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    grader = MathVerify()
    assert grader("#### 1", "1").correct
    grader.close()


def test_a_math_verify_that_cannot_be_imported_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no antlr here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"math-verify .*ImportError: no antlr here.*pip install 'math-verify"):
        MathVerify()("#### 1", "1")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current directory and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = []

    def write(code: str) -> str:
        written.append(f"user_grader_{tmp_path.name}_{len(written)}")
        (tmp_path / f"{written[-1]}.py").write_text(code)
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["number", "stated", "exact", "math-verify"])
def test_the_graders_that_come_with_cca_are_found_by_name(name):
    assert load_grader(name)("#### 1", "1") == Graded("1", True)


@pytest.mark.parametrize(
    ("code", "graded"),
    [
        ("def grade(text, gold): return 'mine', gold in text", ("mine", True)),
        ("def grade(text, gold): return ['mine', gold in text]", ("mine", True)),
        ("def grade(text, gold): return gold in text", ("12", True)),
        ("class Mine:\n    def __call__(self, text, gold): return gold == text\ngrade = Mine()", ("12", False)),
    ],
)
def test_a_function_in_the_current_directory_is_a_grader(module, code, graded):
    answer, correct = load_grader(f"{module(code)}:grade")("#### 12", "2")
    assert (answer, correct) == graded


def test_a_function_in_memory_is_a_grader_and_is_checked_like_one_that_is_named():
    def mine(text, gold):
        return gold in text

    assert load_grader(mine)("#### 12", "2") == Graded("12", True)
    assert load_grader(lambda text, gold: ("mine", text == gold))("2", "2") == Graded("mine", True)
    assert load_grader(grade_exact)("#### 2", "2").correct
    with pytest.raises(InputError, match=r"grader .*no_grader.* returned None"):
        load_grader(no_grader)
    with pytest.raises(InputError, match="grader int: int is no function"):
        load_grader(3)  # pyright: ignore[reportArgumentType]


def no_grader(text, gold):
    """Says nothing."""


def test_a_grader_may_stand_in_a_package_and_a_class_and_import_what_is_beside_it(module, tmp_path):
    beside = module("def same(text, gold):\n    return gold in text")
    (tmp_path / f"pack_{tmp_path.name}").mkdir()
    code = f"class Mine:\n    @staticmethod\n    def grade(text, gold):\n        import {beside}\n"
    (tmp_path / f"pack_{tmp_path.name}" / "inner.py").write_text(code + f"        return {beside}.same(text, gold)\n")
    assert load_grader(f"pack_{tmp_path.name}.inner:Mine.grade")("#### 12", "2").correct


def test_the_current_directory_does_not_hide_installed_modules(module, tmp_path):
    (tmp_path / "pydantic.py").write_text("raise RuntimeError('wrong one')")
    load_grader(f"{module('def grade(text, gold): return True')}:grade")
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize("name", ["numbr", "", "module:", ":grade", "math_verify"])
def test_an_unknown_grader_is_refused_with_the_ones_there_are(name):
    with pytest.raises(InputError, match=r"unknown grader .*number, stated, exact, math-verify, package\.module:"):
        load_grader(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import a_module_that_is_missing",
            "failed .ModuleNotFoundError: .*a_module_that_is_missing.*current directory",
        ),
        ("def grade(text, gold) return True", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def other(text, gold): return True", "user_grader_.*has no grade; define it"),
        ("grade = 3", "grade is no function"),
        ("def grade(text): return True", "raised TypeError.*'1'.*'#### 1'"),
        ("def grade(text, gold): return 1 / 0", "raised ZeroDivisionError"),
        ("def grade(text, gold): return None", r"returned None.*return \(answer: str, correct: bool\) or a bool"),
        ("def grade(text, gold): return 1, True", r"returned \(1, True\)"),
        ("def grade(text, gold): return 'x', 1", "returned"),
        ("def grade(text, gold): return 'x', True, 3", "returned"),
        ("def grade(text, gold): return 'ab'", "returned 'ab'"),
    ],
)
def test_a_function_that_is_no_grader_is_refused_when_it_is_loaded(module, code, message):
    name = f"{module(code)}:grade"
    with pytest.raises(InputError, match=f"(?s)grader {name}.*{message}"):
        load_grader(name)


def test_a_module_that_is_missing_is_refused_by_name():
    with pytest.raises(InputError, match=r"grader no_such\.module:grade: importing no_such\.module failed"):
        load_grader("no_such.module:grade")


def test_a_grader_that_fails_later_names_itself_and_the_end_of_the_text(module):
    name = module("def grade(text, gold):\n    assert gold != '4', text\n    return {'1': True, '2': 'two'}[gold]")
    grader = load_grader(f"{name}:grade")
    for gold, what in (("2", "returned 'two'"), ("3", "raised KeyError: '3'"), ("4", "raised AssertionError")):
        with pytest.raises(InputError, match=f"grader {name}:grade {what}.*x the end'") as error:
            grader("x" * 5000 + " the end", gold)
        assert len(str(error.value)) < 500


def test_graders_disagree_where_one_takes_a_text_for_correct_and_the_other_does_not():
    items = [
        ("a", "#### 18", "18"),
        ("b", "#### 18 apples", "18"),
        ("c", "z" * 500 + " makes 7", "7"),
        ("d", "#### 3", "18"),
    ]
    found = disagreements(iter(items), grade_number, grade_exact)
    assert [d.id for d in found] == ["b", "c"]
    assert found[0] == Disagreement("b", "18", Graded("18", True), Graded("18 apples", False), "#### 18 apples")
    assert found[1].end.endswith("zz makes 7") and len(found[1].end) <= 201


def test_one_answer_written_in_two_ways_is_no_disagreement():
    assert disagreements([("a", "#### 18.0", "18")], grade_number, grade_exact) == []


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K test set is not here")
@pytest.mark.parametrize("name", ["number", "math-verify"])
def test_every_gsm8k_solution_has_its_own_answer_and_no_other(name):
    grader = load_grader(name)
    with GSM8K.open(encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"] for line in file]
    assert len(solutions) == 1319
    for solution in solutions:
        gold = solution.rsplit("####", 1)[1].strip()
        assert grader(solution, gold).correct, solution
        assert not grader(solution, str(int(gold.replace(",", "")) + 1)).correct, solution
