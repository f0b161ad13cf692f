"""Circuits that were not learned: what shows whether it matters which components an update changes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cca.model.components import Components
from cca.model.delta import Delta


def random_circuit(components: Components, like: Tensor, seed: int) -> Tensor:
    """A (C,) mask with as many components of each kind as `like`, drawn at random: the control for a circuit."""
    generator = torch.Generator().manual_seed(seed)
    selected = torch.zeros_like(like)
    kinds = [component.kind for component in components]
    for kind in dict.fromkeys(kinds):
        members = torch.tensor([i for i, k in enumerate(kinds) if k == kind])
        count = int(like[members].sum())
        selected[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return selected


def largest_rows(delta: Delta, gradients: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` rows of `delta` whose gradients have the largest norms: weight name -> sorted row numbers."""
    norms = torch.cat([gradients[name].norm(dim=1).cpu() for name in delta.weights])
    chosen = torch.zeros(len(norms), dtype=torch.bool)
    chosen[norms.topk(count).indices] = True
    parts = chosen.split([len(rows.index) for rows in delta.weights.values()])
    found = {name: rows.index.cpu()[part] for (name, rows), part in zip(delta.weights.items(), parts, strict=True)}
    return {name: index for name, index in found.items() if len(index)}
