"""A whole run with benchmarks of the harness, plain text for drift, whole-template splits and a grader of one's own."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from cca import cli
from cca.evaluation.summarize import task_comparisons
from cca.records import TaskScore
from cca.run.stages import evaluate

SETTINGS = """
[problems]
templates = [16, 43, 26, 59, 48]
train = 3
validation = 2
test = 3
split_by = "template"
grader = "exact"
[traces]
skip_solved = 0
[circuit]
learning_rate = 0.2
epochs = 3
[update]
steps = 2
validate_every = 1
[evaluation]
transfer = []
retention = ["leg_counting"]
per_skill = 3
"""


def truths(folder: Path) -> Path:
    file = folder / "truthful_qa" / "multiple_choice" / "validation.jsonl"
    file.parent.mkdir(parents=True)
    options = {"choices": ["It is 1.", "It is 2."], "labels": [1, 0]}
    rows = [{"question": f"How many is {n}?", "mc1_targets": options, "mc2_targets": options} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def benchmark_and_text(folder: Path) -> str:
    """Settings of the evaluation that need both."""
    (folder / "tale.txt").write_text("Once there was a fog bank. It took 14 minutes to cover the city. " * 20)
    return f'tasks = ["truthfulqa_mc2"]\ntask_data = "{truths(folder / "data")}"\ntext = ["{folder / "tale.txt"}"]\n'


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_benchmarks_and_drift_on_text_are_part_of_the_summary(tmp_path, capsys):
    (tmp_path / "c.toml").write_text(SETTINGS + benchmark_and_text(tmp_path))
    out = tmp_path / "run"
    assert cli.main(["run", str(tmp_path / "c.toml"), "--out", str(out), "--quiet"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    task = summary["retention"]["truthfulqa_mc2"]
    assert task["n"] == 4
    assert 0 < task["base"] < 1
    assert task["gained"] is None, "a share of probability is no count"
    assert 0 < task["sign_flip_p"] <= 1
    assert task["drift"] is None
    assert summary["target"]["drift"]["tokens"] > summary["retention"]["leg_counting"]["drift"]["tokens"] > 0
    assert set(summary["text_drift"]) == {"tale.txt"}
    assert summary["text_drift"]["tale.txt"]["tokens"] > 100
    splits = summary["problems"]["splits"]
    assert set(splits["train"]["templates"]).isdisjoint(splits["target"]["templates"])
    assert summary["problems"]["split_by"] == "template"
    assert "truthfulqa_mc2" in capsys.readouterr().err
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "summary.json").unlink()
    assert cli.main(["evaluate", str(out), "--quiet"]) == 2, "a removed artifact is refused, not silently made again"
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*_tasks.jsonl")}.items() <= before.items()
    capsys.readouterr()
    assert cli.main(["grade", str(out), "--grader", "number", "--json"]) == 0
    graded = json.loads(capsys.readouterr().out)
    assert (graded["first"], graded["second"]) == ("exact", "number")
    assert graded["traces"] > 0


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_a_model_of_which_no_step_was_kept_is_its_base_and_is_not_read_again(tmp_path, monkeypatch):
    """In 16 bits or on a GPU a second reading would find changes that are rounding."""
    settings = SETTINGS.replace("[update]\n", "[update]\nlearning_rate = 1e-9\n").replace("steps = 2", "steps = 1")
    (tmp_path / "c.toml").write_text(settings + benchmark_and_text(tmp_path))
    read = list[str]()
    for name in ("answer", "choices", "run_tasks"):
        once = getattr(evaluate, name)

        def seen(*args, _once=once, _name=name, **kwargs):
            read.append(f"{_name} {kwargs.get('model', '')}".strip())
            return _once(*args, **kwargs)

        monkeypatch.setattr(evaluate, name, seen)
    monkeypatch.setattr(evaluate, "drift", lambda *_: pytest.fail("of a model from itself there is none"))
    out = tmp_path / "run"
    assert cli.main(["run", str(tmp_path / "c.toml"), "--out", str(out), "--quiet"]) == 0
    assert sorted(read) == ["answer base", "choices base", "run_tasks"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["update"]["best_step"] == 0
    for found in (summary["target"], *summary["retention"].values()):
        assert found["base"] == found["updated"]
    assert (summary["target"]["gained"], summary["target"]["lost"]) == (0, 0)
    (text,) = summary["text_drift"].values()
    assert text == {"kl": 0.0, "perplexity_ratio": 1.0, "tokens": text["tokens"]}
    assert text["tokens"] > 100
    for file in ("scores.jsonl", "choices.jsonl"):
        records = [json.loads(line) for line in (out / file).read_text().splitlines()]
        of = {m: [{**r, "model": ""} for r in records if r["model"] == m] for m in ("base", "updated")}
        assert of["base"] == of["updated"] != []
    assert (out / "base_tasks.jsonl").read_bytes() == (out / "updated_tasks.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('evaluation.text=["missing.txt"]', "cannot read evaluation.text missing.txt"),
        ('evaluation.retention=["singing"]', "no skill 'singing'"),
        ('problems.grader="no_module:f"', "importing no_module failed"),
        ('problems.grader="sums"', "unknown grader 'sums'"),
        ('evaluation.tasks=["mmlu_of_nothing"]', "no task mmlu_of_nothing"),
        ('problems.source="questions.jsonl"', "no problems at 'questions.jsonl'"),
    ],
)
def test_what_evaluation_needs_is_checked_before_the_first_trace(tmp_path, monkeypatch, capsys, setting, said):
    monkeypatch.setattr("cca.model.open.open_model", lambda *_, **__: pytest.fail("nothing slow may start"))
    assert cli.main(["run", "--out", str(tmp_path / "run"), "--set", setting]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_right_answers_of_a_benchmark_are_counted_in_pairs_and_clustered_by_subtask():
    def scores(*values: float) -> list[TaskScore]:
        return [TaskScore("mmlu", f"mmlu_{i % 2}", i, "acc", v) for i, v in enumerate(values)]

    row = task_comparisons(scores(1, 0, 0, 1), scores(1, 1, 0, 0), seed=0)["mmlu"]
    assert (row.n, row.base, row.updated, row.gained, row.lost, row.metric) == (4, 0.5, 0.5, 1, 1, "acc")
    share = task_comparisons(scores(0.5, 0.2), scores(0.6, 0.4), seed=0)["mmlu"]
    assert share.difference == pytest.approx(0.15)
    assert (share.gained, share.minimum_detectable_effect, share.base_ci95) == (None, None, None)
    assert (share.sign_flip_p, share.units) == (pytest.approx(0.5), 2)
    assert share.ci95.low <= 0 < 0.15 <= share.ci95.high
