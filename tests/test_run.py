"""The whole command: a small run of the bundled model, interrupted in every place, and a folder that is not right."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import as_written, refuse

from cca import cli
from cca.folder import RunFolder
from cca.io import checksum
from cca.model.bundled import BUNDLED
from cca.records import Pivot, Problem, TracePair, WithoutPivot
from cca.run.config import dump_toml, load_config
from cca.run.run import Run
from cca.run.stages import MEASURED, STAGES
from cca.run.stages.trace import check_stop
from cca.show.words import what_was_kept

SMALL = """
seed = 3
[problems]
templates = [16, 43, 39, 72, 31]
train = 3
validation = 1
test = 2
held_out = 0.2
[traces]
batch = 8
skip_solved = 0
[circuit]
lambda = 0.0
learning_rate = 0.3
epochs = 4
patience = 50.0
[update]
learning_rate = 0.01
steps = 3
validate_every = 2
validate_at = []
[evaluation]
transfer = ["chain_sum"]
retention = ["leg_counting"]
per_skill = 2
batch = 8
"""
DETERMINISTIC = [
    name
    for stage in STAGES.values()
    for name in stage.artifacts
    if name not in stage.optional and name != "report.html"  # which tells the seconds of every stage
]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def whole(config_path, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["run", str(config_path), "--out", str(path), "--quiet"]) == 0
    return path


def results(path: Path) -> dict[str, str]:
    return {name: checksum(path / name) for name in DETERMINISTIC}


def plain_summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_a_run_writes_the_folder_and_the_summary_that_the_docs_name(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert {
        "model",
        "method",
        "pivot_method",
        "pivots",
        "circuit",
        "update",
        "target",
        "held_out_templates",
        "transfer",
        "retention",
        "problems",
        "text_drift",
        "rounds",
        "diagnosis",
    } <= set(summary)
    assert {"problems", "traces", "found", "yield", "on_slip"} <= set(summary["pivots"])
    assert {"components", "selected", "density", "by_kind"} <= set(summary["circuit"])
    assert {"best_step", "rows", "parameters"} <= set(summary["update"])
    sets = (*summary["transfer"].values(), *summary["retention"].values())
    assert len(sets) == 2
    for part in (summary["target"], summary["held_out_templates"], *sets):
        assert {"n", "base", "updated", "difference", "ci95", "sign_flip_p", "units", "drift"} <= set(part)
        assert "minimum_detectable_effect" in part
    assert set(Run.load(whole).summary.seconds) == {*MEASURED, "total"}
    assert (summary["target"]["n"], summary["held_out_templates"]["n"]) == (8, 2)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert set(manifest["stages"]) == set(STAGES)
    assert {"device", "dtype", "seed", "versions", "revision"} <= set(manifest)
    assert not list(whole.glob("*.partial*")), "scratch files must go when their stage is finished"


def test_every_traced_problem_has_a_pivot_or_a_reason_for_having_none(whole):
    folder = RunFolder.open(whole)
    traced = sorted(pair.problem for pair in folder.read("traces.jsonl", TracePair))
    found = [p.problem for p in folder.read("pivots.jsonl", Pivot) if p.method == "branching"]
    without = folder.read("without_pivot.jsonl", WithoutPivot)
    assert sorted([*found, *(r.problem for r in without)]) == traced
    assert {r.reason for r in without} <= {"no_opposite", "template_solved"}


def test_a_second_call_does_nothing_again(whole, config_path):
    before = {name: (whole / name).stat().st_mtime_ns for name in DETERMINISTIC}
    assert cli.main(["run", str(config_path), "--out", str(whole), "--quiet"]) == 0
    assert {name: (whole / name).stat().st_mtime_ns for name in DETERMINISTIC} == before


def test_single_stages_in_order_equal_the_whole_run(whole, config_path, tmp_path):
    path = tmp_path / "stages"
    for stage in STAGES:
        extra = ["--config", str(config_path)] if stage == "trace" else []
        assert cli.main([stage, str(path), "--quiet", *extra]) == 0
    assert results(path) == results(whole)
    assert plain_summary(path) == plain_summary(whole)


def test_a_run_interrupted_before_each_stage_is_finished_resumes_to_the_same_result(
    whole, config_path, tmp_path, monkeypatch
):
    path, command = tmp_path / "run", ["run", str(config_path), "--out", str(tmp_path / "run"), "--quiet"]
    finish, due = RunFolder.finish, list(STAGES)

    def interrupted(self, name, artifacts):
        if name in due:
            due.remove(name)
            raise KeyboardInterrupt
        finish(self, name, artifacts)

    monkeypatch.setattr(RunFolder, "finish", interrupted)
    for number in range(len(STAGES)):
        assert cli.main(command) == 130
        assert list(RunFolder.open(path).manifest["stages"]) == list(STAGES)[:number]
    assert cli.main(command) == 0
    assert results(path) == results(whole)
    assert plain_summary(path) == plain_summary(whole)


def test_a_run_killed_in_the_middle_of_stage_1_resumes_without_doing_finished_problems_again(
    whole, config_path, tmp_path, monkeypatch
):
    from cca.run.stages import trace

    path = tmp_path / "run"
    command = [sys.executable, "-m", "cca.cli", "run", str(config_path), "--out", str(path), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    traces = path / "traces.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if traces.exists() and traces.read_bytes().count(b"\n"):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = traces.read_bytes()
    assert 0 < kept.count(b"\n") < 16, "the kill came too late to test anything"
    with traces.open("ab") as file:  # a kill may also cut a line
        file.write(b'{"problem":"16-')
    work, traced = trace.trace_pairs, list[str]()

    def watched(network, prompter, problems, *more):
        traced.extend(problem.id for problem in problems)
        work(network, prompter, problems, *more)

    monkeypatch.setattr(trace, "trace_pairs", watched)
    assert cli.main(["trace", str(path), "--quiet"]) == 0
    finished = [json.loads(line)["problem"] for line in kept.splitlines()]
    assert len({*finished, *traced}) == len(finished) + len(traced) == 16
    assert set(kept.splitlines()) <= set(traces.read_bytes().splitlines())
    assert traces.read_bytes() == (whole / "traces.jsonl").read_bytes()


def test_redo_forgets_a_stage_and_what_follows_and_what_an_automatic_learning_rate_came_to(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "run")
    assert cli.main(["update", str(path), "--redo", "--quiet", "--set", "update.learning_rate=auto"]) == 0
    folder = RunFolder.open(path)
    assert folder.finished("update")
    assert not folder.finished("evaluate")
    assert not (path / "summary.json").exists()
    assert cli.main(["evaluate", str(path), "--quiet"]) == 0
    summary = Run.load(path).summary
    found = summary.update.learning_rate
    assert found is not None and found > 0
    said = what_was_kept(replace(summary, update=replace(summary.update, best_step=1)))
    assert f"parameters, learning rate {found:.2g} (auto); " in said
    assert cli.main(["update", str(path), "--redo", "--quiet", "--set", "update.learning_rate=0.01"]) == 0
    assert cli.main(["evaluate", str(path), "--quiet"]) == 0
    assert plain_summary(path) == plain_summary(whole)


def test_a_changed_artifact_is_refused_and_named(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "run")
    with (path / "traces.jsonl").open("a") as file:
        file.write("\n")
    assert cli.main(["pivots", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "traces.jsonl was changed" in error
    assert f"cca trace {path} --redo" in error
    assert cli.main(["trace", str(path), "--redo", "--quiet"]) == 0
    assert (path / "traces.jsonl").read_text() == (whole / "traces.jsonl").read_text()


def test_json_goes_to_stdout_alone(whole, config_path, capfd):
    assert cli.main(["run", str(config_path), "--out", str(whole), "--json"]) == 0
    out, _ = capfd.readouterr()
    assert json.loads(out)["circuit"]["components"] > 0


# ---- bad input ----


def test_a_config_of_another_run_in_the_same_folder_is_refused(whole, config_path, capsys):
    arguments = ["run", str(config_path), "--out", str(whole), "--set", "seed=4"]
    refuse(arguments, capsys, "another config", "--out")


def test_a_run_folder_of_an_earlier_version_says_what_to_do(whole, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["format"]  # as version 0.1 wrote it
    (old / "manifest.json").write_text(json.dumps(manifest))
    as_written(old)
    for command in (["show", "scores", str(old)], ["evaluate", str(old)], ["run", "--out", str(old)]):
        refuse(command, capsys, "an earlier version of cca", "report.html", f"cca run {old / 'config.toml'} --out NEW")


def test_a_file_of_a_run_that_cannot_be_read_is_named_with_its_line(whole, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    lines = (broken / "scores.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"correct":', '"right":')
    (broken / "scores.jsonl").write_text("\n".join(lines) + "\n")
    refuse(["show", "problem", str(broken), "16-0"], capsys, "scores.jsonl, line 2,", "correct")


def test_no_problems_are_refused(tmp_path, capsys, config_path):
    for key in ("problems.train=0", "problems.test=0", "problems.validation=0", "problems.templates=[]"):
        name = key.split("=")[0].replace(".", "-")
        refuse(["run", "--set", key, "--out", str(tmp_path / name)], capsys, "problems.")


def test_a_stage_before_its_turn_names_the_one_that_is_missing(tmp_path, capsys, config_path):
    RunFolder.create(tmp_path / "r", dump_toml(load_config(config_path)))
    refuse(["circuit", str(tmp_path / "r")], capsys, "needs trace first")


def test_an_empty_circuit_is_refused_with_the_remedy(tmp_path, capsys, config_path):
    path = tmp_path / "r"
    arguments = ["run", str(config_path), "--out", str(path), "--quiet"]
    arguments += ["--set", "circuit.lambda=100", "--set", "circuit.learning_rate=0.9"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "empty circuit" in error
    assert "circuit.lambda=50" in error
    assert RunFolder.open(path).finished("pivots"), "finished stages are kept"


def test_a_dense_circuit_gives_a_warning(whole):
    diagnosis = json.loads((whole / "summary.json").read_text())["diagnosis"]
    (density,) = [found for found in diagnosis if found["check"] == "circuit density"]
    assert not density["fine"]
    assert "circuit.target_density=0.016" in density["advice"]


def test_a_run_reads_its_config_from_the_folder(whole, config_path):
    assert Run.resume(whole).config == load_config(config_path)


# ---- other models, and what becomes of the result ----


def _as_llama(folder: Path) -> Path:
    """The bundled model's weights as a Llama with biases: the same function in another family."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    source = json.loads((BUNDLED / "config.json").read_text())
    kept = {k: v for k, v in source.items() if k not in ("architectures", "model_type", "layer_types", "dtype")}
    model: Any = LlamaForCausalLM(LlamaConfig(**kept, attention_bias=True))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    weights = load_file(BUNDLED / "model.safetensors")
    left = model.load_state_dict({name: w.float() for name, w in weights.items()}, strict=False)
    assert not left.unexpected_keys
    model.tie_weights()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return folder


def test_the_same_weights_as_another_family_give_the_same_run(whole, config_path, tmp_path):
    from cca.method.circuit import Circuit

    path = tmp_path / "run"
    folder = _as_llama(tmp_path / "llama")
    assert cli.main(["run", str(config_path), "--model", str(folder), "--out", str(path), "--quiet"]) == 0
    for name in ("problems.jsonl", "traces.jsonl", "scores.jsonl"):
        assert (path / name).read_text() == (whole / name).read_text()
    ours, theirs = (
        [(p.method, p.prefix, p.desired, p.undesired) for p in RunFolder.open(run).read("pivots.jsonl", Pivot)]
        for run in (path, whole)
    )
    assert ours == theirs
    gates = [Circuit.load(run / "circuit.safetensors").gates for run in (path, whole)]
    assert (gates[0] - gates[1]).abs().max() < 1e-4


def test_layers_that_accelerate_places_give_the_same_run(whole, config_path, tmp_path):
    path = tmp_path / "run"
    arguments = ["run", str(config_path), "--out", str(path), "--quiet", "--set", 'model.device_map="auto"']
    assert cli.main([*arguments, "--set", "update.gradient_checkpointing=true"]) == 0
    assert (path / "traces.jsonl").read_text() == (whole / "traces.jsonl").read_text()
    assert (path / "scores.jsonl").read_text() == (whole / "scores.jsonl").read_text()


def test_merge_writes_an_ordinary_model_that_answers_like_the_updated_one(whole, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    from cca.model.delta import Delta
    from cca.model.open import open_model

    assert cli.main(["merge", str(whole), str(tmp_path / "merged")]) == 0
    assert "0.0% of the changed parameters rounded to nothing" in capsys.readouterr().err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = open_model("bundled", device="cpu").network
    ids = torch.tensor([[5, 9, 30, 77]])
    with Delta.load(whole / "delta.safetensors").applied(base):
        assert torch.equal(merged(input_ids=ids).logits, base(input_ids=ids).logits)
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert cli.main(["merge", str(whole), str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["merge", str(whole), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "merged into bfloat16" in capsys.readouterr().err


def test_merge_of_an_unfinished_run_names_the_way_to_finish_it(config_path, tmp_path, capsys):
    RunFolder.create(tmp_path / "r", dump_toml(load_config(config_path)))
    refuse(["merge", str(tmp_path / "r"), str(tmp_path / "m")], capsys, "no finished update", "cca run --out")


def test_a_folder_in_which_nothing_was_begun_takes_another_config(config_path, tmp_path, capsys):
    refuse(
        ["run", str(config_path), "--out", str(tmp_path / "r"), "--set", "traces.max_new_tokens=9999"],
        capsys,
        "traces.max_new_tokens is 9999",
    )
    RunFolder.create(tmp_path / "r", dump_toml(load_config(config_path)))


def test_a_run_in_sixteen_bits_ends_like_one_in_thirty_two(whole, config_path, tmp_path):
    path = tmp_path / "run"
    target_alone = ["--set", "evaluation.transfer=[]", "--set", "evaluation.retention=[]"]
    arguments = ["run", str(config_path), "--out", str(path), "--quiet", *target_alone]
    assert cli.main([*arguments, "--set", 'model.dtype="bfloat16"']) == 0
    assert json.loads((path / "manifest.json").read_text())["dtype"] == "bfloat16"
    ours, theirs = plain_summary(path), plain_summary(whole)
    assert ours["pivots"]["problems"] == theirs["pivots"]["problems"]
    assert abs(ours["target"]["base"] - theirs["target"]["base"]) <= 0.25
    assert ours["update"]["rows"] > 0


def test_stop_strings_that_end_worked_solutions_and_every_other_warning_are_kept(tmp_path, capsys):
    solved = [Problem(f"p-{i}", "p", 0, "train", f"{i}?", "3", f"1 + {i} = 3.0.\n#### 3") for i in range(3)]
    config = load_config(None, ('prompt.stop=["=", "####"]',))
    run = Run.start(tmp_path / "run", config)
    run.warn("trace", "something else")
    check_stop(run, solved)
    check_stop(run, solved)
    said = capsys.readouterr().err
    assert "prompt.stop ends the own solutions of 3 of 3 problems before their answer" in said
    assert "the first is p-0" in said
    first, second = run.folder.noted("warnings", "trace")
    assert first == "something else"
    assert second.startswith("prompt.stop ends")
    for stop in ("####", "\nQ:"):  # the result stands before it, or it is nowhere
        fine = Run.start(tmp_path / repr(stop), load_config(None, (f"prompt.stop=[{json.dumps(stop)}]",)))
        check_stop(fine, solved)
        assert fine.folder.noted("warnings", "trace") is None
