"""The search for a density in a run folder: trials are kept until the stage is done, and a killed search goes on."""

import json
from typing import Any

import pytest
from conftest import random_pivots

import cca.run.stages.circuit as stage
from cca.errors import InputError
from cca.folder import RunFolder
from cca.io import write_text
from cca.method.circuit import Circuit
from cca.run.config import dump_toml, load_config
from cca.run.run import Run

SETTINGS = ("circuit.epochs=4", "circuit.learning_rate=0.3", "circuit.batch=4", "circuit.patience=9.0")


def start(folder, loaded, *settings: str) -> Run:
    config = load_config(None, (*SETTINGS, *settings))
    run = Run(RunFolder.create(folder, dump_toml(config)), config)
    run.use(loaded)
    write_text(run.folder.file("problems.jsonl"), "")
    run.folder.write("pivots.jsonl", random_pivots(12, 2000))
    return run


def sweep(run: Run) -> list[dict]:
    return [json.loads(line) for line in run.folder.file("sweep.jsonl").read_text().splitlines()]


def test_the_trial_nearest_to_the_target_becomes_the_circuit(tmp_path, bundled):
    run = start(tmp_path / "run", bundled, "circuit.target_density=0.2", "circuit.lambda=0.001")
    stage.work(run)
    trials = sweep(run)
    assert len(trials) > 1
    best = min(trials, key=lambda t: abs(t["density"] - 0.2))
    assert Circuit.load(run.folder.file("circuit.safetensors")).density == pytest.approx(best["density"])
    assert run.folder.manifest["lambda"] == best["lambda"]


def test_a_killed_search_does_no_finished_trial_again_and_ends_alike(tmp_path, bundled, monkeypatch):
    settings = ("circuit.target_density=0.2", "circuit.lambda=0.001")
    whole = start(tmp_path / "whole", bundled, *settings)
    stage.work(whole)
    killed, learn, tried = start(tmp_path / "killed", bundled, *settings), stage._learn, []

    def once(run: Run, penalty: float, *pivots: Any) -> Circuit:
        tried.append(penalty)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return learn(run, penalty, *pivots)

    monkeypatch.setattr(stage, "_learn", once)
    with pytest.raises(KeyboardInterrupt):
        stage.work(killed)
    with killed.folder.file("sweep.jsonl").open("a") as file:
        file.write('{"lambda": 0.0')  # as a kill may leave it
    stage.work(killed)
    assert tried[0] not in tried[1:]
    assert sweep(killed) == sweep(whole)
    both = [Circuit.load(run.folder.file("circuit.safetensors")).gates for run in (whole, killed)]
    assert both[0].equal(both[1])
    stage.work(killed)  # killed before the stage was marked as finished
    assert sweep(killed) == sweep(whole)


def test_an_empty_circuit_names_a_lower_lambda_and_leaves_nothing_behind(tmp_path, bundled):
    run = start(tmp_path / "run", bundled, "circuit.lambda=100.0")
    with pytest.raises(InputError, match=r"lambda 100 leaves an empty circuit; .*circuit\.lambda=50"):
        stage.work(run)
    assert not list(run.folder.path.glob("circuit*")) and not run.folder.file("sweep.jsonl").exists()
