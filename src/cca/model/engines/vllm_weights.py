"""What vLLM is to load in place of a model's own weights: base + delta, from the model's files.

The base is what stands in the files, rounded to the type that the model is used in, whatever is on the network here.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from cca.errors import InputError
from cca.io import save_tensors
from cca.model.adapter import adapter_of
from cca.model.components import find_components
from cca.model.delta import Delta, Rounding, rows_first
from cca.model.experts import is_experts
from cca.model.weights import some

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of LoRA adapters, that vLLM has room for."""


class Stored(NamedTuple):
    """Where a weight stands: in which file, under which name."""

    file: Path
    name: str


def stored_weights(network: Any, files: Iterable[Path], path: str) -> dict[str, Stored]:
    """The weights of `network` whose rows components own, by name, and where the model at `path` has them.

    Raises:
        InputError: its files have one of them in another form.
    """
    there: dict[str, Stored] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            there |= {name: Stored(file, name) for name in opened.keys()}  # noqa: SIM118
    parts, prefix = find_components(network), f"{network.base_model_prefix}."
    owned = parts.rows(torch.ones(parts.size, dtype=torch.bool))
    # a file that was written from the decoder alone lacks the prefix
    found = {name: there.get(name) or there.get(name.removeprefix(prefix)) for name in owned}
    experts = [name for name in owned if is_experts(network.get_submodule(name.rpartition(".")[0]))]
    if absent := experts or [name for name, at in found.items() if at is None]:
        raise InputError(
            f"the files of {path} hold {some(absent)} in another form (experts one by one, for example), so that cca "
            "cannot give vLLM an update of it; set engine.name=transformers"
        )
    return {name: at for name, at in found.items() if at is not None}


def save_changed(network: Any, stored: Mapping[str, Stored], delta: Delta, file: Path) -> Rounding:
    """Write the weights that `delta` changes to `file`, each whole, as the model's files name them; says what became of
    the delta by rounding to the network's type."""
    changed: dict[str, Tensor] = {}
    merged: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, rows in delta.weights.items():
        at = stored[name]
        with safe_open(at.file, "pt") as opened:
            weight = opened.get_tensor(at.name).to(network.dtype)
        view, index, values = rows_first(network, name, weight), rows.index.cpu(), rows.values.detach().cpu()
        base = view[index]
        view[index] = summed = (base.float() + values).to(weight.dtype)
        changed[at.name] = weight
        merged.append((values, base, summed))
    save_tensors(file, changed)
    return Rounding.of(merged)


def save_adapter(network: Any, delta: Delta, folder: Path, path: str) -> None:
    """Write `delta` to `folder` as an adapter of the model at `path`."""
    adapter_of(delta, network).save(folder, path)


def rank_of(delta: Delta) -> int:
    """The rank that vLLM is to have room for, for `delta` as an adapter.

    Raises:
        InputError: vLLM has no room for so large a one.
    """
    most = max(len(rows.index) for rows in delta.weights.values())
    for rank in RANKS:
        if rank >= most:
            return rank
    raise InputError(
        f"an update of {most} rows of one weight is an adapter of rank {most}, and vLLM takes ranks up to {RANKS[-1]}; "
        "set engine.updates=weights"
    )
