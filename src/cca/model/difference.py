"""In what two checkpoints of one architecture differ: which rows, and whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cca.errors import InputError
from cca.model.checkpoint import Checkpoint
from cca.model.components import Component, Components
from cca.model.delta import row_view
from cca.model.weights import some


class ChangedComponent(NamedTuple):
    """A component of which rows differ: how many of those it owns, and the change's size as a share of the rows'."""

    component: Component
    rows: int
    of: int
    change: float


class ChangedWeight(NamedTuple):
    """Rows that differ in a weight and belong to no component; of a weight without rows, its numbers."""

    rows: int
    of: int
    change: float


@dataclass(frozen=True)
class Difference:
    """In what the second of two checkpoints differs from the first.

    compared_as: the second's type, into which the first was brought. size: C, the number of components. rows: how
    many of those that components own differ. others: by weight.
    """

    compared_as: str
    size: int
    rows: int
    components: list[ChangedComponent]
    others: dict[str, ChangedWeight]


def difference(first: Checkpoint, second: Checkpoint) -> Difference:
    """Compare all weights, row by row and bit by bit.

    Raises:
        InputError: they are not of one architecture; the message names what differs.
    """
    mine, theirs = _weights(first.network), _weights(second.network)
    if mine.keys() != theirs.keys():
        names = sorted(mine.keys() ^ theirs.keys())
        raise InputError(f"{first.name} and {second.name} are of two architectures: only one has {some(names)}")
    if unlike := [name for name in mine if mine[name].shape != theirs[name].shape]:
        name = unlike[0]
        raise InputError(
            f"{first.name} and {second.name} are of two sizes: {name} is {list(mine[name].shape)} in the one and "
            f"{list(theirs[name].shape)} in the other"
        )
    dtype, components = second.network.dtype, first.components
    rows_of: dict[str, list[Tensor]] = {}
    for owned in (o for layer in components.layers for o in layer.owned()):
        rows_of.setdefault(owned.weight, []).append(owned.rows.flatten())
    changes: dict[str, Tensor] = {}
    others: dict[str, ChangedWeight] = {}
    for name in mine:
        found = _changes(
            _rows(first.network, name, mine[name], dtype), _rows(second.network, name, theirs[name], dtype)
        )
        if found is None:
            continue
        changes[name] = found
        left = torch.ones(len(found), dtype=torch.bool)
        left[torch.cat(rows_of.get(name, [torch.zeros(0, dtype=torch.int64)]))] = False
        count, lost, size = found[left].sum(0).tolist()
        if count:
            others[name] = ChangedWeight(int(count), len(found), _share(lost, size))
    changed = _components(components, changes)
    return Difference(second.type, components.size, sum(c.rows for c in changed), changed, others)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """All parameters, and those buffers that are saved; what is tied once."""
    saved = network.state_dict().keys()
    buffers = {name: b for name, b in network.named_buffers() if name in saved and b.is_floating_point()}
    return {name: p.detach() for name, p in network.named_parameters()} | buffers


def _rows(network: nn.Module, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as (rows, E); one without rows as (numbers, 1)."""
    return (row_view(network, name) if weight.dim() > 1 else weight.reshape(-1, 1)).to(dtype)


def _changes(before: Tensor, after: Tensor) -> Tensor | None:
    """(rows, 3), of each row that differs: 1, the sum of squares of its change, and of itself; None where none does."""
    differs = (before != after).any(1)
    if not bool(differs.any()):
        return None
    found = torch.zeros(len(before), 3, dtype=torch.float64)
    first, second = before[differs].double(), after[differs].double()
    found[differs] = torch.stack(
        [torch.ones(len(first)), ((second - first) ** 2).sum(1), (first**2).sum(1)], 1
    ).double()
    return found


def _share(lost: float, size: float) -> float:
    return (lost / size) ** 0.5 if size else 0.0


def _components(components: Components, changes: Mapping[str, Tensor]) -> list[ChangedComponent]:
    names, found = iter(components), list[ChangedComponent]()
    for owned in (o for layer in components.layers for o in layer.owned()):
        mine = list(islice(names, len(owned)))
        if owned.weight in changes:
            sums = changes[owned.weight][owned.rows].sum(1).tolist()
            for component, (count, lost, size) in zip(mine, sums, strict=True):
                if count:
                    found.append(ChangedComponent(component, int(count), owned.rows.shape[1], _share(lost, size)))
    return found
