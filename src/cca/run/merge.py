"""Write the updated model as an ordinary model folder."""

import shutil
from pathlib import Path
from typing import NamedTuple

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.model.delta import Delta
from cca.model.open import open_model
from cca.run.run import Run
from cca.run.stages import OF_A_ROUND


class Merged(NamedTuple):
    """What rounding did to the delta, as in `cca.model.delta.Rounding`, and the type of the weights that hold it."""

    unchanged: float
    error: float
    dtype: str


def merge(run: Run, folder: Path, dtype: str | None = None) -> Merged:
    """Merge the delta of `run` into its base model and save that with its tokenizer to `folder`.

    Args:
        folder: appears whole or not at all.
        dtype: of the weights; by default the run's.

    Raises:
        InputError: `folder` exists, the run has no finished update or trained no rows, or the base model cannot be
            loaded or is another than the run's.
    """
    options, method, path = run.config.model, run.config.update.method, run.folder.path
    if method not in OF_ROWS:
        raise InputError(f"{path} trained {method}, and only rows can be merged: {', '.join(OF_ROWS)}")
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
    if not run.folder.finished("update"):
        raise InputError(f"{path} has no finished update yet; finish it with: cca run --out {path}")
    run.folder.verify(OF_A_ROUND)
    dtype = dtype or options.dtype
    settings = dict(options) | {"dtype": dtype, "device": "cpu", "device_map": None}
    model = open_model(settings.pop("path"), prompter=run.prompter, **settings)
    if model.revision != run.folder.manifest.get("revision"):
        raise InputError(f"the model at {options.path} is not the one that {path} was made with; put that one back")
    rounding = Delta.load(run.folder.final_delta(), model).merge(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.network.save_pretrained(temporary)
    model.tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return Merged(rounding.unchanged, rounding.error, dtype)
