"""What people see of a run when it is done: `cca show`, and the same as data frames."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import as_written
from hypothesis import given
from hypothesis import strategies as st

import cca
from cca import cli
from cca.errors import InputError
from cca.evaluation.evaluate import Evaluation
from cca.evaluation.pivot_kinds import PIVOT_KINDS
from cca.evaluation.results import Interval, SetResult
from cca.evaluation.stats import Outcomes, paired, paired_shares, pooled
from cca.folder import RunFolder
from cca.method.circuit import Circuit
from cca.records import Choice, Pivot, Problem, Score, Which
from cca.run.config import dump_toml, load_config
from cca.run.run import Run
from cca.run.stages import MEASURED
from cca.show import figures, tables, words
from cca.show.circuit import CircuitView
from cca.show.views import effects, pivot_views, problem_view, steps

ROOT = Path(__file__).parent.parent
BOTH: tuple[Which, Which] = ("base", "updated")


def shown(capsys, *arguments: str) -> str:
    """What `cca show` prints on stdout; nothing may go to stderr."""
    assert cli.main(["show", *arguments]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def one_line(text: str) -> str:
    return " ".join(text.split())


# ---- cca show ----


def test_a_pivot_is_shown_with_both_tokens_their_continuations_answers_and_probabilities(mended, capsys):
    folder = RunFolder.open(mended)
    pivot = next(p for p in folder.read("pivots.jsonl", Pivot) if p.method == "branching")
    text = one_line(shown(capsys, "pivots", str(mended), "--problem", pivot.problem))
    prompter = Run.load(mended).prompter
    problem = next(p for p in folder.read("problems.jsonl", Problem) if p.id == pivot.problem)
    probabilities = {c.model: c for c in folder.read("choices.jsonl", Choice) if c.problem == pivot.problem}
    assert one_line(problem.question) in text
    for side in ("desired", "undesired"):
        before, after = (math.exp(getattr(probabilities[model], side)) for model in ("base", "updated"))
        assert f"probability {words.percent(before)} -> {words.percent(after)}" in text
        token = prompter.tokenizer.decode([getattr(pivot, side)])
        assert f"[{token.replace(' ', '␣')}]" in text
        rest = prompter.decode(getattr(pivot, f"after_{side}")[1:])
        assert one_line(rest) in text.replace("] ", "]").replace("]", "] ")
    assert "right, gold" in text
    assert "wrong, gold" in text


def test_as_many_pivots_are_shown_as_were_asked_for_and_those_off_their_slip_alone(mended, capsys):
    assert len(json.loads(shown(capsys, "pivots", str(mended), "-n", "3", "--json"))) == 3
    missed = [p for p in RunFolder.open(mended).read("pivots.jsonl", Pivot) if p.on_slip is False]
    found = json.loads(shown(capsys, "pivots", str(mended), "-n", "500", "--off-slip", "--json"))
    assert [p["problem"] for p in found] == [p.problem for p in missed if p.method == "branching"]


def test_pivots_are_shown_with_their_kind_counted_by_kind_and_one_kind_alone(mended, capsys):
    folder = RunFolder.open(mended)
    views = pivot_views(folder, Run.load(mended).prompter)
    counts, found = Counter(v.kind for v in views), json.loads((mended / "summary.json").read_text())["pivots"]
    assert {kind: of["n"] for kind, of in found["by_kind"].items()} == {kind: counts[kind] for kind in PIVOT_KINDS}
    for kind in counts:
        shown_views = json.loads(shown(capsys, "pivots", str(mended), "-n", "500", "--kind", kind, "--json"))
        assert [v["problem"] for v in shown_views] == [v.problem for v in views if v.kind == kind]
        became = Counter(v.outcome for v in views if v.kind == kind)
        of = found["by_kind"][kind]
        assert (of["preferred"], of["mended"]) == (became["already preferred"] + became["broken"], became["mended"])
        text = one_line(shown(capsys, "pivots", str(mended), "-n", "1", "--kind", kind))
        assert text.startswith(f"1 of {counts[kind]} pivots of the kind {kind}. By kind, all that were found: ")
        assert all(f"{count} {name}" in text for name, count in counts.items())
        assert f"({kind}; " in text
    assert "0 of 0 pivots of the kind end." in shown(capsys, "pivots", str(mended), "--kind", "end")
    table = one_line(shown(capsys, "scores", str(mended)))
    for kind, of in found["by_kind"].items():
        row = f"{kind} │ {of['n']} │ {words.percent(of['n'] / len(views))} │ {of['preferred']} │ {of['mended']}"
        assert (row in table) is (of["n"] > 0)


def test_a_run_whose_pivots_were_not_told_apart_is_shown_without_that_table(mended, capsys, tmp_path):
    shutil.copytree(mended, tmp_path / "run")
    summary = json.loads((mended / "summary.json").read_text())
    del summary["pivots"]["by_kind"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    as_written(tmp_path / "run")
    assert "preferred before" not in shown(capsys, "scores", str(tmp_path / "run"))


def test_the_circuit_is_shown_by_layer_and_overlaps_with_itself_completely(mended, capsys):
    circuit = CircuitView.load(mended / "circuit.safetensors")
    text = shown(capsys, "circuit", str(mended))
    assert f"{int(circuit.selected.sum())} of 3,260 components" in text
    found = json.loads(shown(capsys, "circuit", str(mended), "--json"))["components"]
    assert sum(len(n) for layers in found.values() for n in layers.values()) == int(circuit.selected.sum())
    both = json.loads(shown(capsys, "circuit", str(mended), str(mended), "--json"))["overlap"]
    assert {row["jaccard"] for row in both.values() if row["first"]} == {1.0}
    assert sum(row["n"] for row in both.values()) == 3260
    assert "Jaccard" in shown(capsys, "circuit", str(mended), str(mended))


def test_circuits_of_models_of_other_shapes_are_not_compared(mended, tmp_path, capsys):
    shutil.copytree(mended, tmp_path / "other")
    small = Circuit(torch.ones(4), torch.ones(1, 4), torch.ones(1), torch.ones(1, 4, dtype=torch.int64), "")
    small.save(tmp_path / "other" / "circuit.safetensors")
    as_written(tmp_path / "other")
    assert cli.main(["show", "circuit", str(mended), str(tmp_path / "other")]) == 2
    assert "models with other components" in capsys.readouterr().err


def test_a_test_problem_is_shown_with_both_models_answers_and_a_training_problem_with_its_traces(mended, capsys):
    scores = RunFolder.open(mended).read("scores.jsonl", Score)
    text = one_line(shown(capsys, "problem", str(mended), scores[0].problem))
    assert "base model" in text
    assert "updated model" in text
    view = problem_view(RunFolder.open(mended), scores[0].problem)
    assert [a.text for a in view.answers] == [s.text for s in scores if s.problem == scores[0].problem]
    pivot = RunFolder.open(mended).read("pivots.jsonl", Pivot)[0]
    text = one_line(shown(capsys, "problem", str(mended), pivot.problem))
    assert "greedy trace" in text
    assert f"--problem {pivot.problem}" in text


def test_scores_of_one_run_are_its_table_and_of_several_stand_side_by_side(mended, tmp_path, capsys):
    summary = json.loads((mended / "summary.json").read_text())
    text = shown(capsys, "scores", str(mended))
    assert "held-out templates" in text
    assert f"{100 * summary['target']['updated']:.1f}%" in text
    assert "min. detectable: where the interval holds 0" in one_line(text)
    found = json.loads(shown(capsys, "scores", str(mended), "--json"))
    seconds = found.pop("seconds")
    assert found == {name: value for name, value in summary.items() if name != "seconds"}
    spent = RunFolder.open(mended).manifest["seconds"]
    assert seconds == {s: spent[s] for s in MEASURED} | {"total": round(sum(spent[s] for s in MEASURED), 2)}
    shutil.copytree(mended, tmp_path / "b")
    monkey = {**summary, "target": {**summary["target"], "difference": 0.123}}
    (tmp_path / "b" / "summary.json").write_text(json.dumps(monkey))
    as_written(tmp_path / "b")
    text = shown(capsys, "scores", str(mended), str(tmp_path / "b"))
    assert f"{words.points(summary['target']['difference'])} (" in text
    assert "+12.3 (" in text


def test_markup_in_model_output_is_shown_as_it_is(mended, tmp_path, capsys):
    shutil.copytree(mended, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    problems = folder.read("problems.jsonl", Problem)
    folder.write("problems.jsonl", [Problem(**{**vars(p), "question": "[bold]x[/bold] [/]"}) for p in problems])
    scores = folder.read("scores.jsonl", Score)
    folder.write("scores.jsonl", [Score(**{**vars(s), "text": "[red]y[/red] [/]\x1b]0;title\x07"}) for s in scores])
    as_written(tmp_path / "run")
    assert "[bold]x[/bold] [/]" in shown(capsys, "pivots", str(tmp_path / "run"), "-n", "1")
    text = shown(capsys, "problem", str(tmp_path / "run"), scores[0].problem)
    assert "[red]y[/red] [/]␛]0;title␇" in text
    assert "\x1b" not in text, "nothing that a model wrote steers the terminal"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["pivots", "RUN", "-n", "0"], ["at least 1"]),
        (["pivots", "RUN", "--problem", "nobody"], ["no pivot of problem 'nobody'", "cca show problem"]),
        (["pivots", "RUN", "--kind", "verb"], ["--kind 'verb'", "'first token'", "'digit'"]),
        (["problem", "RUN", "nobody"], ["no problem 'nobody'", "for example"]),
        (["circuit", "RUN", "RUN", "RUN"], ["one run or two"]),
        (["scores", "EMPTY"], ["not finished", "cca run --out"]),
        (["pivots", "EMPTY"], ["no pivots yet", "cca pivots"]),
        (["circuit", "EMPTY"], ["no circuit yet", "cca circuit"]),
        (["scores", "NOWHERE"], ["holds no run"]),
    ],
)
def test_what_cannot_be_shown_is_named_with_the_remedy(arguments, parts, mended, tmp_path, capsys):
    RunFolder.create(tmp_path / "empty", dump_toml(load_config(None)))
    names = {"RUN": mended, "EMPTY": tmp_path / "empty", "NOWHERE": tmp_path / "nowhere"}
    assert cli.main(["show", *(str(names.get(a, a)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cca: ")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["show", "scores", "RUN"], ["torch", "transformers", "scipy", "plotly", "numpy"]),
        (["show", "scores", "RUN", "RUN"], ["torch", "transformers", "scipy", "plotly", "numpy"]),
        (["show", "circuit", "RUN"], ["torch", "transformers", "scipy", "plotly"]),
        (["show", "circuit", "RUN", "RUN"], ["torch", "transformers", "plotly"]),
        (["show", "problem", "RUN", "12-0"], ["torch", "transformers", "scipy", "plotly", "numpy"]),
        (["grade", "RUN", "--grader", "exact"], ["torch", "transformers", "scipy", "plotly", "numpy"]),
    ],
)
def test_what_only_reads_loads_nothing_that_it_does_not_need(arguments, unneeded, mended):
    code = "import sys\nfrom cca import cli\nassert cli.main(sys.argv[1:]) == 0\n"
    code += f"assert not {set(unneeded)} & {{*sys.modules}}"
    command = [sys.executable, "-c", code, *(str(mended) if a == "RUN" else a for a in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ---- what the views say ----


def test_a_template_s_interval_is_of_its_own_problems():
    scores = [
        Score(model, "test", None, f"{template}-{i}", template, "", model == "updated" and i < gained, 1, "")
        for template, gained in (("a", 10), ("b", 0))
        for i in range(10)
        for model in BOTH
    ]
    a, b = effects(scores, seed=0)
    assert (a.template, a.n, a.difference, a.gained, a.lost) == ("a", 10, 1.0, 10, 0)
    assert (b.difference, b.low, b.high) == (0.0, -b.high, pytest.approx(1 - 0.025**0.1))


def test_steps_of_several_rounds_follow_each_other_from_the_step_that_was_kept(mended, tmp_path):
    shutil.copytree(mended, tmp_path / "run")
    shutil.copytree(mended, tmp_path / "run" / "round-2")
    found = steps(RunFolder.open(tmp_path / "run"))
    kept = json.loads((mended / "summary.json").read_text())["update"]["best_step"]
    assert [(s.round, s.step) for s in found] == [
        *((1, step) for step in range(3)),
        *((2, kept + step) for step in range(3)),
    ]
    assert [s.step for s in found if s.kept] == [kept, 2 * kept]


def test_a_pivot_s_outcome_compares_the_two_models():
    from cca.evaluation.pivot_kinds import outcome

    def choice(model: Which, preferred: bool) -> Choice:
        return Choice(model, "p", -1.0 if preferred else -2.0, -1.5)

    assert outcome(choice("base", False), choice("updated", True)) == "mended"
    assert outcome(choice("base", True), choice("updated", False)) == "broken"
    assert outcome(choice("base", True), choice("updated", True)) == "already preferred"
    assert outcome(choice("base", False), choice("updated", False)) == "still not preferred"
    assert outcome(None, None) == "not evaluated"


def test_a_pivot_s_text_is_its_trace_cut_at_the_pivot(mended):
    folder, prompter = RunFolder.open(mended), Run.load(mended).prompter
    pivots = [p for p in folder.read("pivots.jsonl", Pivot) if p.method == "branching"]
    for pivot, view in zip(pivots, pivot_views(folder, prompter), strict=True):
        prompt = len(pivot.prefix) - pivot.position
        for side, after in ((view.desired, pivot.after_desired), (view.undesired, pivot.after_undesired)):
            whole = prompter.decode([*pivot.prefix[prompt:], *after])
            assert view.before + side.token + side.text == whole
        assert view.desired.correct
        assert not view.undesired.correct


# ---- notebooks ----


def test_a_run_is_data_frames_and_the_figures_of_the_report(mended):
    run = cca.Run.load(mended)
    frames, figures, summary = run.frames, run.figures, run.summary
    assert len(frames.components) == 3260
    assert frames.components.selected.sum() == summary.circuit.selected
    assert len(frames.pivots) == summary.pivots.found
    assert {"desired_token", "undesired_updated", "outcome", "kind"} <= set(frames.pivots.columns)
    updated = frames.scores[(frames.scores.model == "updated") & (frames.scores.split == "test")]
    assert updated.correct.mean() == pytest.approx(summary.target.updated)
    assert set(frames.problems.index) >= set(frames.traces.problem)
    assert set(frames.effects.columns) >= {"split", "skill", "template", "difference", "low", "high"}
    assert frames.steps[frames.steps.kept].step.tolist() == [summary.update.best_step]
    made = [figures.forest(), figures.validation_curve(), figures.gates_over_training(), figures.density_sweep()]
    made += [figures.neurons_by_layer(), *(figures.head_map(kind) for kind in ("query", "key", "value"))]
    page = (mended / "report.html").read_text()
    assert all(figure.data for figure in made)
    assert page.count('"type":"heatmap"') >= sum(
        len(list(figure.select_traces({"type": "heatmap"}))) for figure in made
    )
    with pytest.raises(ValueError, match="query, key, value"):
        figures.head_map("neuron")
    assert "pivots" in repr(frames)
    assert "forest" in repr(figures)


def test_what_a_run_has_not_got_to_yet_is_named(tmp_path):
    RunFolder.create(tmp_path / "r", dump_toml(load_config(None)))
    run = cca.Run.load(tmp_path / "r")
    assert "finished: nothing" in repr(run)
    for name in ("problems", "traces", "pivots", "steps", "scores", "effects", "components"):
        with pytest.raises(InputError, match="cca "):
            getattr(run.frames, name)
    for name in ("forest", "validation_curve", "gates_over_training", "density_sweep", "neurons_by_layer"):
        with pytest.raises(InputError, match="cca "):
            getattr(run.figures, name)()
    with pytest.raises(InputError, match="cca "):
        _ = run.summary
    with pytest.raises(InputError, match="holds no run"):
        cca.Run.load(tmp_path / "nowhere")


def test_without_pandas_a_data_frame_says_what_to_install_and_figures_are_still_there(mended, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = cca.Run.load(mended)
    with pytest.raises(InputError, match="pandas"):
        _ = run.frames.problems
    assert run.figures.neurons_by_layer().data


def test_the_circuit_is_read_without_torch_as_stage_2_left_it(mended):
    view, circuit = CircuitView.load(mended / "circuit.safetensors"), Circuit.load(mended / "circuit.safetensors")
    for name in ("gates", "history", "losses", "sizes"):
        assert getattr(view, name).tolist() == getattr(circuit, name).tolist()
    assert (view.density, view.stopped) == (circuit.density, circuit.stopped)
    assert view.selected.tolist() == circuit.selected.tolist()
    for mine, theirs in zip(view.by_layer(), circuit.by_layer(), strict=True):
        assert [part.tolist() for part in mine] == [part.tolist() for part in theirs]


def test_a_forest_plot_has_a_row_for_each_template_skill_and_benchmark(mended):
    run = cca.Run.load(mended)
    mmlu = SetResult(40, 0.5, 0.45, -0.05, Interval(-0.2, 0.1), None, None, 0.5, 40, None, metric="acc")
    summary = replace(run.summary, retention=run.summary.retention | {"mmlu": mmlu})
    scores = run.folder.read("scores.jsonl", Score)
    figure = figures.forest(effects(scores, 0), summary).to_dict()
    names, (trace,) = figure["layout"]["yaxis"]["ticktext"], figure["data"]
    assert names[0] == "target, all"
    assert names[-1] == "retention: mmlu"
    assert len(names) == 2 + len(run.frames.effects) + 1
    assert trace["x"][-1] == pytest.approx(-5.0)
    assert (trace["error_x"]["array"][-1], trace["error_x"]["arrayminus"][-1]) == pytest.approx((15.0, 15.0))


# ---- in words ----


def result(gained: int, lost: int, n: int, templates: int = 1) -> SetResult:
    base = [True] * lost + [False] * (n - lost)
    updated = [False] * lost + [True] * gained + [False] * (n - lost - gained)
    return paired(base, updated, [str(i % templates) for i in range(n)], seed=0)


def test_where_no_answer_changed_every_place_says_so_with_what_is_left_open(mended):
    same, interval = result(0, 0, 200), "(-1.8 to +1.8)"
    summary = replace(Run.load(mended).summary, target=same, transfer={"a": same}, retention={"b": same})
    row = next(words.set_rows(summary))
    assert (row.difference, row.ci95, row.sign_flip_p) == ("0.0", "-1.8 to +1.8", "0 changed")
    assert words.verdict(summary) == "The update changes no answer of the target: 0 of 200 changed."
    assert words.retention_verdict(summary).endswith("none is shown to move; changes below 3.9 points could go unseen.")
    assert (
        repr(Evaluation({"target": same}, ()))
        == f"Evaluation(target: 0.0% -> 0.0% of 200, 0 of 200 changed {interval})"
    )
    pool = pooled([Outcomes([True] * 200, [True] * 200, ["a"] * 200)], seed=0)
    assert tables.points(pool) == f"0 of 200 changed {interval}, MDE 3.9"
    (drawn,) = figures.forest([], summary).to_dict()["data"]
    assert drawn["error_x"]["array"][0] == pytest.approx(1.83, abs=0.01)


@pytest.mark.parametrize(
    ("found", "difference", "p"),
    [
        (result(1, 0, 10_000), "+0.01", ">0.99"),
        (result(0, 4, 10_000), "-0.04", "0.12"),
        (result(200, 0, 200), "+100.0", "<0.0001"),
        (result(1, 1, 50), "0.0", ">0.99"),
        (result(50, 0, 50, templates=5), "+100.0", "too few"),
        (result(1, 0, 1), "+100.0", "too few"),
    ],
)
def test_what_is_not_0_or_certain_does_not_read_so(mended, found, difference, p):
    row = next(words.set_rows(replace(Run.load(mended).summary, target=found)))
    assert (row.difference, row.sign_flip_p) == (difference, p)
    low, high = row.ci95.split(" to ")
    assert low != high


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0.0%"), (0.00003, "<0.1%"), (0.542, "54.2%"), (0.9999, ">99.9%"), (1, "100.0%")]
)
def test_a_share_reads_as_none_or_all_only_where_it_is(share, said):
    assert words.percent(share) == said


@pytest.mark.parametrize(
    ("kl", "said"), [(None, ""), (0.0, "0.0000"), (3e-6, "<0.0001"), (-1e-9, "<0.0001"), (0.0016, "0.0016")]
)
def test_a_drift_reads_as_0_only_where_it_is(kl, said):
    assert words.divergence(kl) == said


@given(st.floats(-1, 1))
def test_points_read_as_0_only_where_they_are(difference):
    said = words.points(difference)
    assert float(said) == pytest.approx(100 * difference, abs=0.0501)
    assert (float(said) == 0) == (abs(100 * difference) <= 5e-5) == (said == "0.0")
    assert "e" not in said


def test_too_few_templates_can_show_no_change_and_the_verdict_says_so(mended):
    summary = Run.load(mended).summary
    few, one = (replace(summary, target=result(20, 0, 20, templates)) for templates in (5, 20))
    assert words.verdict(few) == "No change of the target can be shown with so few templates: 5."
    assert words.verdict(one) == "The update raises accuracy on the target."
    assert words.verdict(replace(summary, target=result(4, 0, 4))).endswith("so few problems: 4.")
    others = replace(summary, transfer={}, retention={"a": result(0, 0, 40, templates=4)})
    assert re.search(
        r"none is shown to move; changes of up to \d+\.\d points are left open", words.retention_verdict(others)
    )


def test_a_measure_that_is_no_count_has_a_p_and_no_detectable_effect(mended):
    share = paired_shares([0.2] * 30, [0.3] * 30, list(map(str, range(30))), 0, "acc")
    *_, row = words.set_rows(replace(Run.load(mended).summary, retention={"truth": share}))
    assert (row.sign_flip_p, row.minimum_detectable) == ("<0.0001", "")


def test_the_notebook_in_the_documents_runs(mended, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "bundled").symlink_to(mended)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(
        cell["outputs"] or "import" in "".join(cell["source"]) for cell in notebook["cells"] if "outputs" in cell
    )
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "notebook.ipynb", "exec"), names)
