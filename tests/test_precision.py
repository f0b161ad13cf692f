"""``model.dtype = "auto"`` is measured once: where a run computes, before it begins, and never again in that run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import as_written

from cca import cli
from cca.model import precision
from cca.model.checks import check_model
from cca.model.open import open_model
from cca.model.precision import choose_dtype, main_device
from cca.run import compare
from cca.run.config import load_config
from cca.run.run import Run
from cca.show.progress import Display

SETTINGS = """
[model]
dtype = "auto"
[problems]
templates = [12, 62]
train = 2
validation = 1
test = 1
held_out = 0.0
[traces]
max_new_tokens = 60
samples = 1
[circuit]
lambda = 0.1
learning_rate = 0.1
epochs = 10
[update]
steps = 1
validate_every = 1
[evaluation]
transfer = []
retention = []
drift_problems = 1
"""


def measured(monkeypatch: pytest.MonkeyPatch, faster: float, busy: bool = False) -> list[Any]:
    """Let a product in bfloat16 be `faster` than in float32, on a machine that may be busy; returns what is timed."""
    timed: list[Any] = []

    def seconds(rows: Any, weight: Any) -> float:
        timed.append((rows.dtype, tuple(rows.shape), tuple(weight.shape)))
        taken = 1.0 if rows.dtype == torch.float32 else 1 / faster
        return taken * (50 if busy and len(timed) % 3 else 1)  # each type is now and then left alone

    monkeypatch.setattr(precision, "_seconds", seconds)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    monkeypatch.setattr(precision, "_REPEATS", 9)
    return timed


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(("faster", "dtype"), [(2.0, "bfloat16"), (1.0, "float32"), (0.1, "float32")])
def test_the_faster_type_is_chosen_however_busy_the_machine_is(faster, dtype, busy, monkeypatch):
    timed = measured(monkeypatch, faster, busy)
    config = check_model("bundled")
    choice = choose_dtype(config, "cpu")
    assert choice.dtype == dtype
    sizes = f"64 x {config.hidden_size} x {config.intermediate_size} on cpu"
    assert choice.why == f"bfloat16 is {faster:.1f} times as fast as float32 in a product of {sizes}"
    assert {shape for _, shape, _ in timed} == {(64, config.hidden_size)}
    assert {shape for *_, shape in timed} == {(config.intermediate_size, config.hidden_size)}
    assert [kind for kind, *_ in timed[:4]] == [torch.float32, torch.bfloat16] * 2, "they take turns"


def test_a_measurement_takes_no_random_numbers_and_little_time():
    before = torch.random.get_rng_state()
    choose_dtype(check_model("bundled"), "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("device", "places", "main"),
    [
        ("auto", None, "cpu"),
        ("cpu", None, "cpu"),
        ("cuda:1", None, "cuda:1"),
        ("auto", "auto", "cpu"),
        ("auto", {"": "disk"}, "cpu"),
        ("auto", {"model": 1, "lm_head": "cpu"}, "cuda:1"),
        ("auto", {"model": "cuda:0"}, "cuda:0"),
    ],
)
def test_it_is_measured_where_the_model_computes(device, places, main, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main_device(device, places) == main


@pytest.mark.parametrize(("faster", "dtype"), [(2.0, torch.bfloat16), (1.0, torch.float32)])
def test_a_model_is_opened_in_the_chosen_type_which_is_said(faster, dtype, monkeypatch, capsys):
    measured(monkeypatch, faster)
    network = open_model("bundled", device="cpu", dtype="auto").network
    assert {weight.dtype for weight in network.parameters()} == {dtype}
    said = capsys.readouterr().err
    name = str(dtype).removeprefix("torch.")
    assert said.startswith(f"model.dtype auto: {name} (bfloat16 is {faster:.1f} times as fast as float32 in a product")
    assert said.count("\n") == 1


def begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has its traces, made where bfloat16 was faster."""
    measured(monkeypatch, 2.0)
    (folder / "run.toml").write_text(SETTINGS)
    with Run.start(folder / "run", load_config(folder / "run.toml"), Display()) as run:
        run.execute(["trace"])
    return folder / "run"


def kept(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_a_run_that_has_begun_keeps_its_type_in_every_stage(tmp_path, monkeypatch, capsys):
    folder = begun(tmp_path, monkeypatch)
    assert kept(folder)["dtype"] == "bfloat16"
    assert 'dtype = "auto"' in (folder / "config.toml").read_text(), "so that another machine may choose again"
    capsys.readouterr()
    assert not measured(monkeypatch, 0.5)
    with Run.resume(folder) as run:
        assert run.model.network.dtype == torch.bfloat16
    assert Run.load(folder).model.network.dtype == torch.bfloat16
    assert kept(folder)["dtype"] == "bfloat16"
    assert "model.dtype auto" not in capsys.readouterr().err, "nothing was measured"


def test_a_run_that_is_done_again_from_its_traces_measures_again(tmp_path, monkeypatch):
    folder = begun(tmp_path, monkeypatch)
    measured(monkeypatch, 0.5)
    with Run.resume(folder, redo="trace") as run:
        assert run.model.network.dtype == torch.float32
    assert kept(folder)["dtype"] == "float32"


def test_a_run_of_a_stated_type_says_it_as_before(tmp_path):
    with Run.start(tmp_path / "run", load_config(None, ["model.dtype=float16"]), Display()) as run:
        assert run.model.network.dtype == torch.float16
    assert kept(tmp_path / "run")["dtype"] == "float16"


def test_the_runs_of_a_comparison_have_one_type(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(SETTINGS)
    plan = compare.plan(tmp_path / "run.toml", (), ("branching", "prefix"), (0, 1), {})
    measured(monkeypatch, 2.0)
    with compare._start(tmp_path / "all", plan, "branching", 0, Display()) as run:
        assert run.model.network.dtype == torch.bfloat16
    measured(monkeypatch, 0.5)
    with compare._start(tmp_path / "all", plan, "branching", 1, Display()) as run:
        assert run.model.network.dtype == torch.bfloat16


def test_a_merged_model_is_of_the_type_that_the_run_had(mended, tmp_path, capsys):
    run = Path(shutil.copytree(mended, tmp_path / "run"))
    config = (run / "config.toml").read_text().replace('dtype = "float32"', 'dtype = "auto"')
    (run / "config.toml").write_text(config)
    (run / "manifest.json").write_text(json.dumps(kept(run) | {"config": config, "dtype": "float16"}))
    as_written(run)
    assert cli.main(["merge", str(run), str(tmp_path / "merged")]) == 0
    assert "merged into float16" in capsys.readouterr().err
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def test_a_plan_reckons_with_the_larger_type_and_says_so(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(SETTINGS)
    found = {}
    for dtype in ("auto", "float32", "bfloat16"):
        asked = ["run", str(tmp_path / "run.toml"), "--set", f"model.dtype={dtype}", "--dry-run"]
        assert cli.main([*asked, "--json"]) == 0
        found[dtype] = json.loads(capsys.readouterr().out)["memory_gib"]
    assert found["auto"]["weights"] == found["float32"]["weights"] > found["bfloat16"]["weights"]
    assert "half as much" in found["auto"]["notes"]["weights"]
    assert found["float32"]["notes"]["weights"] == ""
