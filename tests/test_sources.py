"""Where problems come from, and how they are split."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cca import cli
from cca.errors import InputError
from cca.problems import files
from cca.problems.files import read_rows
from cca.problems.gsm_symbolic import SMALL_TEMPLATES, Worked
from cca.problems.sources import Source, open_source
from cca.problems.splits import ProblemOptions, build_problems, check_splits
from cca.records import Problem, Split

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_test.jsonl"
OPTIONS = ProblemOptions(train=4, validation=2, test=6, held_out=0.25)


def rows(count: int, **more) -> list[dict]:
    return [
        {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}", **more} for i in range(count)
    ]


def write(path: Path, records: list[dict]) -> Path:
    """In the format that the name's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(records[0]))
            table.writeheader()
            table.writerows(records)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_file_format_gives_the_same_problems(tmp_path, suffix):
    path = write(
        tmp_path / f"own{suffix}", rows(3, template="plus") + [{**rows(1)[0], "question": "Other?", "template": "t2"}]
    )
    source = open_source(str(path))
    assert source.templates == ("plus", "t2")
    found = sorted(source.instances("plus", 0), key=lambda w: w.question)
    assert found[1] == Worked("plus", "What is 1 + 1?", "2", "1 + 1 = 2\n#### 2")
    assert list(source.instances("plus", 0)) == list(source.instances("plus", 0))
    orders = {tuple(w.question for w in source.instances("plus", seed)) for seed in range(20)}
    assert len(orders) > 1


def test_a_plain_answer_has_itself_as_solution_and_calculator_notes_are_removed(tmp_path):
    path = write(tmp_path / "own.jsonl", [
        {"question": "a", "answer": " 7 "},
        {"question": "b", "answer": "It is <<3+4=7>>7.\n#### 7"},
        {"question": "c", "answer": "7", "solution": "3 + 4 = 7"},
    ])  # fmt: skip
    assert [row.worked.solution for row in read_rows(path)] == ["#### 7", "It is 7.\n#### 7", "3 + 4 = 7"]
    assert {row.worked.answer for row in read_rows(path)} == {"7"}


def test_a_question_that_stands_twice_is_kept_once(tmp_path):
    path = write(
        tmp_path / "own.jsonl", [{"question": "How many?", "answer": "1"}, {"question": " how  MANY?", "answer": "1"}]
    )
    assert len(read_rows(path)) == 1


def test_a_copy_of_a_hub_dataset_is_split_by_its_file_names(tmp_path):
    copy = tmp_path / "gsm8k" / "main"
    write(copy / "train-00000-of-00001.jsonl", rows(40))
    write(copy / "test-00000-of-00001.jsonl", [{**r, "question": "Test: " + r["question"]} for r in rows(20)])
    problems = build_problems(open_source(str(copy)), OPTIONS, seed=0)
    assert Counter(p.split for p in problems) == {"train": 4, "validation": 2, "test": 6}
    assert all(p.question.startswith("Test: ") == (p.split == "test") for p in problems)


def test_gsm_symbolic_of_the_hub_is_split_by_instance_though_its_file_is_called_test(tmp_path):
    copy = tmp_path / "main"
    write(copy / "test.jsonl", [
        {"id": t, "instance": i, "question": f"{t}: {i}?", "answer": f"#### {i}", "original_id": 9}
        for t in range(4) for i in range(12)
    ])  # fmt: skip
    source = open_source(str(copy))
    assert source.templates == ("0", "1", "2", "3")
    problems = build_problems(source, OPTIONS, seed=0)
    assert {p.split for p in problems} == {"train", "validation", "test", "held_out"}
    assert len({p.template for p in problems if p.split == "held_out"}) == 1


def test_a_hub_name_is_read_from_its_config_s_folder(tmp_path, monkeypatch):
    import huggingface_hub

    write(tmp_path / "p1" / "test.jsonl", rows(3))
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert len(list(open_source("apple/GSM-Symbolic:p1").instances("all", 0))) == 3
    assert asked == {"name": "apple/GSM-Symbolic", "repo_type": "dataset", "allow_patterns": ["p1/*"]}
    with pytest.raises(InputError, match="no folder p2; name another"):
        open_source("apple/GSM-Symbolic:p2")


def test_a_hub_dataset_without_network_names_the_way_to_a_local_copy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hf download openai/gsm8k --repo-type dataset"):
        open_source("openai/gsm8k")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no problems"),
        ('{"question": "a"}\n', "row 1 has no answer; it has question"),
        ('{"question": "a", "answer": "1"}\n{"question": " ", "answer": "1"}\n', "row 2 has no question"),
        ('{"question": "a", "answer": "work\\n#### "}\n', "row 1 has nothing after ####"),
        ("{nonsense\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is not an object"),
        ('{"question": "a", "answer": "1", "split": "exam"}\n', "row 1: unknown split 'exam'"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_number(tmp_path, content, said):
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        open_source(str(path))
    assert "own.jsonl" in str(error.value)


def test_bytes_that_are_no_text_and_no_parquet_are_refused(tmp_path):
    for name in ("own.csv", "own.jsonl", "own.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00\xd8 nonsense")
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            open_source(str(tmp_path / name))


def test_an_unknown_source_says_what_there_is(tmp_path):
    for name in ("nowhere", str(tmp_path / "missing.jsonl"), "reasoning-gym:singing"):
        with pytest.raises(InputError, match=r"no problems at|has no skill"):
            open_source(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
        open_source(str(tmp_path / "empty"))


def test_a_bound_on_numbers_is_refused_where_nothing_keeps_it(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(3))
    with pytest.raises(InputError, match="max_number bounds the numbers of gsm-symbolic"):
        open_source(str(path), max_number=60)


def test_whole_templates_are_split_by_template_and_every_test_template_is_new():
    options = OPTIONS.changed({"split_by": "template"})
    problems = build_problems(open_source("gsm-symbolic", SMALL_TEMPLATES[:16], 60), options, seed=0)
    templates: dict[str, set[str]] = {}
    for problem in problems:
        templates.setdefault(problem.split, set()).add(problem.template)
    assert set(templates) == {"train", "validation", "test"}
    assert len(set.union(*templates.values())) == sum(len(t) for t in templates.values()) == 16
    assert [len(templates[s]) for s in ("train", "validation", "test")] == [5, 3, 8]


def test_splits_of_the_source_itself_are_kept_and_a_missing_one_is_named(tmp_path):
    records = [{**r, "split": "train" if i < 8 else "test"} for i, r in enumerate(rows(14))]
    source = open_source(str(write(tmp_path / "own.jsonl", records)))
    problems = build_problems(source, OPTIONS, seed=0)
    assert [sum(p.split == s for p in problems) for s in ("train", "validation", "test")] == [4, 2, 6]
    assert all((int(p.question.split()[2]) >= 8) == (p.split == "test") for p in problems)
    alone = open_source(str(write(tmp_path / "alone.jsonl", rows(9, split="train"))))
    with pytest.raises(InputError, match=r"has no test split; set problems.split_by to instance or template"):
        build_problems(alone, OPTIONS, seed=0)


def test_problems_that_are_in_two_splits_are_refused():
    def problem(name: str, template: str, split: Split, question: str) -> Problem:
        return Problem(name, template, 0, split, question, "1", "#### 1")

    one = problem("a-0", "a", "train", "How many?")
    with pytest.raises(InputError, match=r"a-1 \(test\) asks what a-0 \(train\) asks"):
        check_splits([one, problem("a-1", "a", "test", "how many? ")], whole_templates=False)
    with pytest.raises(InputError, match="template a is in held_out, train"):
        check_splits([one, problem("a-1", "a", "held_out", "b")], whole_templates=False)
    with pytest.raises(InputError, match="template a is in test, train"):
        check_splits([one, problem("a-1", "a", "test", "b")], whole_templates=True)
    with pytest.raises(InputError, match="two problems are called a-0"):
        check_splits([one, problem("a-0", "a", "train", "b")], whole_templates=False)
    check_splits([one, problem("a-1", "a", "test", "b")], whole_templates=False)


def test_a_run_of_one_s_own_file_needs_no_templates(tmp_path):
    source = open_source(str(write(tmp_path / "own.csv", rows(30))))
    problems = build_problems(source, OPTIONS, seed=0)
    assert [sum(p.split == s for p in problems) for s in ("train", "validation", "test")] == [4, 2, 6]


def test_the_command_writes_problems_that_it_can_read_again(tmp_path, capsys):
    out = tmp_path / "problems.jsonl"
    assert cli.main(["problems", "gsm-symbolic", "-n", "2", "--seed", "3", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 2 * 92
    assert set(records[0]) == {"question", "answer", "solution", "template", "instance"}
    again = open_source(str(out))
    assert len(again.templates) == 92
    capsys.readouterr()
    assert cli.main(["problems", str(out), "-n", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 92
    assert cli.main(["problems", "reasoning-gym:gcd", "-n", "3"]) == 0
    assert [json.loads(line)["template"] for line in capsys.readouterr().out.splitlines()] == ["gcd"] * 3


def test_the_check_fails_for_a_template_whose_solution_ends_with_another_answer(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", rows(4))
    assert cli.main(["problems", str(good), "--check"]) == 0
    assert capsys.readouterr().out.startswith("ok   all: 4 distinct")
    bad = write(tmp_path / "bad.jsonl", [*rows(2), {"question": "a", "answer": "5", "solution": "It is 4.\n#### 4"}])
    assert cli.main(["problems", str(bad), "--check"]) == 1
    assert "ends with '4', not '5'" in capsys.readouterr().out


def test_the_check_goes_on_after_an_annotated_template_that_does_not_parse(tmp_path, capsys):
    good = {
        "question": "Ann has 3 nuts and 4 figs. How many?",
        "answer": "3 + 4 = 7\n#### 7",
        "question_annotated": "{n,Ann} has {x,3} nuts and {y,4} figs. How many?\n\n#init:\n- n = sample(names_female)\n"
        "- $x = range(2, 9)\n- $y = range(2, 9)\n\n#conditions:\n- x != y\n\n#answer: x + y",
        "answer_annotated": "{x} + {y} = <<{x}+{y}={x+y}>>{x+y}\n#### {x+y}",
    }
    bad = {**good, "question_annotated": good["question_annotated"].replace("range(2, 9)", "open(2)")}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    (tmp_path / "good.json").write_text(json.dumps(good))
    assert cli.main(["problems", str(tmp_path), "--check", "-n", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL bad: 0 distinct; bad.json, #init line 2")
    assert lines[1].startswith("ok   good: 5 distinct of ")
    assert cli.main(["problems", str(tmp_path), "-n", "5"]) == 1, "the others are written"
    assert cli.main(["problems", str(tmp_path / "good.json"), "-n", "5"]) == 0


def test_bad_arguments_of_the_command_are_refused(tmp_path, capsys):
    assert cli.main(["problems", "gsm-symbolic", "-n", "0"]) == 2
    assert cli.main(["problems", "gsm-symbolic", "--out", str(tmp_path / "no" / "file")]) == 2
    assert cli.main(["problems", "nowhere"]) == 2
    assert "no problems at 'nowhere'" in capsys.readouterr().err


def test_gsm8k_reads_with_its_answers():
    if not GSM8K.exists():
        pytest.skip("the GSM8K test split is not here")
    source = open_source(str(GSM8K))
    items = list(source.instances("all", 0))
    assert len(items) == 1319
    assert all("<<" not in item.solution and item.solution.endswith(f"#### {item.answer}") for item in items)


def test_a_source_s_order_does_not_depend_on_where_its_file_lies(tmp_path):
    first = open_source(str(write(tmp_path / "a" / "own.jsonl", rows(9))))
    second = open_source(str(write(tmp_path / "b" / "other.jsonl", rows(9))))
    assert isinstance(first, Source)
    assert list(first.instances("all", 1)) == list(second.instances("all", 1))


def test_a_run_whose_problems_are_drawn_goes_on_without_their_source(tmp_path, monkeypatch):
    from cca.run.config import load_config
    from cca.run.run import Run

    path = write(tmp_path / "own.jsonl", rows(30))
    config = load_config(None, (f"problems.source={path}",))
    Run.start(tmp_path / "run", config)
    (tmp_path / "run" / "problems.jsonl").write_text("")
    path.unlink()
    Run.resume(tmp_path / "run")
    with pytest.raises(InputError, match="no problems at"):
        Run.start(tmp_path / "other", config)
