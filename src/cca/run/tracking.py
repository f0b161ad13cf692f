"""Send a run's figures to trackers of experiments, through accelerate's interface to them. Off unless asked for."""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cca.errors import InputError, install_command
from cca.evaluation.results import Summary
from cca.folder import flat
from cca.model.weights import first_line

TRACKERS = ("tensorboard", "wandb", "mlflow")
_PROJECT = "cca"


class Tracking:
    """The trackers of one run. All figures have one count of steps, since wandb drops what goes back in its own."""

    def __init__(self, names: Sequence[str], folder: Path, config: str):
        """Begin to track. config: the run's, as TOML.

        Raises:
            InputError: a tracker is unknown or not installed, or does not start.
        """
        self.count = 0
        self.trackers: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            self.trackers[name] = _started(name, folder)
        settings = {key: _plain(value) for key, value in flat(tomllib.loads(config)).items()}
        self._each("store_init_configuration", settings)

    def log(self, stage: str, figures: Mapping[str, float | None]) -> None:
        """Send figures of a stage, as ``stage/name``."""
        known = {f"{stage}/{name}": float(value) for name, value in figures.items() if value is not None}
        self.count += 1
        self._each("log", known, step=self.count)

    def summary(self, summary: Summary) -> None:
        """Send what the evaluation found, of each set the accuracies and the difference with its interval."""
        for _, name, found in summary.sets():
            low, high = found.ci95
            self.log(
                f"evaluate/{name.replace(': ', '/')}",
                {
                    "base": found.base,
                    "updated": found.updated,
                    "difference": found.difference,
                    "low": low,
                    "high": high,
                },
            )

    def close(self) -> None:
        """Let the trackers write what they still hold."""
        self._each("finish")

    def _each(self, does: str, *arguments: Any, **named: Any) -> None:
        """Nothing that is the matter with a tracker ends a run."""
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, does)(*arguments, **named)
            except Exception as error:
                del self.trackers[name]
                said = f"warning: {name} fails ({first_line(error)}); the run goes on without it"
                print(said, file=sys.stderr, flush=True)


def check_trackers(names: Sequence[str]) -> None:
    """See, before anything slow, that the trackers are known and installed.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"there is no tracker {name!r}; choose of {', '.join(TRACKERS)}")
        if not find_spec(name):
            raise InputError(f"tracker {name} is not installed; install it with: {install_command(name)}")


def _started(name: str, folder: Path) -> Any:
    from accelerate.state import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    check_trackers([name])
    PartialState()  # they ask it which process they are in
    called = folder.resolve().name
    try:
        if name == "tensorboard":
            tracker: Any = TensorBoardTracker(called, folder / "tracking")
        elif name == "wandb":
            tracker = WandBTracker(_PROJECT, name=called, dir=str(folder))
        else:
            tracker = MLflowTracker(_PROJECT, run_name=called)
        tracker.start()
    except Exception as error:  # whatever the tracker has
        raise InputError(
            f"tracker {name} does not start ({first_line(error)}); log in or set it up as its documentation says, or "
            "leave --tracker out"
        ) from error
    return tracker


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
