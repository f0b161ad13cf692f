"""A model's components: where each one is gated and which weight rows it owns.

Found by structure, not by model name: a decoder layer is a module whose attention has separate `q_proj`, `k_proj`
and `v_proj` and whose feed-forward has `up_proj` and `down_proj` (Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo layouts).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cca.errors import InputError

KINDS = ("query", "key", "value", "neuron")


class Component(NamedTuple):
    """One query, key or value head or one MLP neuron."""

    layer: int
    kind: str
    number: int


@dataclass(frozen=True)
class Layer:
    """One decoder layer's modules and sizes (H query heads, K key/value heads, D head dim, I neurons)."""

    name: str
    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    up: nn.Linear
    down: nn.Linear
    query_heads: int
    key_heads: int
    head_dim: int
    neurons: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Component counts in the order of KINDS."""
        return self.query_heads, self.key_heads, self.key_heads, self.neurons


@dataclass(frozen=True)
class Anatomy:
    """All components of a model, in one flat order: by layer, then query, key, value heads, then neurons."""

    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """C, the number of components."""
        return sum(sum(layer.sizes) for layer in self.layers)

    def components(self) -> Iterator[Component]:
        """Every component in flat order."""
        for depth, layer in enumerate(self.layers):
            for kind, count in zip(KINDS, layer.sizes, strict=True):
                for number in range(count):
                    yield Component(depth, kind, number)

    def split(self, flat: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Cut a (C,) tensor into one (query (H,), key (K,), value (K,), neuron (I,)) tuple a layer."""
        parts = flat.split([count for layer in self.layers for count in layer.sizes])
        return [(parts[i], parts[i + 1], parts[i + 2], parts[i + 3]) for i in range(0, len(parts), 4)]

    def counts(self, selected: Tensor) -> dict[str, int]:
        """How many components of each kind a (C,) boolean mask selects."""
        totals: dict[str, int] = dict.fromkeys(KINDS, 0)
        for parts in self.split(selected):
            for kind, part in zip(KINDS, parts, strict=True):
                totals[kind] += int(part.sum())
        return totals

    def rows(self, selected: Tensor) -> dict[str, Tensor]:
        """The weight rows that the selected components own: weight name -> sorted row numbers.

        A head owns head_dim rows of its projection, a neuron one row of the up projection. Weights without a
        selected row are left out.
        """
        owned: dict[str, Tensor] = {}
        for layer, parts in zip(self.layers, self.split(selected), strict=True):
            for kind, part in zip(("query", "key", "value"), parts[:3], strict=True):
                heads = part.nonzero().flatten()
                rows = (heads[:, None] * layer.head_dim + torch.arange(layer.head_dim, device=heads.device)).flatten()
                owned[f"{layer.name}.{kind}"] = rows
            owned[f"{layer.name}.up"] = parts[3].nonzero().flatten()
        modules = self.modules()
        return {modules[name].weight_name: rows.cpu() for name, rows in owned.items() if len(rows)}

    def modules(self) -> dict[str, "Projection"]:
        """The projections whose rows components own, by ``layer.kind``."""
        return {
            f"{layer.name}.{short}": Projection(f"{layer.name}.{path}.weight", module)
            for layer in self.layers
            for short, path, module in (
                ("query", "self_attn.q_proj", layer.query),
                ("key", "self_attn.k_proj", layer.key),
                ("value", "self_attn.v_proj", layer.value),
                ("up", "mlp.up_proj", layer.up),
            )
        }


class Projection(NamedTuple):
    """A linear module and the name of its weight in the model's state dict."""

    weight_name: str
    module: nn.Linear


def anatomy(model: nn.Module) -> Anatomy:
    """Find the components of a decoder-only model.

    Raises:
        InputError: a layer does not have the structure; the message names the module that could not be placed.
    """
    layers: list[Layer] = []
    for name, module in model.named_modules():
        attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
        if attention is None or mlp is None:
            continue
        for owner, path, parts in (
            (attention, "self_attn", ("q_proj", "k_proj", "v_proj")),
            (mlp, "mlp", ("up_proj", "down_proj")),
        ):
            for part in parts:
                if not isinstance(getattr(owner, part, None), nn.Linear):
                    raise InputError(
                        f"{name}.{path} ({type(owner).__name__}) has no linear {part}: cca handles separate "
                        "q/k/v and up/down projections (Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo layouts)"
                    )
        head_dim = int(attention.head_dim)
        layers.append(
            Layer(
                name,
                attention,
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                mlp.up_proj,
                mlp.down_proj,
                attention.q_proj.out_features // head_dim,
                attention.k_proj.out_features // head_dim,
                head_dim,
                mlp.up_proj.out_features,
            )
        )
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no layer with self_attn and mlp: cca handles decoder-only models with "
            "separate q/k/v and up/down projections (Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo layouts)"
        )
    return Anatomy(tuple(layers))
