"""Further rounds build on what the rounds before left, and stop when validation does."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from cca import cli
from cca.errors import InputError, NothingToLearnError
from cca.folder import RunFolder
from cca.method.rounds import Round, further_rounds
from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.open import open_model
from cca.model.rows import Rows
from cca.records import TracePair
from cca.run.config import load_config
from cca.run.stages import OF_A_ROUND, STAGES

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
skip_solved = 0
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


@pytest.fixture
def model():
    return open_model("bundled", device="cpu")


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """A folder with a config of two rounds, and its run, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "two.toml").write_text(TWO_ROUNDS)
    assert cli.main(["run", str(folder / "two.toml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def change(row: int) -> Delta:
    return Delta({WEIGHT: Rows(torch.tensor([row]), torch.full((1, 192), 0.5))})


def changed_rows(model, base) -> list[int]:
    return (model.network.get_parameter(WEIGHT) - base).abs().sum(1).nonzero().flatten().tolist()


def test_each_round_sees_the_model_as_the_rounds_before_left_it_and_the_deltas_add_up(model):
    base, seen = model.network.get_parameter(WEIGHT).clone(), []

    def again(number: int, total: Delta) -> Round:
        seen.append(changed_rows(model, base))
        assert total.weights[WEIGHT].index.tolist() == seen[-1]
        return Round(change(number), 2 if len(seen) < 3 else 0)

    total, lacking = further_rounds(model, Round(change(1), 2), again, 4)
    assert seen == [[1], [1, 2], [1, 2, 3]]
    assert changed_rows(model, base) == []
    assert total.weights[WEIGHT].index.tolist() == [1, 2, 3], "a round that did not help leaves nothing"
    assert lacking is None


def test_an_engine_with_a_model_of_its_own_is_told_of_the_rounds_before(model):
    put_on: list[int] = []

    class Apart(Transformers):
        apart = True

        @contextmanager
        def changed(self, intervention):
            put_on.append(intervention.row_count)
            yield
            put_on.append(0)

    told = replace(model, engine=Apart(model.network))
    further_rounds(told, Round(change(1), 2), lambda number, total: Round(change(number), 4 - number), 4)
    assert put_on == [1, 0, 2, 0, 3, 0]


def test_a_first_round_that_does_not_help_is_the_last(model):
    never = lambda number, total: pytest.fail("no further round is due")
    total, lacking = further_rounds(model, Round(change(1), 0), never, 3)
    assert (total.row_count, lacking) == (1, None)


def test_a_round_that_finds_nothing_to_learn_from_ends_the_rounds_with_its_reason(model):
    def again(number: int, total: Delta) -> Round:
        raise NothingToLearnError("no problem gave a pivot")

    total, lacking = further_rounds(model, Round(change(1), 2), again, 3)
    assert lacking == "round 1 was the last: no problem gave a pivot"
    assert total.row_count == 1


def test_any_other_bad_input_in_a_round_is_no_reason_to_stop_quietly(model):
    def again(number: int, total: Delta) -> Round:
        raise InputError("traces.jsonl was changed")

    with pytest.raises(InputError, match="was changed"):
        further_rounds(model, Round(change(1), 2), again, 3)


def test_a_killed_round_goes_on_where_it_was_and_a_changed_file_of_it_is_refused(
    two_rounds, tmp_path, monkeypatch, capsys
):
    config, run, whole = two_rounds / "two.toml", tmp_path / "run", two_rounds / "run"
    done, finish = [], RunFolder.finish

    def killed(self, stage, artifacts) -> None:
        done.append((self.path.name, stage))
        if done[-1] == ("round-2", "circuit"):
            raise KeyboardInterrupt
        finish(self, stage, artifacts)

    monkeypatch.setattr(RunFolder, "finish", killed)
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 130
    monkeypatch.undo()
    traces = (run / "round-2" / "traces.jsonl").read_text()
    (run / "round-2" / "traces.jsonl").write_text(traces + "\n")
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 2
    assert "traces.jsonl was changed" in capsys.readouterr().err
    (run / "round-2" / "traces.jsonl").write_text(traces)
    done.clear()
    monkeypatch.setattr(RunFolder, "finish", lambda *a: (done.append((a[0].path.name, a[1])), finish(*a)))
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 0
    assert ("round-2", "pivots") not in done, "a finished stage of a round is not done again"
    for name in ("total.safetensors", "rounds.jsonl", "scores.jsonl", "summary.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_the_second_round_of_a_run_traces_the_updated_model_and_leaves_no_scratch_files(two_rounds, capsys):
    config, run = two_rounds / "two.toml", two_rounds / "run"
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 0
    first, second = (json.loads(line)["validation"] for line in (run / "rounds.jsonl").read_text().splitlines())
    assert first["base"] < first["updated"] == second["base"]
    pairs = [p for p in RunFolder.open(run / "round-2").read("traces.jsonl", TracePair) if p.split == "validation"]
    assert sum(p.greedy.correct for p in pairs) / len(pairs) == second["base"]
    kept = {name for stage in OF_A_ROUND for name in STAGES[stage].artifacts}
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
