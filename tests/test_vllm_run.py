"""A whole run with vLLM, and what of it is particular to vLLM. Run with: make vllm, then pytest -m vllm."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from conftest import SMALL_BUT_WHOLE
from test_engines import PYTHON

from cca import cli
from cca.errors import InputError
from cca.evaluation.scores import answer
from cca.method.pivots import search_pivots
from cca.model.bundled import BUNDLED
from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.engines.process import Process
from cca.model.generate import Row
from cca.model.open import open_model
from cca.model.read import Text
from cca.records import Pivot, Score, TracePair
from cca.run.run import Run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no vLLM; build its environment with: make vllm"),
]
VLLM = {"name": "vllm", "python": str(PYTHON)}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run with vLLM, which was killed in the middle of its traces, and what it said then; gone on with to its end."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "small.toml").write_text(f'{SMALL_BUT_WHOLE}\n[engine]\nname = "vllm"\npython = "{PYTHON}"\n')
    command = ["run", str(folder / "small.toml"), "--out", str(folder / "run"), "--quiet"]
    ask, traces = Process.ask, folder / "run" / "traces.jsonl"

    def killed(process: Process, message):
        if traces.exists() and traces.read_bytes().count(b"\n") > 2:
            os.kill(process.child.pid, signal.SIGKILL)
        return ask(process, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "ask", killed)
        assert cli.main(command) == 1
    before = traces.read_bytes()
    assert 2 < before.count(b"\n") < 40, "it was killed in the middle"
    assert cli.main(command) == 0
    assert set(before.splitlines()) < set(traces.read_bytes().splitlines()), "what was finished stays as it was"
    return folder / "run"


@pytest.fixture(scope="module")
def finished(interrupted) -> Run:
    return Run.load(interrupted)


def test_a_run_whose_vllm_is_killed_goes_on_and_says_whose_samples_it_has(finished):
    warnings = json.loads((finished.folder.path / "manifest.json").read_text())
    assert (warnings["engine"], warnings["versions"]["vllm"]) == ("vllm", "0.32.0")
    assert any("samples are drawn by vllm 0.32.0" in said for said in finished.folder.noted("warnings", "trace", []))
    assert (finished.folder.path / "report.html").exists()


def test_its_greedy_traces_and_base_answers_are_those_of_transformers(finished, mended):
    ours, theirs = finished.folder, Run.load(mended).folder
    greedy = [{pair.problem: pair.greedy for pair in of.read("traces.jsonl", TracePair)} for of in (ours, theirs)]
    assert greedy[0] == greedy[1]
    base = [{s.problem: s for s in of.read("scores.jsonl", Score) if s.model == "base"} for of in (ours, theirs)]
    assert base[0] == base[1]


def test_its_updated_answers_are_those_of_transformers_with_its_update(finished, bundled):
    scores = [s for s in finished.folder.read("scores.jsonl", Score) if s.model == "updated"]
    problems = {p.id: p for p in finished.problems}
    delta = Delta.load(finished.folder.final_delta(), bundled)
    with delta.active(bundled):
        wanted = answer(
            Transformers(bundled.network), finished.prompter, [problems[s.problem] for s in scores], model="updated",
            max_new_tokens=finished.config.answer_limit.tokens, slots=16,
        )  # fmt: skip
    assert {s.problem: s.text for s in scores} == {s.problem: s.text for s in wanted}


def test_its_pivots_are_exact_given_its_traces(finished, bundled):
    traces = finished.folder.read("traces.jsonl", TracePair)
    pivots = finished.folder.read("pivots.jsonl", Pivot)
    assert pivots
    found = {p.problem for p in pivots}
    pairs = [pair for pair in traces if pair.problem in found]
    wanted = search_pivots(
        Transformers(bundled.network), finished.prompter, pairs, {p.id: p for p in finished.problems},
        finished.config.pivots, max_new_tokens=finished.config.traces.max_new_tokens, slots=16,
    )  # fmt: skip
    assert {p.problem: replace(p, on_slip=None) for p in pivots} == {
        p.problem: p for p in wanted
    }  # as of the diagnosis


def test_in_16_bits_the_loss_of_rounding_is_said_once_and_a_dead_engine_starts_anew(capsys):
    model = open_model("bundled", dtype="bfloat16", device="cpu", engine=VLLM)
    delta = Delta.zeros(model, model.components.rows(torch.arange(model.components.size) % 9 == 0))
    for rows in delta.weights.values():
        rows.values.fill_(1e-5)

    def write():
        row = Row(Text((7, 8, 9)), 4)
        model.engine.write([row], slots=2, end_tokens=model.end_tokens)
        return row.tokens

    base = write()
    with model.engine.changed(delta):
        write()
    os.kill(model.engine.process.child.pid, signal.SIGKILL)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConnectionError, match="of vLLM was killed by SIGKILL"):
        write()
    with model.engine.changed(delta):
        write()
    assert write() == base
    model.engine.close()
    said = capsys.readouterr().err
    assert said.count("engine.updates=lora keeps it apart") == 1
    assert "vLLM rounds its weights to bfloat16" in said


def test_what_vllm_cannot_do_is_an_error_with_a_remedy(bundled, tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "model")
    model = open_model(str(tmp_path / "model"), device="cpu", engine={**VLLM, "updates": "lora"})
    every = Delta.zeros(model, model.components.rows(torch.ones(model.components.size, dtype=torch.bool)))
    too_large = pytest.raises(InputError, match=r"adapter of rank 640, .* ranks up to 512; set engine.updates=weights")
    with too_large, model.engine.changed(every):
        pytest.fail("it cannot be put on")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["NoneForCausalLM"]}))
    with pytest.raises(InputError, match=r"vLLM does not take .*NoneForCausalLM"):
        model.engine.write([Row(Text((7, 8, 9)), 4)], slots=2, end_tokens=model.end_tokens)
    assert model.engine.process is None  # pyright: ignore[reportAttributeAccessIssue]
