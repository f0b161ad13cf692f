"""Data means what it says: each row that is read is the problem that somebody wrote, or it is refused by its place."""

import datetime
import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import few_shot, refuse
from hypothesis import example, given
from hypothesis import strategies as st
from rows_made import put, row, some
from test_sources import write

from cca import cli
from cca.errors import InputError
from cca.problems.examples import load_examples
from cca.problems.files import natural_order, read_rows, rows_in_memory
from cca.problems.load import load_problems
from cca.problems.splits import chosen_source
from cca.run.config import dump_toml, load_config, parse_config

TEMPLATE = {
    "question": "Ann has 3 nuts. How many?",
    "answer": "#### 3",
    "question_annotated": "Ann has {x,3} nuts. How many?\n\n#init:\n- $x = range(2, 9)\n\n#answer: x",
    "answer_annotated": "She has {x}.\n#### {x}",
}


# ---- values ----

NUMBERS = [
    (5, "5"),
    (-3, "-3"),
    (5.0, "5"),
    (0.5, "0.5"),
    (1e20, "100000000000000000000"),
    (1e-7, "0.0000001"),
    (0.1 + 0.2, "0.3"),
    (1.1 * 3, "3.3"),
    (4.35 * 100, "435"),
    (1 / 3, "0.3333333333333333"),
    (-0.0, "0"),
    (1234567.891, "1234567.891"),
    (10**30, "1" + "0" * 30),
    (Decimal("5.00"), "5"),
    (Decimal("1E+3"), "1000"),
    (Decimal("0.12345678901234567890123"), "0.12345678901234567890123"),
    (Fraction(3, 4), "3/4"),
    (np.int64(7), "7"),
    (np.float32(0.1), "0.1"),
    (np.float64(2.50), "2.5"),
    (np.str_("x"), "x"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS, ids=[f"{type(v).__name__}-{t[:9]}" for v, t in NUMBERS])
def test_a_number_is_written_as_people_write_it(value, text):
    (found,) = rows_in_memory([row("How many?", value)])
    assert (found.worked.answer, found.worked.solution) == (text, f"#### {text}")


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("5.0", "5"),
        ("1e20", "1" + "0" * 20),
        ("0.30000000000000004", "0.3"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("12345678901234567890123", "12345678901234567890123"),
    ],
)
def test_a_number_in_a_file_keeps_its_value(tmp_path, literal, text):
    (found,) = read_rows(put(tmp_path / "own.jsonl", f'{{"question": "a", "answer": {literal}}}'))
    assert found.worked.answer == text


@pytest.mark.parametrize(
    ("field", "literal", "said"),
    [
        ("answer", "NaN", "row 1 has no answer"),
        ("answer", "Infinity", "its answer is inf, of type float; give text or a finite number"),
        ("answer", '["5", "five"]', "its answer is .*, of type list"),
        ("answer", '{"a": 1}', "its answer is .*, of type dict"),
        ("answer", "true", "its answer is True, of type bool"),
        ("answer", "9" * 5000, "its answer has more than 400 digits; write it as text"),
        ("answer", "1e999999999", "its answer has more than 400 digits"),
        ("answer", "1e99999999999999999999999", "its answer is inf"),
        ("question", '["a"]', "its question is .*, of type list; give text"),
        ("question", "12", "its question is 12, of type int; give text"),
        ("question", '"a\\ud800b"', "its question holds a NUL character or half a surrogate pair"),
        ("answer", '"5\\u0000"', "its answer holds a NUL character"),
        ("solution", "[1]", "its solution is .*, of type list"),
        ("solution", "false", "its solution is False"),
        ("template", "true", "its template is True"),
        ("template", "1.5", "its template is 1.5, of type float; give text or a whole number"),
        ("template", '"\\udfff"', "its template holds"),
        ("split", '["test"]', "its split is .*, of type list; give text"),
        ("split", "1", "its split is 1, of type int"),
        ("split", '"\\ud83d"', "its split holds"),
    ],
)
def test_a_value_that_is_no_text_and_no_number_is_named_with_its_row_and_field(tmp_path, field, literal, said):
    others = {"question": '"a"', "answer": '"1"', field: literal}
    line = "{" + ", ".join(f'"{key}": {value}' for key, value in others.items()) + "}"
    path = put(tmp_path / "own.jsonl", line)
    with pytest.raises(InputError, match=rf"own\.jsonl, row 1.*{said[said.startswith('row 1') and 5 :]}"):
        read_rows(path)


@pytest.mark.parametrize(
    "value",
    [b"5", math.inf, Decimal("sNaN"), complex(1), np.bool_(True), np.array([5]), datetime.date(2020, 1, 1), {5}],
)
def test_a_value_in_memory_that_is_no_answer_is_refused(value):
    with pytest.raises(InputError, match=r"row 1(: its answer is| has no answer)"):
        rows_in_memory([row("a", value)])


def test_what_a_data_frame_holds_is_read_and_its_gaps_are_gaps():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "question": ["a", "b"],
            "answer": [5, 0.5],
            "solution": [None, "1/2 = 0.5\n#### 0.5"],
            "template": [3, None],
            "split": pandas.array(["train", pandas.NA], dtype="string"),
        }
    )
    first, second = rows_in_memory(frame.to_dict("records"))
    assert (first.worked.template, first.worked.answer, first.worked.solution) == ("3", "5", "#### 5")
    assert (second.worked.template, second.split) == ("all", "train")
    with pytest.raises(InputError, match="row 2 has no answer"):
        rows_in_memory([row("a"), row("b", pandas.NaT)])
    with pytest.raises(InputError, match="to_dict"):
        rows_in_memory(frame)


def test_columns_of_parquet_are_text_and_numbers_or_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    questions = pyarrow.array(["a", "b"])
    for number, (answers, found) in enumerate(
        [
            (pyarrow.array(["5", "6"]).dictionary_encode(), ["5", "6"]),
            (pyarrow.array([5.0, 0.25]), ["5", "0.25"]),
            (pyarrow.array([0.1, 2.5], pyarrow.float32()), ["0.1", "2.5"]),
            (pyarrow.array([Decimal("1.50"), Decimal("2.00")]), ["1.5", "2"]),
            (pyarrow.array([5, 6], pyarrow.uint8()), ["5", "6"]),
            (pyarrow.array([b"5", b"6"]), "row 1: its answer is b'5', of type bytes"),
            (pyarrow.array([5, 6], pyarrow.date32()), "of type date"),
            (pyarrow.array([["5"], ["6"]]), "of type list"),
            (pyarrow.array([True, False]), "of type bool"),
            (pyarrow.array([1.0, None], pyarrow.float32()), "row 2 has no answer"),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        write_table(pyarrow.table({"question": questions, "answer": answers}), path)
        if isinstance(found, list):
            assert [r.worked.answer for r in read_rows(path)] == found
        else:
            with pytest.raises(InputError, match=found):
                read_rows(path)
    write_table(pyarrow.Table.from_arrays([questions] * 3, ["question", "answer", "answer"]), tmp_path / "two.parquet")
    with pytest.raises(InputError, match=r"two columns are called 'answer'"):
        read_rows(tmp_path / "two.parquet")


FIELDS = ("question", "answer", "solution", "template", "split", "id", "instance", "more")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
@example({"answer": 10**5000}, False)
@example({"more": 10**5000, "template": "9" * 5000}, False)
@example({"template": "a\u2028b", "answer": "5\u0085\u2028x\x0b6"}, False)
def test_any_value_in_any_field_gives_the_problem_that_stands_there_or_names_its_row(tmp_path_factory, values, escaped):
    values = {"question": "Why?", "answer": "5", **values}
    if any(isinstance(v, int) and abs(v) > 10**4000 for v in values.values()):
        line = "{" + ", ".join(f'"{k}": {_literal(v)}' for k, v in values.items()) + "}"
    else:
        line = json.dumps(values, ensure_ascii=escaped)
    path = tmp_path_factory.mktemp("json") / "own.jsonl"
    path.write_bytes((line + "\n").encode(errors="surrogatepass"))
    try:
        (found,) = read_rows(path)
    except InputError as error:
        assert re.search(r"own\.jsonl[,:] (row|line) 1", str(error))
        return
    assert found.worked.question == values["question"].strip()
    if isinstance(answer := values["answer"], str):
        if not re.search("####|<<", answer):
            assert found.worked.answer == answer.strip()
    else:
        assert math.isclose(Fraction(found.worked.answer), answer, rel_tol=1e-14)
        assert "e" not in found.worked.answer.lower()
    assert natural_order(found.worked.template)


def _literal(value: Any) -> str:
    return format(Decimal(value), "f") if isinstance(value, int) else json.dumps(value)


def test_names_of_templates_sort_by_their_numbers_however_long():
    names = ["t10", "t2", "t02b", "9" * 5000, "10"]
    assert sorted(names, key=natural_order) == ["10", "9" * 5000, "t2", "t02b", "t10"]


def test_an_example_without_text_is_named(tmp_path):
    for record in ({"question": "a"}, {"question": "a", "solution": 5}, {"question": ["a"], "solution": "5"}):
        path = write(tmp_path / "shots.jsonl", [record])
        with pytest.raises(InputError, match=r"shots\.jsonl, line 1"):
            load_examples(few_shot(path, 1))


# ---- checking ----


def contradicting(count: int, *wrong: int) -> list[dict[str, Any]]:
    return [row(f"q{i}?", str(i), solution=f"#### {i + (i in wrong)}") for i in range(count)]


def test_the_check_reads_every_row_and_names_those_that_contradict_themselves(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", contradicting(400, *range(100, 400, 30)))
    assert cli.main(["problems", str(path), "--check", "-n", "2"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL all: 400 distinct; ")
    assert "own.jsonl, row 101: the solution of 'q100?' ends with '101', not '100'" in out
    assert "and 7 more, 10 in all" in out
    assert len(out) < 1000
    assert cli.main(["problems", str(write(path, contradicting(400))), "--check"]) == 0
    assert capsys.readouterr().out.startswith("ok   all: 400 distinct\n")


def test_the_check_grades_as_a_run_does(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", [row("a?", "1/2", solution="#### 0.5"), row("b?", "red", solution="#### red")])
    assert cli.main(["problems", str(path), "--check"]) == 1
    assert "row 2: the grader number cannot read the answer 'red' of 'b?'" in capsys.readouterr().out
    assert cli.main(["problems", str(path), "--check", "--grader", "exact"]) == 1
    assert "row 1: the solution of 'a?' ends with '0.5', not '1/2'" in capsys.readouterr().out
    refuse(["problems", str(path), "--check", "--grader", "nobody"], capsys, "unknown grader 'nobody'")


def test_the_check_of_a_file_of_many_templates_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", [r | {"template": i} for i, r in enumerate(contradicting(500, 7))])
    assert cli.main(["problems", str(path), "--check"]) == 1
    line, *_ = capsys.readouterr().out.splitlines()
    assert re.search(r"FAIL .*own\.jsonl \(500 templates\): 500 distinct; .*row 8: ", line)


def test_a_file_is_not_written_over_by_its_own_problems(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", [row("a", note="mine")])
    refuse(
        ["problems", str(path), "--out", str(path)], capsys, "is the source itself, whose other columns would be lost"
    )
    assert "mine" in path.read_text()


def test_all_rows_of_a_file_are_written_and_of_a_drawn_source_fifty(tmp_path, capsys):
    assert cli.main(["problems", str(write(tmp_path / "own.jsonl", some("a", 70)))]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 70
    assert cli.main(["problems", "reasoning-gym:gcd"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 50


def test_a_check_says_what_it_could_not_look_at(tmp_path, capsys):
    write(tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": n} for n in range(3)])
    assert cli.main(["problems", str(tmp_path / "own.jsonl"), "--check"]) == 0
    assert "3 of them have no worked solution" in capsys.readouterr().out
    write(tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": "forty-two"} for n in range(3)])
    assert cli.main(["problems", str(tmp_path / "own.jsonl"), "--check"]) == 1
    assert "the grader number cannot read the answer 'forty-two'" in capsys.readouterr().out


# ---- columns of one's own ----

OWN = [{"prompt": f"a {i}?", "target": i, "kind": "k", "fold": "test" if i % 2 else "train"} for i in range(20)]
NAMES = {"question": "prompt", "answer": "target", "template": "kind", "split": "fold"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_are_read_under_their_own_names_everywhere(tmp_path, suffix, capsys):
    path = write(tmp_path / f"own{suffix}", OWN)
    problems = load_problems(path, columns=NAMES)
    assert {p.template for p in problems} == {"k"}
    assert {p.split for p in problems if int(p.answer) % 2} == {"test"}
    assert load_problems(OWN, columns=NAMES) == problems
    config = load_config(
        None,
        (
            f"problems.source={path}",
            'problems.columns={question = "prompt", answer = "target", template = "kind"}',
            "problems.columns.split=fold",
        ),
    )
    assert len(chosen_source(config.problems).rows) == 20
    assert parse_config(load_toml(dump_toml(config)), "test") == config
    pairs = [f"{key}={column}" for key, column in NAMES.items()]
    assert cli.main(["problems", str(path), "--columns", *pairs[:2], "--columns", *pairs[2:], "--check"]) == 0
    assert capsys.readouterr().out.startswith("ok   k: 20 distinct\n")


def load_toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", OWN)
    with pytest.raises(
        InputError, match=r"row 1 has no question; it has prompt, target, kind, fold: .*problems\.columns"
    ):
        load_problems(path)
    with pytest.raises(InputError, match="row 1 has no task; it has prompt, target, kind, fold"):
        load_problems(path, columns={**NAMES, "solution": "task"})
    with pytest.raises(InputError, match="unknown key gold; known there: question, answer, solution, template, split"):
        load_problems(path, columns={"gold": "target"})
    for columns in ({"question": "kind", "answer": "kind"}, {1: "kind"}):
        with pytest.raises(InputError, match=r"'kind' cannot be both question and answer|unknown key 1"):
            load_problems(path, columns=columns)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"problems\.columns names columns of rows, and gsm-symbolic has none"):
        load_problems("gsm-symbolic", columns=NAMES)
    with pytest.raises(InputError, match=r"unknown key problems\.columns\.gold; known there: question"):
        load_config(None, ("problems.columns.gold=target",))
    refuse(["problems", str(path), "--columns", "prompt"], capsys, "--columns 'prompt' is not of the form KEY=COLUMN")
    refuse(["problems", str(path), "--columns", "gold=target"], capsys, "unknown key gold")
    refuse(["problems", str(path), "--columns", "split=a", "split=b"], capsys, "names a key twice")
    templates = put(tmp_path / "nuts.json", json.dumps(TEMPLATE))
    refuse(["problems", str(templates), "--check", "--columns", "answer=target"], capsys, "names columns of rows")
