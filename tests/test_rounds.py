"""Further rounds build on what the rounds before left, and stop when validation does."""

import json

import pytest
import torch
from cca.run.pipeline import ARTIFACTS
from cca.run.stages.rounds import further_rounds
from cca.run.workspace import Workspace
from safetensors.torch import save_file

from cca import cli
from cca.errors import InputError
from cca.folder import RunFolder, write_text
from cca.method.circuit import Circuit
from cca.model.delta import Delta
from cca.model.open import open_model
from cca.model.rows import Rows
from cca.records import Metric, TracePair
from cca.run.config import load_config

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
TWO_ROUNDS = """
seed = 3
rounds = 2
[problems]
templates = [57, 62]
train = 6
validation = 4
test = 2
held_out = 0.0
[traces]
samples = 4
skip_solved = false
[circuit]
lambda = 0.02
learning_rate = 0.3
epochs = 4
[update]
steps = 1
validate_every = 1
[evaluation]
transfer = []
retention = []
"""


@pytest.fixture(scope="module")
def loaded():
    return open_model("bundled", "float32", "cpu")


def finished_round(run: Workspace, gain: float) -> None:
    """What the stages of one round leave in a run folder: an update of row `number` that gains so much accuracy."""
    folder = run.folder
    number = int(folder.path.name.removeprefix("round-")) if folder.path.name.startswith("round-") else 1
    Delta({WEIGHT: Rows(torch.tensor([number]), torch.full((1, 192), 0.5))}).save(folder.file("delta.safetensors"))
    metrics = [Metric(0, None, 0, 0, 0.5, 10), Metric(2, 1.0, 0, 0, 0.5 + gain, 10)]
    write_text(folder.file("metrics.jsonl"), "".join(m.line() + "\n" for m in metrics))
    Circuit(torch.ones(4), torch.ones(1, 4), torch.ones(1), torch.ones(1, 4, dtype=torch.int64), "").save(
        folder.file("circuit.safetensors")
    )
    write_text(folder.file("pivots.jsonl"), "")
    write_text(folder.file("problems.jsonl"), "")


def start(tmp_path, loaded, rounds: int) -> Workspace:
    config = load_config(None, (f"rounds={rounds}",))
    run = Workspace(RunFolder.create(tmp_path / "run", config), config)
    run.use(loaded)
    finished_round(run, 0.1)
    return run


def changed_rows(model, base) -> list[int]:
    return (model.get_parameter(WEIGHT) - base).abs().sum(1).nonzero().flatten().tolist()


def test_each_round_sees_the_model_as_the_rounds_before_left_it_and_the_deltas_add_up(tmp_path, loaded):
    run, base, seen = start(tmp_path, loaded, 4), loaded.network.get_parameter(WEIGHT).clone(), []

    def job(part: Workspace) -> None:
        seen.append(changed_rows(part.loaded.network, base))
        finished_round(part, 0.1 if len(seen) < 3 else 0.0)

    further_rounds(run, {"update": job})
    assert seen == [[1], [1, 2], [1, 2, 3]]
    assert changed_rows(loaded.network, base) == []
    total = Delta.load(run.folder.final_delta())
    assert total.weights[WEIGHT].index.tolist() == [1, 2, 3], "a round that did not help leaves nothing"
    lines = [json.loads(line) for line in run.folder.file("rounds.jsonl").read_text().splitlines()]
    assert [(line["round"], line["best_step"]) for line in lines] == [(1, 2), (2, 2), (3, 2), (4, 0)]


def test_a_first_round_that_does_not_help_is_the_last(tmp_path, loaded):
    run = start(tmp_path, loaded, 3)
    finished_round(run, 0.0)
    further_rounds(run, {"update": lambda _: pytest.fail("no further round is due")})
    assert run.folder.final_delta().name == "delta.safetensors"


def test_a_round_that_finds_nothing_to_learn_from_ends_the_rounds_with_its_reason(tmp_path, loaded, capsys):
    run = start(tmp_path, loaded, 3)

    def job(_: Workspace) -> None:
        raise InputError("no problem gave a pivot")

    further_rounds(run, {"pivots": job})
    assert "round 1 was the last: no problem gave a pivot" in capsys.readouterr().err
    assert Delta.load(run.folder.final_delta()).row_count == 1


def test_a_killed_round_goes_on_where_it_was(tmp_path, loaded):
    run, done = start(tmp_path, loaded, 2), []

    def trace(part: Workspace) -> None:
        done.append("trace")
        write_text(part.folder.file("problems.jsonl"), "")

    def killed(_: Workspace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        further_rounds(run, {"trace": trace, "update": killed})
    further_rounds(run, {"trace": trace, "update": lambda part: finished_round(part, 0.1)})
    assert done == ["trace"], "a finished stage of a round is not done again"
    assert Delta.load(run.folder.final_delta()).row_count == 2


def test_the_second_round_of_a_run_traces_the_updated_model_and_leaves_no_scratch_files(tmp_path, capsys):
    config, run = tmp_path / "two.toml", tmp_path / "run"
    config.write_text(TWO_ROUNDS)
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 0
    first, second = (json.loads(line)["validation"] for line in (run / "rounds.jsonl").read_text().splitlines())
    assert first["base"] < first["updated"] == second["base"]
    pairs = [p for p in RunFolder.open(run / "round-2").read("traces.jsonl", TracePair) if p.split == "validation"]
    assert sum(p.greedy.correct for p in pairs) / len(pairs) == second["base"]
    kept = {name for stage in ("trace", "pivots", "circuit", "update") for name in ARTIFACTS[stage]}
    assert {file.name for file in (run / "round-2").iterdir()} <= kept | {"config.toml", "manifest.json"}
    shown = capsys.readouterr().err
    assert "Update: 2 rounds" in shown
    assert f"{first['base']:.1%} -> {first['updated']:.1%} -> {second['updated']:.1%}" in shown


def test_rounds_are_for_rows_alone():
    with pytest.raises(InputError, match=r"rounds is 2, but update\.arm bias has one"):
        load_config(None, ("rounds=2", 'update.arm="bias"'))


def test_a_saved_delta_without_rows_is_read_as_nothing(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    assert Delta.load(tmp_path / "empty.safetensors").row_count == 0
