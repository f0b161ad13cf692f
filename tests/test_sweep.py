"""The search for a density in a run folder: trials are kept until the stage is done, and a killed search goes on."""

import json

import pytest
from conftest import random_pivots

import cca.run.stages.circuit as job
from cca.errors import InputError
from cca.folder import RunFolder, write_text
from cca.method.circuit import Circuit
from cca.run.config import load_config
from cca.run.workspace import Workspace

SETTINGS = ("circuit.epochs=4", "circuit.learning_rate=0.3", "circuit.batch=4", "circuit.patience=9.0")


def start(folder, loaded, *settings: str) -> Workspace:
    config = load_config(None, (*SETTINGS, *settings))
    run = Workspace(RunFolder.create(folder, config), config)
    run.use(loaded)
    write_text(run.folder.file("problems.jsonl"), "")
    write_text(run.folder.file("pivots.jsonl"), "".join(p.line() + "\n" for p in random_pivots(12, 2000)))
    return run


def sweep(run: Workspace) -> list[dict]:
    return [json.loads(line) for line in run.folder.file("sweep.jsonl").read_text().splitlines()]


def test_the_trial_nearest_to_the_target_becomes_the_circuit(tmp_path, bundled):
    run = start(tmp_path / "run", bundled, "circuit.target_density=0.2", "circuit.lambda=0.001")
    job.circuit(run)
    trials = sweep(run)
    assert len(trials) > 1
    best = min(trials, key=lambda t: abs(t["density"] - 0.2))
    assert Circuit.load(run.folder.file("circuit.safetensors")).density == pytest.approx(best["density"])
    assert run.folder.manifest["lambda"] == best["lambda"]


def test_a_killed_search_does_no_finished_trial_again_and_ends_alike(tmp_path, bundled, monkeypatch):
    settings = ("circuit.target_density=0.2", "circuit.lambda=0.001")
    whole = start(tmp_path / "whole", bundled, *settings)
    job.circuit(whole)
    killed, learn, tried = start(tmp_path / "killed", bundled, *settings), job._learn, []

    def once(run: Workspace, penalty: float) -> Circuit:
        tried.append(penalty)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return learn(run, penalty)

    monkeypatch.setattr(job, "_learn", once)
    with pytest.raises(KeyboardInterrupt):
        job.circuit(killed)
    with killed.folder.file("sweep.jsonl").open("a") as file:
        file.write('{"lambda": 0.0')  # as a kill may leave it
    job.circuit(killed)
    assert tried[0] not in tried[1:]
    assert sweep(killed) == sweep(whole)
    both = [Circuit.load(run.folder.file("circuit.safetensors")).gates for run in (whole, killed)]
    assert both[0].equal(both[1])
    job.circuit(killed)  # killed before the stage was marked as finished
    assert sweep(killed) == sweep(whole)


def test_an_empty_circuit_names_a_lower_lambda_and_leaves_nothing_behind(tmp_path, bundled):
    run = start(tmp_path / "run", bundled, "circuit.lambda=100.0")
    with pytest.raises(InputError, match=r"lambda 100 leaves an empty circuit; .*circuit\.lambda=50"):
        job.circuit(run)
    assert not list(run.folder.path.glob("circuit*")) and not run.folder.file("sweep.jsonl").exists()
