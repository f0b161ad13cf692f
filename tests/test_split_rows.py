"""Which rows are trained and tested on: what a file says of it, what stands twice, and what the prompt shows."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rows_made import put, row, some
from test_sources import OPTIONS, rows, write

from cca.errors import InputError
from cca.problems.files import read_rows, rows_in_memory, splits_in
from cca.problems.load import load_problems
from cca.problems.sources import open_source, source_of_rows
from cca.problems.splits import build_problems, chosen_source
from cca.run.config import parse_config
from cca.run.problems import draw_problems, target_source
from cca.run.stages import trace

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


def test_a_file_without_an_ending_whose_name_says_a_split_is_not_passed_over(tmp_path):
    write(tmp_path / "gsm8k-test.jsonl", some("a"))
    (tmp_path / "gsm8k-train").write_text("{}")
    with pytest.raises(InputError, match="gsm8k-train may hold problems"):
        open_source(tmp_path)
    (tmp_path / "gsm8k-train").rename(tmp_path / "LICENSE")
    assert open_source(tmp_path).is_rows


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
