"""Data means what it says: each row that is read is the problem that somebody wrote, or it is refused by its place."""

import codecs
import datetime
import gzip
import json
import math
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_run import refuse
from test_sources import OPTIONS, rows, write

from cca import cli
from cca.errors import InputError
from cca.io import user_text
from cca.problems.examples import load_examples
from cca.problems.files import natural_order, read_rows, rows_in_memory, splits_in
from cca.problems.load import load_problems
from cca.problems.prompts import Example
from cca.problems.sources import open_source, source_of_rows
from cca.problems.splits import build_problems, chosen_source
from cca.run.config import dump_toml, load_config, parse_config
from cca.run.problems import draw_problems, target_source
from cca.run.stages import trace

ASKED = "Ana has 2 plums, Ben has 3 more. How many has Ben?"
TEMPLATE = {
    "question": "Ann has 3 nuts. How many?",
    "answer": "#### 3",
    "question_annotated": "Ann has {x,3} nuts. How many?\n\n#init:\n- $x = range(2, 9)\n\n#answer: x",
    "answer_annotated": "She has {x}.\n#### {x}",
}


def row(question: str, answer: Any = "1", **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


def some(word: str, count: int = 20) -> list[dict[str, Any]]:
    """Rows whose questions begin with a word."""
    return [row(f"{word} {i}?", str(i)) for i in range(count)]


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- splits ----


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train training Train.csv TRAIN gsm8k_train.jsonl train-00000-of-00001 gsmTrain trainset trains trn", "train"),
        ("val valid validate validation dev development eval evaluation VAL my.dev.jsonl 2val devset", "validation"),
        ("test testing Test my-test-set.jsonl gsm8kTest test2 TestData HTMLTest data/test/0 tests tst", "test"),
        ("latest contest trainer devices testament valuable all questions dataset retraining préval evaluator", None),
    ],
)  # fmt: skip
def test_a_split_is_a_whole_word_of_a_name(names, split):
    for name in names.split():
        assert splits_in(name) == ([split] if split else []), name


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.jsonl", "val.jsonl", "test.jsonl"),
        ("gsm8k_train.jsonl", "gsm8k_dev.jsonl", "gsm8k_test.jsonl"),
        ("Train.csv", "Eval.csv", "Test.csv"),
        ("x-train-00000-of-00001.parquet", "x-validation-00000-of-00001.parquet", "x-test-00000-of-00001.parquet"),
        ("train/0000.jsonl", "validation/0000.jsonl", "test/0000.jsonl"),
        ("train/a/1.jsonl", "val/a/1.jsonl", "test/a/1.jsonl"),
    ],
)
def test_problems_of_a_folder_stay_in_the_split_that_their_file_says(tmp_path, train, validation, test):
    for name, word in ((train, "train"), (validation, "validation"), (test, "test")):
        write(tmp_path / "own" / name, some(word))
    for found in (load_problems(tmp_path / "own"), build_problems(open_source(tmp_path / "own"), OPTIONS, seed=0)):
        assert {p.split for p in found} == {"train", "validation", "test"}
        assert all(p.question.startswith(p.split) for p in found)


def test_a_file_that_is_named_alone_has_no_split(tmp_path):
    path = write(tmp_path / "own_test.jsonl", some("a", 50))
    assert Counter(p.split for p in load_problems(path)) == {"train": 26, "validation": 4, "test": 20}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.jsonl": {}, "heldout.jsonl": {}}, "heldout.jsonl does not say which split it is, though train.jsonl"),
        ({"a.jsonl": {"split": "test"}, "b.jsonl": {}}, "b.jsonl does not say which split it is, though a.jsonl does"),
        ({"train.jsonl": {}, "train_test.jsonl": {}}, "train_test.jsonl says train and test; rename it"),
        ({"train/test.jsonl": {}}, "test.jsonl says train and test; rename it"),
        ({"train.jsonl": {}, "test.jsonl": None}, "test.jsonl holds no problems, though others"),
        ({"test.jsonl": {}, "val.jsonl": {}}, "has no train split; set problems.split_by to instance"),
    ],
)
def test_a_folder_that_says_only_half_of_its_splits_is_refused_by_name(tmp_path, files, said):
    for name, more in files.items():
        put(tmp_path / name, "" if more is None else "".join(json.dumps(r | more) + "\n" for r in some(name, 5)))
    with pytest.raises(InputError, match=said):
        build_problems(open_source(tmp_path), OPTIONS, seed=0)


@pytest.mark.parametrize(
    "name", ["test.jsonl.gz", "test.tsv", "test.arrow", "test.ndjson", "test.jsonl.zst", "test.XLSX"]
)
def test_a_file_of_rows_in_a_format_that_is_not_read_is_not_passed_over(tmp_path, name):
    write(tmp_path / "train.jsonl", some("a"))
    put(tmp_path / name, "")
    with pytest.raises(InputError, match=f"{name} may hold problems but is none of"):
        read_rows(tmp_path)


def test_a_row_s_own_split_counts_before_its_file_s_and_is_known_in_any_case(tmp_path):
    write(tmp_path / "train_test.jsonl", [row("a", split=" Dev "), row("b", split="TEST"), row("c", split="training")])
    assert [r.split for r in read_rows(tmp_path)] == ["validation", "test", "train"]


def test_rows_without_a_split_beside_test_rows_are_for_training_and_never_the_other_way(tmp_path):
    path = write(tmp_path / "own.jsonl", [*some("a", 30), *(r | {"split": "test"} for r in some("test", 20))])
    for problems in (load_problems(path), build_problems(open_source(path), OPTIONS, seed=0)):
        assert all(p.question.startswith("test") == (p.split == "test") for p in problems)


def test_the_splits_of_templates_that_are_not_chosen_do_not_count():
    marked = [*rows(9, template="a", split="train"), row("Other?", template="b", split="test")]
    assert {p.split for p in load_problems(marked, templates=["a"])} == {"train", "validation"}
    with pytest.raises(InputError, match="has no test split"):
        build_problems(source_of_rows("own", rows_in_memory(marked)).only(["a"]), OPTIONS, seed=0)


def test_folders_and_hidden_files_are_no_files_of_rows(tmp_path):
    write(tmp_path / "train.jsonl", some("a"))
    write(tmp_path / "old.jsonl" / "own.csv", some("b"))
    put(tmp_path / "._train.jsonl", b"\0\5")
    put(tmp_path / "README.md", "# test")
    assert len(read_rows(tmp_path)) == 20
    assert len(read_rows(tmp_path / "old.jsonl")) == 20
    with pytest.raises(InputError, match=r"holds no \.jsonl.*such as .*main"):
        write(tmp_path / "copy" / "main" / "x.jsonl", some("a"))
        read_rows(tmp_path / "copy")


# ---- tables ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"question,answer\n{ASKED},5\n", r"own.csv, row 1 has 3 cells, the header 2; quote cells that hold commas"),
        ("question,answer\nWhy?\n", "row 1 has 1 cells, the header 2"),
        ('question,answer\n"a, b",5\nc, d,6\n', "row 2 has 3 cells"),
        ("question,answer,answer\na,5,6\n", "two columns are called 'answer'"),
        ("question,answer,\na,5,6\n", "column 3 has no name"),
        (",question,answer\n0,a,5\n", r"column 1 has no name; .*index=False"),
        ("question;answer\nWhy?;5\n", "its header is one cell, 'question;answer'; save it with commas in place of"),
        ("question\tanswer\nWhy?\t5\n", "with commas in place of tabs"),
        ("Question,Answer\na,5\n", r"row 1 has no question; it has Question, Answer: .*problems\.columns"),
        ('question,answer\n"a,5\n', "line 2 .*close each quote"),
        ("question,answer\na,5\nquestion,answer\nb,6\n", "row 2 is the header again"),
        ("question,answer\na,5\n\ufeff\"question\",answer\nb,6\n", "row 2 is the header again"),
        ("question,answer\n", "holds no problems"),
        ("question,answer\na\0,5\n", "zero bytes"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_its_header_is_refused(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as error:
        read_rows(put(tmp_path / "own.csv", text))
    assert "own.csv" in str(error.value)


CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)


@settings(max_examples=60)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_table_gives_back_each_cell_or_names_the_row(tmp_path_factory, cells, ending, marked):
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = ["question,answer", *(",".join(map(quoted, pair)) for pair in cells)]
    path = put(tmp_path_factory.mktemp("csv") / "own.csv", "\ufeff" * marked + ending.join(lines))
    try:
        found = read_rows(path)
    except InputError as error:
        assert re.search(r"own\.csv, row \d", str(error))
        return
    given = {question.strip(): answer for question, answer in cells}
    for found_row in found:
        assert found_row.worked.question in given
        if not re.search("####|<<", answer := given[found_row.worked.question]):
            assert found_row.worked.answer == answer.strip()


NEARLY = st.lists(
    st.sampled_from([*'",;{}[]:\n\r \ufeff\u2028\0\t\\', "question", "answer", '{"question": "a", "answer": 1}'])
)


@settings(max_examples=200)
@given(st.binary(max_size=40) | NEARLY.map("".join).map(str.encode), st.sampled_from([".jsonl", ".csv", ".json"]))
def test_any_file_at_all_is_read_or_refused_by_name(tmp_path_factory, content, suffix):
    path = put(tmp_path_factory.mktemp("any") / f"own{suffix}", content)
    try:
        found = read_rows(path)
    except InputError as error:
        assert path.name in str(error)
        return
    assert all(f.worked.question.encode() in content for f in found)


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


# ---- text that somebody wrote ----

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"


def test_a_separator_inside_a_text_ends_no_line(tmp_path, capsys):
    question = SEPARATORS.join("abcdefghi")
    record = {"question": question, "answer": f"x{SEPARATORS}5", "solution": f"y{SEPARATORS}z"}
    raw = json.dumps(record, ensure_ascii=False)
    for control in "\x0b\x0c\x1c\x1d\x1e":
        raw = raw.replace(control, f"\\u{ord(control):04x}")
    path = put(tmp_path / "own.jsonl", raw + "\r\n\r\n" + json.dumps(row("b")))
    found = read_rows(path)
    assert (found[0].worked.question, found[0].worked.answer) == (question, record["answer"])
    assert found[0].worked.solution == record["solution"]
    assert load_examples(str(put(tmp_path / "shots.jsonl", raw)), 1) == (Example(question, record["solution"]),)
    table = put(tmp_path / "own.csv", f'question,answer\n"{question}","{record["answer"]}"\n{question},7')
    with pytest.raises(InputError, match=r"row 2 asks what .*row 1 asks, but their answers are"):
        read_rows(table)
    out = tmp_path / "again.jsonl"
    assert cli.main(["problems", str(path), "--out", str(out)]) == 0
    assert {r.worked for r in read_rows(out)} == {r.worked for r in found}


MARKED = codecs.BOM_UTF8


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    line = json.dumps(row("a", solution="#### 1")).encode()
    assert len(read_rows(put(tmp_path / "own.jsonl", MARKED + line + b"\n" + MARKED + line))) == 1
    assert len(read_rows(put(tmp_path / "own.csv", MARKED + b"question,answer\na,1\n"))) == 1
    assert len(read_rows(put(tmp_path / "own.json", MARKED + b"[" + line + b"]"))) == 1
    assert load_examples(str(put(tmp_path / "shots.jsonl", MARKED + line)), 1) == (Example("a", "#### 1"),)
    assert load_config(put(tmp_path / "c.toml", MARKED + b"seed = 7\r\n")).seed == 7
    assert user_text(put(tmp_path / "t.txt", MARKED + b"a\r\nb"), "", "") == "a\nb"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "question,answer\n".encode("utf-16"),
            "it is UTF-16 text; save it as UTF-8, for example with: iconv -f UTF-16 ",
        ),
        ("question,answer\n".encode("utf-32"), "it is UTF-32 text"),
        ("question,answer\n".encode("utf-16-le"), "UTF-16 without a mark"),
        ("question,answer\né,1".encode("latin-1"), "line 2 is not UTF-8 .*iconv -f WINDOWS-1252"),
        (gzip.compress(b"question", mtime=0), "compressed with gzip; unpack it"),
        (b"PAR1...", "it is Parquet; call it .parquet"),
        (b"PK\x03\x04...", "a zip archive or a workbook"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs .*git lfs pull"),
    ],
)
def test_a_file_that_is_not_utf_8_says_what_it_is_and_how_to_convert_it(tmp_path, content, said):
    for name in ("own.csv", "own.jsonl", "own.json"):
        with pytest.raises(InputError, match=f"cannot read .*{name}.*{said}"):
            read_rows(put(tmp_path / name, content))
    with pytest.raises(InputError, match=f"cannot read prompt.examples .*{said}"):
        load_examples(str(put(tmp_path / "shots.jsonl", content)), 1)
    with pytest.raises(InputError, match=f"cannot read config .*{said}"):
        load_config(put(tmp_path / "c.toml", content))


def test_a_parquet_file_that_is_none_says_what_it_is(tmp_path):
    pytest.importorskip("pyarrow")
    pointer = put(tmp_path / "own.parquet", "version https://git-lfs.github.com/spec/v1\n" * 9)
    with pytest.raises(InputError, match=r"cannot read .*own\.parquet.*git lfs pull"):
        read_rows(pointer)
    with pytest.raises(InputError, match=r"cannot read .*own\.parquet"):
        read_rows(put(pointer, ""))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{\n "question": "a",\n "answer": "1"\n}\n', "line 1 begins a JSON value of several lines"),
        (
            '[\n{"question": "a", "answer": "1"}\n]',
            r"line 1 begins a JSON value of several lines.*call a .*list.* \.json",
        ),
        ('[{"question": "a", "answer": "1"}]', r"line 1 is not an object but a list; call .* \.json"),
        ('{"question": "a", "answer": "1", "answer": "2"}', "line 1 is not JSON .'answer' stands twice"),
        ("[" * 100_000, "line 1 is not JSON .it is nested too deeply"),
        ('{"question": "a", "answer": "1"} {"question": "b", "answer": "2"}', "line 1 is not JSON"),
    ],
)
def test_json_lines_that_are_none_say_so(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        read_rows(put(tmp_path / "own.jsonl", content))


# ---- other JSON files ----


def test_json_that_describes_a_dataset_is_passed_over_and_lists_of_problems_are_read(tmp_path):
    write(tmp_path / "train.jsonl", some("train"))
    for name in ("dataset_info", "README", "dataset_dict", "state", "tables"):
        put(tmp_path / f"{name}.json", '{"features": {"question": {"dtype": "string"}}, "splits": ["train"]}')
    assert {w.question for w in open_source(tmp_path).instances("all", 0)} == {r["question"] for r in some("train")}
    put(tmp_path / "test.json", json.dumps(some("test"), indent=1))
    put(tmp_path / "labels.json", '["a", "b"]')
    assert Counter(p.split for p in load_problems(tmp_path))["test"] == 20
    assert len(read_rows(tmp_path / "test.json")) == 20
    assert open_source(tmp_path / "test.json").is_rows


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"])
def test_a_name_that_can_be_no_path_is_no_source(name):
    with pytest.raises(InputError, match="no problems at"):
        open_source(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"data": some("a")}, "own.json holds its rows under 'data'; write that list alone"),
        ({"train": some("a"), "test": some("b")}, "own.json holds its rows under 'train'"),
        (row("a"), "own.json is no list of problems; write one, or one object a line as .jsonl"),
        ([row("a"), 2], "own.json, row 2 is not an object"),
        ({"1": row("a"), "2": row("b")}, "own.json is no list of problems"),
        ({"data": {"train": some("a")}}, "own.json is no list of problems"),
        ([], "own.json holds no problems"),
    ],
)
def test_a_json_file_of_problems_in_another_shape_is_refused_alone_and_beside_others(tmp_path, content, said):
    path = put(tmp_path / "own.json", json.dumps(content))
    with pytest.raises(InputError, match=said):
        open_source(path)
    write(tmp_path / "more.jsonl", some("c"))
    with pytest.raises(InputError, match=said):
        open_source(tmp_path)


def test_json_lines_called_json_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"call a file with one object a line \.jsonl"):
        open_source(put(tmp_path / "own.json", "\n".join(map(json.dumps, some("a")))))


def test_templates_stay_templates_and_a_folder_that_mixes_is_refused(tmp_path):
    put(tmp_path / "nuts.json", json.dumps(TEMPLATE, indent=1))
    assert open_source(tmp_path).templates == ("nuts",)
    assert open_source(tmp_path / "nuts.json").templates == ("nuts",)
    write(tmp_path / "own.jsonl", some("a"))
    with pytest.raises(InputError, match=r"annotated templates \(nuts\.json\) and rows \(own\.jsonl\)"):
        open_source(tmp_path)


# ---- what stands twice ----


def test_a_question_with_the_same_answer_counts_once_as_the_grader_compares(tmp_path):
    same = [row("How many?", "5"), row(" how  MANY?", "5.0"), row("How many?", "2 + 3 = 5\n#### 5")]
    assert len(rows_in_memory(same)) == 1
    path = write(tmp_path / "own.jsonl", [row("How many?", "1/2"), row("How many?", r"$\frac{1}{2}$")])
    with pytest.raises(InputError, match=r"own\.jsonl, row 2 asks what .*own\.jsonl, row 1 asks, but their"):
        open_source(path, grader="exact")
    assert len(read_rows(path, grader="number")) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [row("a", "5"), row("b"), row("A ", "6")],
            "row 3 asks what row 1 asks, but their answers are '6' and '5'; mend",
        ),
        ([row("a", split="train"), row("a", split="test")], "row 2 asks what row 1 asks, one in test and one in train"),
        ([row("a"), row("a", split="test")], "row 2 asks what row 1 asks, one in test and one in train"),
        ([row("a"), row("b"), row("a", 2), row("b", 2)], r"row 3 asks what row 1 .*\(and so in 1 more cases\)"),
    ],
)
def test_one_question_with_two_answers_or_in_two_splits_names_both_rows(given, said):
    with pytest.raises(InputError, match=said):
        rows_in_memory(given)


def test_files_of_two_splits_that_share_a_question_are_both_named(tmp_path):
    write(tmp_path / "train.jsonl", some("a"))
    write(tmp_path / "test.csv", some("a", 1))
    with pytest.raises(
        InputError, match=r"train\.jsonl, row 1 asks what .*test\.csv, row 1 asks, one in train and one"
    ):
        read_rows(tmp_path)


# ---- what the prompt shows ----


def few_shot(folder: Path, source: Path, *shown: str) -> Any:
    shots = write(folder / "shots.jsonl", [{"question": q, "solution": "#### 1"} for q in shown])
    return parse_config(
        {
            "prompt": {"style": "few-shot", "shots": len(shown), "examples": str(shots)},
            "problems": {"source": str(source), "train": 4, "validation": 2, "test": 4, "held_out": 0.0},
            "evaluation": {"transfer": [], "retention": [], "per_skill": 2},
        },
        "test",
    )


def test_problems_that_the_prompt_shows_are_left_out_of_a_run(tmp_path):
    config = few_shot(tmp_path, write(tmp_path / "own.jsonl", some("a", 12)), "A 3?", " a  7?", "Else?")
    source = target_source(config)
    assert [Path(place).name for place in source.left_out] == ["own.jsonl, row 4", "own.jsonl, row 8"]
    problems = draw_problems(config)
    assert len(problems) == 10
    assert not {"a 3?", "a 7?"} & {p.question for p in problems}
    assert len(chosen_source(config.problems).rows) == 12
    warned: list[str] = []
    run: Any = SimpleNamespace(config=config, warn=lambda _, said: warned.append(said))
    trace._check_examples(run, source)
    assert re.search(r"shots.jsonl shows 2 of the problems \(.*row 4, .*row 8\); they are left out", warned[0])


def test_a_test_problem_that_the_prompt_shows_is_refused_and_a_training_problem_left_out(tmp_path):
    write(tmp_path / "own" / "train.jsonl", some("train", 12))
    write(tmp_path / "own" / "test.jsonl", some("test", 12))
    assert "train 3?" not in {p.question for p in draw_problems(few_shot(tmp_path, tmp_path / "own", "train 3?"))}
    with pytest.raises(InputError, match=r"shows the question of .*test\.jsonl, row 4, a test problem"):
        target_source(few_shot(tmp_path, tmp_path / "own", "Test 3?"))
    with pytest.raises(InputError, match="are all problems of"):
        target_source(few_shot(tmp_path, write(tmp_path / "one.jsonl", some("a", 1)), "a 0?"))


def test_a_skill_s_problem_that_the_prompt_shows_is_not_drawn(tmp_path):
    config = few_shot(tmp_path, write(tmp_path / "own.jsonl", some("a", 12)), "Else?")
    config = parse_config(
        config.model_dump(by_alias=True) | {"evaluation": {"retention": ["gcd"], "per_skill": 3}}, "test"
    )
    asked = next(p.question for p in draw_problems(config) if p.skill)
    shown = few_shot(tmp_path, tmp_path / "own.jsonl", asked)
    again = draw_problems(shown.model_copy(update={"evaluation": config.evaluation}))
    assert asked not in {p.question for p in again}
    assert sum(p.skill is not None for p in again) == sum(p.skill is not None for p in draw_problems(config))


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


def test_an_example_without_text_is_named(tmp_path):
    for record in ({"question": "a"}, {"question": "a", "solution": 5}, {"question": ["a"], "solution": "5"}):
        path = write(tmp_path / "shots.jsonl", [record])
        with pytest.raises(InputError, match=r"shots\.jsonl, line 1"):
            load_examples(str(path), 1)


def test_a_file_without_an_ending_whose_name_says_a_split_is_not_passed_over(tmp_path):
    write(tmp_path / "gsm8k-test.jsonl", some("a"))
    (tmp_path / "gsm8k-train").write_text("{}")
    with pytest.raises(InputError, match="gsm8k-train may hold problems"):
        open_source(tmp_path)
    (tmp_path / "gsm8k-train").rename(tmp_path / "LICENSE")
    assert open_source(tmp_path).is_rows


def test_a_table_of_semicolons_is_named_as_that_with_quoted_cells_too(tmp_path):
    with pytest.raises(InputError, match="commas in place of semicolons"):
        open_source(put(tmp_path / "own.csv", '"question";"answer"\n"How many, 2?";"2"\n'))


def test_a_check_says_what_it_could_not_look_at(tmp_path, capsys):
    write(tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": n} for n in range(3)])
    assert cli.main(["problems", str(tmp_path / "own.jsonl"), "--check"]) == 0
    assert "3 of them have no worked solution" in capsys.readouterr().out
    write(tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": "forty-two"} for n in range(3)])
    assert cli.main(["problems", str(tmp_path / "own.jsonl"), "--check"]) == 1
    assert "the grader number cannot read the answer 'forty-two'" in capsys.readouterr().out
