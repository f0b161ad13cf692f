"""Problems for one's own script: from names, files and rows in memory, each with its split."""

import subprocess
import sys
from collections import Counter

import pytest
from test_sources import rows, write

from cca.errors import InputError
from cca.problems.load import PAPER_SHARES, load_problems, proportional


def test_drawn_problems_are_split_by_the_shares_of_the_paper():
    problems = load_problems("gsm-symbolic", templates=(16, 43), n=50, max_number=60)
    for template in ("16", "43"):
        splits = Counter(p.split for p in problems if p.template == template)
        assert splits == {"train": 26, "validation": 4, "test": 20}
    assert problems == load_problems("gsm-symbolic", templates=(16, 43), n=50, max_number=60)
    assert problems != load_problems("gsm-symbolic", templates=(16, 43), n=50, max_number=60, seed=1)


def test_a_share_of_the_templates_is_held_out_with_all_its_instances():
    problems = load_problems("gsm-symbolic", templates=(16, 43, 6, 72), n=5, max_number=60, held_out=0.25)
    (kept_out,) = {p.template for p in problems if p.split == "held_out"}
    assert {p.split for p in problems if p.template == kept_out} == {"held_out"}
    assert Counter(p.template for p in problems) == {"16": 5, "43": 5, "6": 5, "72": 5}


def test_all_rows_of_a_file_are_taken_however_many_are_asked_for(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(100))
    problems = load_problems(path, n=1)
    assert Counter(p.split for p in problems) == {"train": 52, "validation": 8, "test": 40}
    assert load_problems(str(path)) == problems


def test_rows_in_memory_are_the_problems_of_the_same_rows_in_a_file(tmp_path):
    mixed = [*rows(30, template="a"), *({**row, "question": f"So, {row['question']}"} for row in rows(9, template="b"))]
    found = load_problems(iter(mixed), seed=3)
    assert found == load_problems(write(tmp_path / "own.jsonl", mixed), seed=3)
    assert {p.template for p in found} == {"a", "b"}
    assert {p.template for p in load_problems(mixed, templates=["b"])} == {"b"}
    with pytest.raises(InputError, match="the list of rows has no template c; it has a, b"):
        load_problems(mixed, templates=["c"])


def test_splits_of_the_source_are_kept_and_validation_is_taken_from_training_where_there_is_none():
    marked = [{**row, "split": "test" if i % 3 == 0 else "train"} for i, row in enumerate(rows(45))]
    problems = load_problems(marked)
    assert Counter(p.split for p in problems) == {"train": 26, "validation": 4, "test": 15}
    assert all((int(p.question.split()[2]) % 3 == 0) == (p.split == "test") for p in problems)
    whole = load_problems([*marked, {"question": "And?", "answer": "1", "split": "validation"}])
    assert Counter(p.split for p in whole) == {"train": 30, "validation": 1, "test": 15}
    assert {p.split for p in load_problems(rows(4, split="test"))} == {"test"}
    with pytest.raises(InputError, match=r"says which problems are for what; leave out held_out=0\.5"):
        load_problems(marked, held_out=0.5)


def test_a_folder_with_nothing_but_a_test_file_is_split_by_instance(tmp_path):
    """As GSM-Symbolic is on the hub."""
    write(tmp_path / "copy" / "test.jsonl", rows(50))
    assert Counter(p.split for p in load_problems(tmp_path / "copy")) == {"train": 26, "validation": 4, "test": 20}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([*rows(3), {"question": "Why?"}], "row 4 has no answer; it has question"),
        ([*rows(1), "What is 2?"], "row 2 is no mapping with question and answer but of type str"),
        (rows(2, split="exam"), "row 1: unknown split 'exam'"),
        ([], "what was given holds no problems"),
        (rows(1)[0], "a list of rows, not of type dict"),
        (7, "a list of rows, not of type int"),
        (rows(2), "template all has only 2 instances, too few for train, validation, test"),
    ],
)
def test_rows_that_are_no_problems_are_named(given, said):
    with pytest.raises(InputError, match=said):
        load_problems(given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"n": 0}, "n=0 asks"), ({"held_out": 1.0}, "held_out=1.0 is no share"), ({"max_number": 9}, "max_number bounds")],
)
def test_arguments_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        load_problems(rows(9), **settings)


@pytest.mark.parametrize("count", [3, 4, 7, 25, 50, 101])
def test_every_instance_has_a_split_and_every_split_an_instance(count):
    plan = proportional(PAPER_SHARES, count, "a")
    assert sum(plan.values()) == count
    assert min(plan.values()) >= 1
    assert all(abs(plan[split] - count * share / 100) < 1 for split, share in PAPER_SHARES.items())


def test_an_unknown_template_or_source_is_refused_as_in_a_run():
    with pytest.raises(InputError, match="has no template 1000"):
        load_problems("gsm-symbolic", templates=(1000,))
    with pytest.raises(InputError, match="no problems at 'nowhere'"):
        load_problems("nowhere")


def test_problems_and_their_options_load_neither_torch_nor_transformers():
    code = "import sys, cca; cca.load_problems([{'question': str(i), 'answer': str(i)} for i in range(9)]); "
    code += "import cca.problems.prompts, cca.problems.splits, cca.problems.listing; "
    code += "assert not {'torch', 'transformers', 'scipy', 'reasoning_gym'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
