"""What rows held before a delta was added to them, kept beside a model, so that it can be taken out bit by bit.

A sum of floating-point numbers cannot be undone by a subtraction, so the rows themselves are kept: as many numbers as
the delta has. For each weight NAME.rows (int64, n), NAME.before (n x E, of the model's type) and NAME.after (int64, n x
3), checksums of what the rows hold since (`cca.model.base`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cca import __version__
from cca.errors import InputError
from cca.io import load_tensors, save_tensors, write_text
from cca.model.base import TYPES, BaseRows
from cca.model.checkpoint import APPLIED, README
from cca.model.delta import Delta, Rounding, row_view
from cca.model.state import network_of
from cca.model.weights import check_start

FORMAT = "1"
_KIND = "applied"
_ROWS, _BEFORE, _AFTER = ".rows", ".before", ".after"


@dataclass(frozen=True, eq=False)
class Applied:
    """A delta that was added to a model.

    index: its rows, by weight. before: what they held; after: checksums of what they hold since. name: the delta's.
    """

    index: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, BaseRows]
    name: str

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, index in self.index.items():
            tensors |= {name + _ROWS: index, name + _BEFORE: self.before[name], name + _AFTER: self.after[name].sums}
        path.parent.mkdir(exist_ok=True)
        save_tensors(path, tensors, {"format": FORMAT, "kind": _KIND, "cca": __version__, "delta": self.name})

    @classmethod
    def load(cls, path: Path) -> "Applied":
        """What `save` wrote.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        check_start(path)
        tensors, header = load_tensors(path)
        names = [key.removesuffix(_ROWS) for key in tensors if key.endswith(_ROWS)]
        wanted = {name + part for name in names for part in (_ROWS, _BEFORE, _AFTER)}
        if header.get("kind") != _KIND or header.get("format") != FORMAT or tensors.keys() != wanted:
            raise InputError(f"{path} is not what cca apply leaves beside a model; take the base model itself")
        for name in names:
            index, before, after = (tensors[name + part] for part in (_ROWS, _BEFORE, _AFTER))
            whole = index.dtype == torch.int64 and index.dim() == 1 and len(index.unique()) == len(index)
            fits = before.dim() == 2 and before.dtype in TYPES and len(before) == len(index)
            if not whole or not fits or after.dtype != torch.int64 or after.shape != (len(index), len(TYPES)):
                raise InputError(f"{path} is damaged ({name}); take the base model itself")
        dtype = {name: tensors[name + _BEFORE].dtype for name in names}
        return cls(
            {name: tensors[name + _ROWS] for name in names},
            {name: tensors[name + _BEFORE] for name in names},
            {name: BaseRows(dtype[name], tensors[name + _AFTER]) for name in names},
            header.get("delta", path.name),
        )

    def take_out(self, model: Any, path: str) -> None:
        """Put back what the rows held.

        Raises:
            InputError: the model is not as it was left; nothing was changed then.
        """
        network = network_of(model)
        known = dict(network.named_parameters(remove_duplicate=False))
        for name, index in self.index.items():
            view = row_view(network, name) if name in known else None
            inside = view is not None and len(index) and 0 <= int(index.min()) <= int(index.max()) < len(view)
            if (
                view is None
                or (len(index) and not inside)
                or self.before[name].shape[1] != view.shape[1]
                or not self.after[name].agrees(BaseRows.of(view[index]))
            ):
                raise InputError(
                    f"{path} cannot be taken out: rows of {name} are not as it left them, so something else changed "
                    "them since; take the base model itself"
                )
        for name, index in self.index.items():
            view = row_view(network, name)
            view[index] = self.before[name].to(view.dtype)


def apply(model: Any, delta: Delta, name: str) -> tuple[Applied, Rounding]:
    """Merge `delta`, called `name`, into the model and keep what its rows held."""
    network = network_of(model)
    index = {weight: rows.index.cpu() for weight, rows in delta.weights.items()}
    before = {weight: row_view(network, weight)[rows].cpu() for weight, rows in index.items()}
    rounding = delta.merge(model)
    after = {weight: BaseRows.of(row_view(network, weight)[rows]) for weight, rows in index.items()}
    return Applied(index, before, after, name), rounding


# ---- what lies beside a model ----


def applied_files(folder: Path) -> Sequence[Path]:
    """What was applied to the model in `folder`, the last at the end."""
    found = {_number(file): file for file in (folder / APPLIED).glob("applied-*.safetensors")}
    return [found[number] for number in sorted(found) if number]


def put_beside(folder: Path, applied: Applied, readme: str) -> None:
    """Keep `applied` in a model's folder. Its README.md becomes `readme`; the one before is kept to be put back."""
    number = max(map(_number, applied_files(folder)), default=0) + 1
    applied.save(folder / APPLIED / f"applied-{number}.safetensors")
    if (folder / README).exists():
        (folder / README).rename(folder / APPLIED / f"README-{number}.md")
    write_text(folder / README, readme)


def take_from_beside(folder: Path) -> None:
    """Undo the last `put_beside`."""
    last = applied_files(folder)[-1]
    last.unlink()
    (folder / README).unlink(missing_ok=True)
    before = folder / APPLIED / f"README-{_number(last)}.md"
    if before.exists():
        before.rename(folder / README)
    if not any((folder / APPLIED).iterdir()):
        (folder / APPLIED).rmdir()


def _number(file: Path) -> int:
    number = file.stem.removeprefix("applied-")
    return int(number) if number.isascii() and number.isdecimal() else 0
