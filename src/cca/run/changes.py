"""Other settings for a run that has begun: which stage they make void, and what to say and do."""

import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.folder import RunFolder, differences
from cca.io import write_text
from cca.run.config import Config, dump_toml, toml_value
from cca.run.stages import STAGES, first_to_use

_ANY_TIME = frozenset({"engine.workers", "engine.ray_address", "engine.memory_share", "engine.python"})
"""What changes no result, and may be otherwise whenever a run goes on."""
_RECOVERED = ("trace", "pivots")
"""Stages whose records are looked through before any is made again, so that they can go on without a manifest."""


def open_folder(path: Path, config: Config, redo: str | None = None) -> RunFolder:
    """Open the run folder of `config`, or make it, to work in it.

    Args:
        redo: a stage to forget with everything after it, which may then have other settings.

    Raises:
        InputError: as `RunFolder.create`, or the run has other settings than `config` that `redo` does not cover.
    """
    text = dump_toml(config)
    folder = RunFolder.create(path, text)
    try:
        begun = folder.config
        if changed := _changed(begun, text):
            _check_covered(path, changed, redo)
        folder.manifest["config"] = text if redo else begun
        if folder.lost:
            gone = f"warning: {path / 'manifest.json'} is gone; the traces and pivots there are kept, as those of"
            print(gone, folder.file("config.toml"), file=sys.stderr)
            _begin(folder, next(stage for stage in STAGES if stage not in _RECOVERED))
        if redo:
            _begin(folder, redo)
        _complete(folder)
        return folder
    except BaseException:
        folder.close()
        raise


def _changed(begun: str, here: str) -> dict[str, tuple[Any, Any]]:
    """What the settings of a begun run and those here differ in. One that it does not name, since there was none when
    it was begun, had its default."""
    defaults = {key: new for key, (_, new) in differences({}, tomllib.loads(dump_toml(Config()))).items()}
    found = differences(tomllib.loads(begun), tomllib.loads(here))
    known = {key: (old, new) for key, (old, new) in found.items() if old is not None or new != defaults.get(key)}
    return {key: both for key, both in known.items() if key not in _ANY_TIME}


def _check_covered(path: Path, changed: Mapping[str, tuple[Any, Any]], redo: str | None) -> None:
    order = list(STAGES)
    first = min((first_to_use(key) for key in changed), key=order.index)
    settings = " ".join(f"--set {shlex.quote(f'{key}={toml_value(new)}')}" for key, (_, new) in changed.items())
    again = f"cca {first} {path} --redo {settings}"
    if redo is None:
        key, (old, new) = next(iter(changed.items()))
        raise InputError(
            f"{path} holds a run with another config (there {key} = {old!r}, here {new!r}); choose another folder with "
            f"--out, or do stage {first} and what follows again in that one: {again}"
        )
    if order.index(first) < order.index(redo):
        key = next(key for key in changed if first_to_use(key) == first)
        raise InputError(f"{key} belongs to stage {first}, which comes before {redo}; do that one again: {again}")


def _begin(folder: RunFolder, stage: str) -> None:
    """Write down, all at once, that `stage` and what follows is to be forgotten."""
    first = max(stage, folder.manifest.get("redo", stage), key=lambda name: len(_from(name)))
    folder.forget(_from(first))
    if first == next(iter(STAGES)):  # nothing is left that the model or anything else in the manifest is of
        folder.manifest = {key: folder.manifest[key] for key in ("format", "stages", "config")}
    folder.manifest["redo"] = first
    folder.save_manifest()


def _complete(folder: RunFolder) -> None:
    """Delete what was left of stages that are to be forgotten; a kill may have come between."""
    if stage := folder.manifest.get("redo"):
        for later in _from(stage):
            folder.delete((*STAGES[later].artifacts, *STAGES[later].scratch))
        if "update" in _from(stage):
            for part in folder.rounds():
                shutil.rmtree(part)
        write_text(folder.file("config.toml"), folder.manifest["config"])
        del folder.manifest["redo"]
    folder.save_manifest()


def _from(stage: str) -> Sequence[str]:
    order = list(STAGES)
    if stage not in order:
        raise InputError(f"there is no stage {stage!r} to do again; stages are {', '.join(order)}")
    return order[order.index(stage) :]
