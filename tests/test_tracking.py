"""Trackers get a run's figures and change nothing of it; one that fails is left behind."""

import shutil
from pathlib import Path

import pytest

from cca import cli
from cca.records import Metric
from cca.run.run import Run
from cca.run.tracking import TRACKERS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def run(mended, tmp_path) -> Path:
    return Path(shutil.copytree(mended, tmp_path / "run"))


def test_every_validated_step_and_what_the_evaluation_found_arrive_as_they_are_in_the_folder(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = (run / "delta.safetensors").read_bytes()
    assert cli.main(["update", str(run), "--redo", "--tracker", "tensorboard", "--quiet"]) == 0
    assert (run / "delta.safetensors").read_bytes() == before
    first = EventAccumulator(str(run / "tracking" / "run")).Reload()
    metrics = Run.load(run).folder.read("metrics.jsonl", Metric)
    accuracies = [event.value for event in first.Scalars("update/accuracy")]
    assert accuracies == pytest.approx([m.accuracy for m in metrics])
    assert [event.value for event in first.Scalars("update/step")] == [m.step for m in metrics]
    shutil.rmtree(run / "tracking")
    assert cli.main(["evaluate", str(run), "--tracker", "tensorboard", "--quiet"]) == 0
    second = EventAccumulator(str(run / "tracking" / "run")).Reload()
    target = Run.load(run).summary.target
    for name, value in (("updated", target.updated), ("low", target.ci95.low), ("high", target.ci95.high)):
        (event,) = second.Scalars(f"evaluate/target/{name}")
        assert event.value == pytest.approx(value)


def test_a_tracker_that_fails_on_the_way_is_named_once_and_the_run_goes_on(run, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", broken)
    before = (run / "delta.safetensors").read_bytes()
    assert cli.main(["update", str(run), "--redo", "--tracker", "tensorboard", "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("tensorboard fails (the server is gone); the run goes on without it") == 1
    assert (run / "delta.safetensors").read_bytes() == before


def test_a_tracker_that_does_not_start_is_refused_before_any_work(run, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def broken(*_: object) -> None:
        raise PermissionError("not logged in")

    monkeypatch.setattr(TensorBoardTracker, "start", broken)
    assert cli.main(["update", str(run), "--tracker", "tensorboard", "--quiet"]) == 2
    assert "tracker tensorboard does not start (not logged in); log in" in capsys.readouterr().err


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("cca.run.tracking.find_spec", lambda _: None)
    assert cli.main(["run", "--out", str(tmp_path / "run"), "--tracker", name]) == 2
    assert f"tracker {name} is not installed; install it with: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
