"""A file of rows is read as somebody wrote it, or refused by its place and with the way out."""

import codecs
import gzip
import json
import re
from collections import Counter

import pytest
from conftest import few_shot
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_made import put, row, some
from test_sources import write

from cca import cli
from cca.errors import InputError
from cca.io import user_text
from cca.problems.examples import load_examples
from cca.problems.files import read_rows
from cca.problems.load import load_problems
from cca.problems.prompts import Example
from cca.problems.sources import open_source
from cca.run.config import load_config

ASKED = "Ana has 2 plums, Ben has 3 more. How many has Ben?"
TEMPLATE = {
    "question": "Ann has 3 nuts. How many?",
    "answer": "#### 3",
    "question_annotated": "Ann has {x,3} nuts. How many?\n\n#init:\n- $x = range(2, 9)\n\n#answer: x",
    "answer_annotated": "She has {x}.\n#### {x}",
}


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


def test_a_table_of_semicolons_is_named_as_that_with_quoted_cells_too(tmp_path):
    with pytest.raises(InputError, match="commas in place of semicolons"):
        open_source(put(tmp_path / "own.csv", '"question";"answer"\n"How many, 2?";"2"\n'))


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
    assert load_examples(few_shot(put(tmp_path / "shots.jsonl", raw), 1)) == (Example(question, record["solution"]),)
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
    assert load_examples(few_shot(put(tmp_path / "shots.jsonl", MARKED + line), 1)) == (Example("a", "#### 1"),)
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
        load_examples(few_shot(put(tmp_path / "shots.jsonl", content), 1))
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


def test_a_small_parquet_file_that_unpacks_to_a_great_deal_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    import tracemalloc

    import pyarrow as pa
    from pyarrow import parquet

    rows, long = 20_000, "x" * 100_000
    once = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([long]))
    parquet.write_table(pa.table({"question": once, "answer": pa.array([1] * rows)}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    monkeypatch.setattr("cca.problems.formats._UNPACKED", 50 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"unpacks to more than .* leave out columns"):
            read_rows(tmp_path / "bomb.parquet")
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
