"""Texts that the limit of tokens ended are told apart from wrong ones wherever they count."""

import shutil
from dataclasses import replace

import pytest
from conftest import TEMPLATES, as_written

import cca
import cca.model.engine
from cca.cli import main
from cca.errors import InputError
from cca.evaluation.results import Change
from cca.evaluation.summarize import comparisons
from cca.folder import RunFolder
from cca.method.options import PivotOptions
from cca.method.pivots import check_found
from cca.method.traces import Traces
from cca.records import Metric, Score, Trace, TracePair
from cca.run.run import Run
from cca.show import words


@pytest.fixture(scope="module")
def few():
    return cca.load_problems("gsm-symbolic", templates=TEMPLATES[:2], max_number=60, n=3)


def test_a_text_is_cut_unless_an_end_token_or_a_stop_string_ended_it(prompter, problems):
    written = prompter.tokenizer.encode(" 3 apples.\n#### 3")
    marked = prompter.tokenizer.encode(" 3 apples.\n####")
    stopping = replace(prompter, stop=("####",))
    assert prompter.trace(problems[0], written).cut
    assert not prompter.trace(problems[0], [*written, min(prompter.end_tokens)]).cut
    assert not stopping.trace(problems[0], marked).cut
    assert stopping.trace(problems[0], marked[:-2]).cut
    assert prompter.trace(problems[0], []).cut


def test_tracing_with_too_few_tokens_warns_and_finding_no_pivot_names_them(bundled, few):
    with pytest.warns(UserWarning, match=r"100% of the traces were cut at traces.max_new_tokens = 4.*raise it"):
        traces = cca.trace(bundled, few, max_new_tokens=4, samples=1)
    assert all(pair.greedy.cut for pair in traces)
    assert "100.0% of the traces cut at 4 tokens" in repr(traces)
    with pytest.raises(InputError, match=r"no training problem gave a pivot .*100% of the traces were cut"):
        cca.find_pivots(bundled, traces)


def test_an_evaluation_tells_which_answers_were_cut(bundled, few):
    found = cca.evaluate(bundled, few, cca.Delta({}), max_new_tokens=4)
    assert found.target is not None
    assert found.target.cut == Change(1.0, 1.0)
    assert {score.verdict for score in found.scores} == {"cut"}
    assert "100% cut" in repr(found)


def test_validation_evaluation_and_diagnosis_answer_within_a_limit_of_their_own(mended, tmp_path, monkeypatch):
    folder, limits = shutil.copytree(mended, tmp_path / "run"), list[int]()
    write = cca.model.engine.write

    def counted(network, rows, **how):
        limits.extend(row.limit for row in rows)
        write(network, rows, **how)

    monkeypatch.setattr(cca.model.engine, "write", counted)
    with Run.resume(folder, redo="update", changes=("evaluation.max_new_tokens=5", "update.steps=1")) as run:
        run.execute()
    assert set(limits) == {5}
    before, after = (folder.read("metrics.jsonl", Metric)[0] for folder in (RunFolder.open(mended), run.folder))
    assert after.accuracy < before.accuracy
    assert (before.cut, after.cut) == (0.0, 1.0)
    said = run.folder.noted("warnings", "update")[0]
    assert "100% of the validation answers of step 0 were cut at evaluation.max_new_tokens = 5" in said
    scores = run.folder.read("scores.jsonl", Score)
    assert max(score.tokens for score in scores) == 5
    assert all(score.cut for score in scores if score.split == "test")
    found = next(finding for finding in run.summary.diagnosis if finding.check == "cut answers")
    told = "100.0% of the base and 100.0% of the updated model's answers to the target at evaluation.max_new_tokens = 5"
    assert told in found.message
    assert found.advice.startswith("raise evaluation.max_new_tokens:")
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
    assert "max_new_tokens=5" in (tmp_path / "merged" / "README.md").read_text()


def test_an_update_whose_validation_answers_are_cut_says_so(bundled, few, mended):
    run = Run.load(mended)
    with pytest.warns(UserWarning, match=r"100% of the validation answers of step 0 were cut at max_new_tokens = 4"):
        circuit = cca.Circuit.load(mended / "circuit.safetensors")
        cca.update(bundled, circuit, run.pivots_of("train")[:2], validate=few, steps=1, max_new_tokens=4)


def test_a_run_whose_traces_are_cut_says_so_when_it_gives_up_and_in_its_warnings(tmp_path, capsys):
    settings = [
        "problems.templates=[16,43]", "problems.train=2", "problems.validation=1", "problems.test=1",
        "problems.held_out=0", "evaluation.transfer=[]", "evaluation.retention=[]", "traces.samples=1",
        "traces.max_new_tokens=6",
    ]  # fmt: skip
    arguments = ["run", "--out", str(tmp_path / "run"), "--quiet", *(a for s in settings for a in ("--set", s))]
    for _ in range(2):
        assert main(arguments) == 2
        assert "100% of the traces were cut at traces.max_new_tokens = 6" in capsys.readouterr().err
    (warning,) = RunFolder.open(tmp_path / "run").noted("warnings", "trace")
    assert "were cut" in warning, "said once, though the stage was looked at twice"
    assert all(pair.greedy.cut for pair in RunFolder.open(tmp_path / "run").read("traces.jsonl", TracePair))


def test_the_table_has_columns_for_what_is_cut_and_without_an_answer_where_there_is_any(mended):
    run = cca.Run.load(mended)
    bare = replace(run.summary, target=replace(run.summary.target, cut=None, no_answer=None))
    assert words.set_table(bare).headings == list(words.COLUMNS[:-2])
    scores = [s for s in run.folder.read("scores.jsonl", Score) if s.split == "test"]
    first = next(s for s in scores if s.model == "base")
    (target,) = comparisons([replace(s, cut=True) if s == first else s for s in scores], {}, 0).values()
    table = words.set_table(replace(bare, target=replace(bare.target, cut=target.cut)))
    assert table.headings[-1] == "cut"
    assert table.cells[0][-1] == f"{words.percent(1 / target.n)} -> 0.0%"
    assert all(row[-1] == "" for row in table.cells[1:])
    assert any("max_new_tokens" in note for note in table.notes)


def test_a_problem_is_shown_with_the_verdict_on_each_answer(mended, tmp_path, capsys):
    folder = shutil.copytree(mended, tmp_path / "run")
    run = RunFolder.open(folder)
    scores = [replace(s, correct=False, cut=s.model == "base", answer="") for s in run.read("scores.jsonl", Score)]
    run.write("scores.jsonl", scores)
    as_written(folder)
    assert main(["show", "problem", str(folder), scores[0].problem]) == 0
    shown = capsys.readouterr().out
    assert "✗ cut: none" in shown
    assert "✗ no answer: none" in shown


def test_templates_that_the_model_solves_are_named_where_no_pivot_is_left():
    trace = Trace((1,), "", "1", True)
    pair = TracePair("p", "train", "0", (1,), trace, replace(trace, correct=False), 1, None)
    for share in (1.0, 0.8):
        said = rf"1 with an opposite sample, 1 of .*skip_solved = {share:g}\): set traces.skip_solved=0,"
        with pytest.raises(InputError, match=said):
            check_found([], Traces((pair,), {}, cca.TraceOptions(skip_solved=share)), PivotOptions())
    with pytest.raises(InputError, match=r"1 with an opposite sample\): the model is right or wrong"):
        check_found([], Traces((pair,), {}, cca.TraceOptions(skip_solved=0)), PivotOptions())
