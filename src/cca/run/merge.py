"""Write the updated model as an ordinary model folder."""

import shutil
from pathlib import Path
from typing import NamedTuple

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.folder import RunFolder
from cca.model.delta import Delta
from cca.model.open import open_model
from cca.run.config import Config


class Merged(NamedTuple):
    """What rounding did to the delta, as in `cca.model.delta.Rounding`, and the type of the weights it was merged into."""

    unchanged: float
    error: float
    dtype: str


def merge(run: RunFolder, config: Config, folder: Path, dtype: str | None = None) -> Merged:
    """Merge the delta of `run` into its base model and save that with its tokenizer to `folder`.

    dtype: of the weights; by default the run's. The folder appears whole or not at all.

    Raises:
        InputError: `folder` exists, the run trained no rows, or the base model cannot be loaded or is another than the
            run's.
    """
    if config.update.arm not in OF_ROWS:
        raise InputError(f"{run.path} trained {config.update.arm}, and only rows can be merged: {', '.join(OF_ROWS)}")
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
    section, dtype = config.model, dtype or config.model.dtype
    loaded = open_model(
        section.path, dtype, "cpu", attention=section.attention, trust_remote_code=section.trust_remote_code
    )
    if loaded.revision != run.manifest.get("revision"):
        raise InputError(f"the model at {section.path} is not the one that {run.path} was made with; put that one back")
    rounding = Delta.load(run.final_delta()).merge(loaded.network)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    loaded.network.save_pretrained(temporary)
    loaded.tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return Merged(rounding.unchanged, rounding.error, dtype)
