"""The file of a delta: safetensors, which hold no code, and a header that says what it is for.

For each weight NAME.rows (int64, n), NAME.values (float32, n x E) and NAME.base (int64, n x 3). The last are checksums
of what the rows hold in the base (`cca.model.base`). The header has the base's name and revision and its types by
weight, the components whose rows these are, what was measured, and the versions of this format and of cca.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cca import __version__
from cca.errors import InputError
from cca.io import header_of, save_tensors
from cca.model.base import TYPES, Base, BaseRows
from cca.model.components import Component
from cca.model.rows import Rows
from cca.model.weights import check_start, first_line

FORMAT = "1"
_ROWS, _VALUES, _BASE = ".rows", ".values", ".base"
_TYPES = {str(kind).removeprefix("torch."): kind for kind in TYPES}
_NUMBERED = TypeAdapter(tuple[tuple[NonNegativeInt, Literal["query", "key", "value", "neuron"], NonNegativeInt], ...])
_METRICS = TypeAdapter(dict[str, Any])


class Contents(NamedTuple):
    """What a file holds, under the names that `cca.model.delta.Delta` has for it."""

    weights: dict[str, Rows]
    base: Base | None
    components: tuple[Component, ...]
    metrics: Mapping[str, Any]


def write_delta(path: str | Path, delta: Contents) -> None:
    """Write `delta` to `path`, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "kind": "rows",
        "cca": __version__,
        "components": json.dumps(delta.components),
        "metrics": json.dumps(dict(delta.metrics)),
    }
    if delta.base:
        types = {name: str(held.dtype).removeprefix("torch.") for name, held in delta.base.rows.items()}
        header |= {
            "base": delta.base.name,
            "revision": delta.base.revision,
            "types": json.dumps(types, sort_keys=True),
        }
        tensors = {name + _BASE: held.sums for name, held in delta.base.rows.items()}
    for name, rows in delta.weights.items():
        tensors[name + _ROWS] = rows.index.cpu()
        tensors[name + _VALUES] = rows.values.detach().cpu().contiguous()
    save_tensors(path, tensors, header)


def read_delta(path: str | Path, device: str = "cpu") -> Contents:
    """What `write_delta` wrote, its tensors on `device`.

    Raises:
        InputError: the file cannot be read, or holds something else or numbers that no delta has.
    """
    where = Path(path)
    if where.is_file():
        check_start(where)
    try:
        with safe_open(where, "pt") as file:
            header = header_of(file)
        tensors = load_file(where, device=device)
    except (OSError, SafetensorError, InputError) as error:
        raise InputError(f"cannot read a delta from {path} ({error}); name a file that Delta.save wrote") from error
    return _contents(tensors, header, str(path))


def _contents(tensors: Mapping[str, Tensor], header: Mapping[str, str], path: str) -> Contents:
    names = [key.removesuffix(_ROWS) for key in tensors if key.endswith(_ROWS)]
    if header.get("kind", "rows") != "rows" or {key for key in tensors if not key.endswith(_BASE)} != {
        name + part for name in names for part in (_ROWS, _VALUES)
    }:
        raise InputError(f"{path} holds no row delta; name a file that Delta.save wrote")
    if not names:
        return Contents({}, None, (), {})
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} does not say which model it is for (format {header.get('format', 'unknown')}, this is {FORMAT}); "
            "it is of another version of cca: train it again, in a run with: cca update RUN --redo"
        )
    for name in names:
        if said := _what_is_wrong(tensors[name + _ROWS], tensors[name + _VALUES]):
            raise InputError(f"{path}: {said} of {name}; the file is damaged, train the delta again")
    weights = {name: Rows(tensors[name + _ROWS], tensors[name + _VALUES]) for name in names}
    try:
        types = json.loads(header["types"])
        held = {name: BaseRows(_TYPES[types[name]], tensors[name + _BASE].cpu()) for name in names}
        base = Base(header["base"], header["revision"], held)
        if any(len(held[name].sums) != len(rows.index) for name, rows in weights.items()):
            raise ValueError("checksums")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say which model it is for ({error!r}); train the delta again") from error
    try:
        components = tuple(Component(*known) for known in _NUMBERED.validate_json(header.get("components", "[]")))
        metrics = _METRICS.validate_json(header.get("metrics", "{}"))
    except ValueError as error:
        raise InputError(
            f"cannot read {path}: its header is damaged ({first_line(error)}); train the delta again"
        ) from error
    return Contents(weights, base, components, metrics)


def _what_is_wrong(index: Tensor, values: Tensor) -> str | None:
    if index.dtype != torch.int64 or index.dim() != 1:
        return f"the row numbers are {index.dtype} of {index.dim()} dimensions, not a list of int64,"
    if values.dtype != torch.float32 or values.dim() != 2 or len(values) != len(index):
        return f"the values are {values.dtype} {list(values.shape)}, not float32 [{len(index)}, ...],"
    if len(index.unique()) < len(index):
        return "a row is named twice"
    if len(index) and int(index.min()) < 0:
        return f"there is a row {int(index.min())}"
    if not bool(values.isfinite().all()):
        return "values that are not finite are among those"
    return None
