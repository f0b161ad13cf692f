"""Methods run on identical problems and budgets, share what they can, are not redone, and end in one table."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from cca import cli
from cca.controls.methods import METHODS
from cca.evaluation.pooling import Answers, against_base, clusters_of
from cca.evaluation.results import Comparison
from cca.evaluation.summarize import comparisons
from cca.folder import RunFolder
from cca.io import from_json, to_json
from cca.records import Answered, Pivot, Problem, Score, Split, WithoutPivot
from cca.run import compare
from cca.run.config import load_config
from cca.show.tables import markdown

SETTINGS = """
[problems]
templates = [16, 43, 26, 59]
train = 3
validation = 2
test = 3
held_out = 0.25
[traces]
skip_solved = 0
[circuit]
learning_rate = 0.2
epochs = 3
[update]
steps = 2
validate_every = 1
[evaluation]
transfer = ["chain_sum"]
retention = []
per_skill = 3
"""
CHOSEN = ("branching", "prefix", "gradient", "bias", "steering")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.toml").write_text(SETTINGS)
    assert run(folder) == 0
    return folder / "out"


def run(folder: Path, *more: str) -> int:
    command = [
        "compare",
        str(folder / "small.toml"),
        "--out",
        str(folder / "out"),
        "--methods",
        *CHOSEN,
        "--seeds",
        "0",
    ]
    return cli.main([*command, "--seeds", "0", "--quiet", *more])


def test_all_methods_answer_the_same_problems_with_one_set_of_base_answers(out):
    read = {method: RunFolder.open(out / "0" / method).read("scores.jsonl", Score) for method in CHOSEN}
    base = [s for s in read["branching"] if s.model == "base"]
    assert len(base) == 3 * 3 + 3 + 3
    for scores in read.values():
        assert [s for s in scores if s.model == "base"] == base
        assert [s.problem for s in scores if s.model == "updated"] == [s.problem for s in base]


def test_methods_share_traces_and_pivots_and_all_but_prefix_the_circuit(out):
    stages = {method: RunFolder.open(out / "0" / method).manifest["stages"] for method in CHOSEN}
    for method in CHOSEN:
        assert stages[method]["trace"] == stages["branching"]["trace"]
        assert stages[method]["pivots"] == stages["branching"]["pivots"]
        if method != "prefix":
            assert stages[method]["circuit"] == stages["branching"]["circuit"]


def test_controls_have_no_more_parameters_than_the_circuit_has_rows(out):
    updates = {a: json.loads((out / "0" / a / "summary.json").read_text())["update"] for a in CHOSEN}
    assert updates["gradient"]["rows"] == updates["branching"]["rows"]
    assert 0 < updates["bias"]["parameters"] <= updates["branching"]["rows"]
    assert updates["steering"]["parameters"] == 192


def test_the_table_is_written_for_people_and_machines(out):
    found = json.loads((out / "comparison.json").read_text())
    assert set(found["methods"]) == set(found["ranked"]) == set(CHOSEN)
    gains = [found["methods"][method]["target"]["difference"] for method in found["ranked"]]
    assert gains == sorted(gains, reverse=True)
    for method, row in found["methods"].items():
        assert {"n", "base", "updated", "difference", "ci95", "sign_flip_p", "holm_p"} <= set(row["target"])
        assert "minimum_detectable_effect" in row["target"]
        assert row["rows"][0] <= row["parameters"][0]
        assert row["target"]["holm_p"] >= row["target"]["sign_flip_p"]
        assert row["seconds"][0] > 0
        assert row["peak_gib"][0] > 0.1
        assert (row["against_first"] is None) == (method == "branching")
    text = (out / "comparison.md").read_text()
    assert text.count("\n| ") >= 3 * len(CHOSEN)
    page = (out / "report.html").read_text()
    assert all(f"{METHODS[method].title}</small>" in page for method in CHOSEN if "'" not in METHODS[method].title)
    assert not (out / "0" / "bias" / "report.html").exists()
    assert all(text.count(f"\n| {method} |") == 2 + (method != "branching") for method in CHOSEN)
    (by_seed,) = [line for line in text.splitlines() if line.startswith("| target, points by seed")]
    assert [cell.strip() for cell in by_seed.split("|")[2:4]] == ["0", "mean of such seeds (95%)"]


def test_finished_methods_are_not_redone(out, monkeypatch, capsys):
    monkeypatch.setattr("cca.model.open.open_model", lambda *_, **__: pytest.fail("nothing is left to do"))
    before = (out / "comparison.json").read_text()
    assert run(out.parent, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before)


def test_a_method_s_learning_rate_can_be_set_and_touches_no_other_method():
    chosen = compare.plan(None, (), ["branching", "bias"], [4], {"bias": 0.3})
    assert chosen.config("bias", 4).update.learning_rate == 0.3
    assert chosen.config("branching", 4).update.learning_rate == load_config(None).update.learning_rate
    assert chosen.config("bias", 4).seed == 4


def test_learning_rates_that_suit_the_bundled_model_are_not_those_of_another():
    settings = ["model.path=gpt2", "update.learning_rate=0.03"]
    rates = {
        name: compare.method_config(None, settings, name, 4, {"bias": 0.3}).update.learning_rate for name in METHODS
    }
    by_adam = {"lora-pivots": 0.003, "lora": 0.0001, "finetune": 0.00001}
    automatic = dict.fromkeys(("random", "all", "gradient", "steering"), "auto")
    assert rates == automatic | by_adam | {"branching": 0.03, "prefix": 0.03, "bias": 0.3}
    assert compare.method_config(None, (), "random", 4, {}).update.learning_rate == 0.4
    assert compare.method_config(None, (), "all", 4, {}).update.learning_rate == load_config(None).update.learning_rate


@pytest.mark.parametrize(("rate", "said"), [("tilt=1", "no method 'tilt'"), ("bias", "not of the form METHOD=RATE")])
def test_a_bad_learning_rate_is_refused(tmp_path, capsys, rate, said):
    assert cli.main(["compare", "--out", str(tmp_path / "o"), "--methods", "bias", "--rate", rate]) == 2
    assert said in capsys.readouterr().err


def test_every_method_s_settings_are_a_valid_config():
    for method in METHODS.values():
        load_config(None, method.settings)


def test_bad_settings_of_any_method_are_refused_before_the_first_runs(tmp_path, capsys):
    assert cli.main(["compare", "--out", str(tmp_path / "o"), "--set", "problems.source=nowhere"]) == 2
    assert "no problems at 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_missing_package_of_a_method_is_named_before_the_first_runs(tmp_path, monkeypatch, capsys):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name in ("trl", "peft") else real(name, *a))
    assert cli.main(["compare", "--out", str(tmp_path / "o"), "--methods", "branching", "lora"]) == 2
    assert re.search(r"needs trl and peft; .*pip install 'trl>=.*' 'peft>=.*'", capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_full_fine_tuning_of_16_bit_weights_is_refused_before_the_first_runs(tmp_path, dtype, capsys):
    command = ["compare", "--out", str(tmp_path / "o"), "--set", f"model.dtype={dtype}", "--methods", "branching"]
    assert cli.main([*command, "finetune"]) == 2
    said = capsys.readouterr().err
    assert (dtype == "auto" and "bfloat16, which auto may come to" in said) or f"rounding of {dtype}" in said
    assert "set model.dtype to float32, or leave finetune out" in said
    assert not (tmp_path / "o").exists()


def problem(template: str, number: int, question: str, skill: str | None = None) -> Problem:
    split: Split = "transfer" if skill else "test"
    return Problem(f"{template}-{number}", template, number, split, question, "1", "", skill)


def answers(problems: Sequence[Problem], gained: int) -> Answers:
    """Of a base model that has all wrong and an updated one that has the first `gained` right."""
    pairs = [
        Answered(
            Score("base", p.split, p.skill, p.id, p.template, "", False, 1, ""),
            Score("updated", p.split, p.skill, p.id, p.template, "", number < gained, 1, ""),
        )
        for number, p in enumerate(problems)
    ]
    return Answers({problems[0].split: pairs}, clusters_of(problems))


def test_problems_of_a_template_are_one_cluster_and_those_of_a_skill_or_of_no_template_are_their_own():
    kinds = [("4", None), ("all", None), ("chain_sum", "chain_sum")]
    found = {template: clusters_of(problem(template, n, f"{template} {n}", s) for n in (0, 1)) for template, s in kinds}
    assert [len(set(clusters.values())) for clusters in found.values()] == [1, 2, 2]


def test_a_question_that_several_seeds_ask_counts_once_for_the_interval():
    """A file of a hundred test questions is the same for every seed, in whatever order each draws them."""
    asked = [problem("all", n, f"question {n}") for n in range(100)]
    other = [problem("all", 99 - n, f"question {n}") for n in range(100)]  # each seed numbers them anew
    once = against_base([answers(asked, 10)], "test")
    three = against_base([answers(asked, 10), answers(other, 10), answers(asked, 10)], "test")
    assert once and three
    assert (three.n, three.units) == (300, 100)
    assert three.ci95.high - three.ci95.low > 0.8 * (once.ci95.high - once.ci95.low)  # of 300 questions about 0.6


def test_rows_without_a_template_are_no_cluster_beside_those_that_have_one():
    rows = [problem("all", n, f"question {n}") for n in range(30)] + [problem("4", n, f"four {n}") for n in range(3)]
    both = answers(rows, 5)
    scores = [score for pair in both.by_split["test"] for score in pair]
    (target,) = comparisons(scores, {}, 0).values()
    pooled = against_base([both], "test")
    assert pooled and target.units == pooled.units == 31


def test_a_written_comparison_is_read_as_it_was(out):
    text = (out / "comparison.json").read_text()
    found = from_json(text, Comparison, "comparison.json")
    assert to_json(found, indent=1) + "\n" == text
    assert markdown(found) == (out / "comparison.md").read_text()


def test_what_is_no_change_of_rows_is_not_merged(out, tmp_path, capsys):
    assert cli.main(["merge", str(out / "0" / "bias"), str(tmp_path / "merged")]) == 2
    assert (
        "trained bias, and only these leave what is asked for: circuit, random, all, gradient"
        in capsys.readouterr().err
    )
    assert cli.main(["merge", str(out / "0" / "gradient"), str(tmp_path / "merged")]) == 0


def test_what_no_adapter_holds_is_not_exported_as_one(out, tmp_path, capsys):
    assert cli.main(["export", str(out / "0" / "bias"), str(tmp_path / "a"), "--format", "peft"]) == 2
    assert "trained bias, and only these leave what is asked for: circuit, random" in capsys.readouterr().err


def test_each_method_s_own_pivots_are_confirmed_where_that_is_asked_for(tmp_path):
    """Those of the Prefix method that are kept beside others are never sampled, so that all of them would count."""
    (tmp_path / "small.toml").write_text(SETTINGS)
    more = ["--set", "pivots.confirm=2", "--set", "pivots.gap=1.0", "--set", "problems.templates=[43, 58]"]
    chosen = ["--methods", "branching", "prefix", "--set", "evaluation.transfer=[]", "--set", "problems.held_out=0"]
    assert run(tmp_path, *more, *chosen) == 0
    for method in ("branching", "prefix"):
        folder = RunFolder.open(tmp_path / "out" / "0" / method)
        own = [p for p in folder.read("pivots.jsonl", Pivot) if p.method == method]
        assert {p.samples for p in own} == {2}
        weak = {w.problem for w in folder.read("without_pivot.jsonl", WithoutPivot) if w.reason == "not_confirmed"}
        assert weak == {p.problem for p in own if p.gain != 1}
    traces = [(tmp_path / "out" / "0" / method / "traces.jsonl").read_bytes() for method in ("branching", "prefix")]
    assert traces[0] == traces[1]


def test_a_comparison_of_other_pivots_than_its_methods_are_named_for_is_refused(tmp_path, capsys):
    for settings in (["pivots.method=prefix"], ["pivots.method=probability", "pivots.confirm=4"]):
        sets = [word for setting in settings for word in ("--set", setting)]
        assert cli.main(["compare", "--methods", "branching", "--out", str(tmp_path / "out"), *sets]) == 2
        assert "a comparison takes branching pivots" in capsys.readouterr().err
