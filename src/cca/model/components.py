"""A model's components: where each one is gated and which weight rows it owns.

Found by structure, not by model name. A decoder layer has one attention, whose queries, keys and values come from
three projections or from a fused one, and one or more feed-forward parts, each with an up and a down projection, or
experts that keep theirs in 3-D parameters. `cca.model.verify` proves by a small forward pass that a model with such a
structure also computes so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cca.errors import InputError
from cca.records import KINDS

SEPARATE = ("q_proj", "k_proj", "v_proj")
BLOCKS = ("qkv_proj", "c_attn")
"""Fused projections whose rows are all queries, then all keys, then all values (Phi-3, GPT-2)."""
INTERLEAVED = ("query_key_value",)
"""Fused projections with one group of rows per key head: its queries, its key, its value (GPT-NeoX)."""
FEED_FORWARD = (
    ("up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
)
"""Names of up and down projection; a fused ``gate_up_proj`` has the gate's rows first."""


class Component(NamedTuple):
    """One query, key or value head or one MLP neuron."""

    layer: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.kind} {self.number}"


def in_order(component: Component) -> tuple[int, int, int]:
    """Sorts components as `Components` has them."""
    return component.layer, KINDS.index(component.kind), component.number


@dataclass(frozen=True)
class Owned:
    """The components of one kind that own rows of one weight.

    weight: its name in the model's state dict. rows: (n, r) the r row numbers of each component. A row is the weights
    of one output: a column of a Conv1D; row number e x R + r for row r of expert e, where each expert has R.
    """

    weight: str
    rows: Int[Tensor, "n r"]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, chosen: Tensor) -> Tensor:
        """The rows of the components that a boolean mask (n,) chooses."""
        return self.rows[chosen.cpu()].flatten()


class FeedForward(NamedTuple):
    """Neurons: the rows that they own, and the module at whose down projection's input they are gated."""

    up: Owned
    down: nn.Module
    """A linear module, or the module of all experts."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer: H query heads, K key and K value heads of dimension D, and I neurons."""

    name: str
    module: nn.Module
    attention: nn.Module
    query: Owned
    key: Owned
    value: Owned
    feed_forward: tuple[FeedForward, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Component counts in the order of KINDS."""
        return len(self.query), len(self.key), len(self.value), sum(len(f.up) for f in self.feed_forward)

    def owned(self) -> Iterator[Owned]:
        """Who owns what, in flat order."""
        yield from (self.query, self.key, self.value, *(f.up for f in self.feed_forward))


@dataclass(frozen=True)
class Components:
    """All components of a model, in one flat order: by layer, then query, key, value heads, then neurons."""

    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """C, the number of components."""
        return sum(sum(layer.sizes) for layer in self.layers)

    def __iter__(self) -> Iterator[Component]:
        """Every component in flat order."""
        for depth, layer in enumerate(self.layers):
            for kind, count in zip(KINDS, layer.sizes, strict=True):
                for number in range(count):
                    yield Component(depth, kind, number)

    def split(self, flat: Shaped[Tensor, " C"]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Cut a (C,) tensor into one (query (H,), key (K,), value (K,), neuron (I,)) tuple a layer."""
        parts = flat.split([count for layer in self.layers for count in layer.sizes])
        return [(parts[i], parts[i + 1], parts[i + 2], parts[i + 3]) for i in range(0, len(parts), 4)]

    def counts(self, selected: Bool[Tensor, " C"]) -> dict[str, int]:
        """How many components of each kind a (C,) boolean mask selects."""
        totals: dict[str, int] = dict.fromkeys(KINDS, 0)
        for parts in self.split(selected):
            for kind, part in zip(KINDS, parts, strict=True):
                totals[kind] += int(part.sum())
        return totals

    def rows(self, selected: Bool[Tensor, " C"]) -> dict[str, Int[Tensor, " n"]]:
        """The weight rows that the selected components own: weight name -> sorted row numbers.

        A head owns head_dim rows of its projection, a neuron one row of the up projection. Weights without a
        selected row are left out.
        """
        found: dict[str, list[Tensor]] = {}
        owners = [owned for layer in self.layers for owned in layer.owned()]
        for owned, chosen in zip(owners, selected.split([len(o) for o in owners]), strict=True):
            if bool(chosen.any()):
                found.setdefault(owned.weight, []).append(owned.of(chosen))
        return {name: torch.cat(rows).sort().values for name, rows in found.items()}

    def owners(self, rows: Mapping[str, Int[Tensor, " n"]]) -> tuple[Component, ...]:
        """The components that own any of these rows (weight name -> row numbers), in flat order."""
        none = torch.zeros(0, dtype=torch.int64)
        owned = (o for layer in self.layers for o in layer.owned())
        chosen = torch.cat([torch.isin(o.rows, rows.get(o.weight, none).cpu()).any(1) for o in owned])
        return tuple(component for component, owns in zip(self, chosen.tolist(), strict=True) if owns)


def find_components(model: Any) -> Components:
    """Find the components of a decoder-only model from its modules alone; weights may be on the meta device.

    Raises:
        InputError: a layer does not have the structure; the message names the module that could not be placed.
    """
    decoder, config = model.get_decoder(), model.config.get_text_config()
    names = {id(module): name for name, module in model.named_modules()}
    stacks = [
        m
        for m in decoder.children()
        if isinstance(m, nn.ModuleList) and len(m) == getattr(config, "num_hidden_layers", 0)
    ]
    if len(stacks) != 1:
        raise InputError(
            f"{type(model).__name__}: {type(decoder).__name__} has no list of its decoder layers, so cca cannot place "
            "its components; choose a decoder-only model whose layers stand in one list"
        )
    return Components(tuple(_layer(names[id(module)], module, config) for module in stacks[0]))


def _layer(name: str, module: nn.Module, config: Any) -> Layer:
    attentions: list[tuple[str, nn.Module]] = []
    feed_forward: list[FeedForward] = []
    for path, part in module.named_modules(prefix=name):
        children = dict(part.named_children())
        if set(SEPARATE) <= set(children) or set(children) & {*BLOCKS, *INTERLEAVED}:
            attentions.append((path, part))
        feed_forward += _feed_forward(path, part, children)
    inside = ", ".join(f"{n} ({type(m).__name__})" for n, m in module.named_children())
    if len(attentions) != 1:
        what = "no attention" if not attentions else f"{len(attentions)} attentions"
        raise InputError(
            f"{name} ({type(module).__name__}) has {what} with q_proj, k_proj and v_proj or a fused projection "
            f"({', '.join((*BLOCKS, *INTERLEAVED))}), among {inside}; cca cannot gate its heads. Choose another model"
        )
    if not feed_forward:
        pairs = ", ".join("/".join(pair) for pair in FEED_FORWARD)
        raise InputError(
            f"{name} ({type(module).__name__}) has no up and down projection ({pairs}) and no experts that cca knows, "
            f"among {inside}; cca cannot gate its neurons. Choose another model"
        )
    path, attention = attentions[0]
    return Layer(name, module, attention, *_heads(path, attention, config), tuple(feed_forward))


def _outputs(path: str, module: nn.Module) -> int:
    """How many rows a projection has.

    Raises:
        InputError: it is neither a plain linear module nor a Conv1D (a quantised or wrapped one, for example).
    """
    if isinstance(module, Conv1D):
        return module.weight.shape[1]
    if type(module) is nn.Linear and module.weight.is_floating_point():
        return module.out_features
    raise InputError(f"{path} is a {type(module).__name__}, not a plain linear module: cca cannot change its rows")


def _heads(path: str, attention: nn.Module, config: Any) -> tuple[Owned, Owned, Owned]:
    query_heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
    children = dict(attention.named_children())
    if set(SEPARATE) <= set(children):
        size = int(
            getattr(attention, "head_dim", None) or _outputs(f"{path}.q_proj", children["q_proj"]) // query_heads
        )
        return _separate(path, children, size)
    (fused,) = [n for n in (*BLOCKS, *INTERLEAVED) if n in children]
    rows = torch.arange(_outputs(f"{path}.{fused}", children[fused]))
    heads = query_heads + 2 * key_heads
    if len(rows) % heads or query_heads % key_heads:
        raise InputError(
            f"{path}.{fused} has {len(rows)} rows, which {query_heads} query and {key_heads} key and value heads do "
            "not divide; cca cannot tell which head owns which row"
        )
    if fused in BLOCKS:
        parts = rows.view(heads, -1).split([query_heads, key_heads, key_heads])
    else:
        group = query_heads // key_heads
        query, key, value = rows.view(key_heads, group + 2, -1).split([group, 1, 1], dim=1)
        parts = query.reshape(query_heads, -1), key.squeeze(1), value.squeeze(1)
    query, key, value = (Owned(f"{path}.{fused}.weight", part.clone()) for part in parts)
    return query, key, value


def _separate(path: str, children: dict[str, nn.Module], size: int) -> tuple[Owned, Owned, Owned]:
    found: list[Owned] = []
    for name in SEPARATE:
        count = _outputs(f"{path}.{name}", children[name])
        if count % size:
            raise InputError(f"{path}.{name} has {count} rows, which heads of dimension {size} do not divide")
        found.append(Owned(f"{path}.{name}.weight", torch.arange(count).view(-1, size)))
    query, key, value = found
    if len(key) != len(value) or len(query) % len(key):
        raise InputError(
            f"{path} has {len(query)} query, {len(key)} key and {len(value)} value heads, which do not fit"
        )
    return query, key, value


def _feed_forward(path: str, part: nn.Module, children: dict[str, nn.Module]) -> Sequence[FeedForward]:
    for up, down in FEED_FORWARD:
        if not {up, down} <= set(children):
            continue
        rows, neurons = _outputs(f"{path}.{up}", children[up]), _inputs(f"{path}.{down}", children[down])
        if rows != neurons * (2 if up == "gate_up_proj" else 1):
            raise InputError(f"{path}.{up} has {rows} rows for the {neurons} inputs of {down}; cca cannot pair them")
        owned = Owned(f"{path}.{up}.weight", torch.arange(rows - neurons, rows)[:, None])
        return [FeedForward(owned, children[down])]
    fused, down = (part._parameters.get(n) for n in ("gate_up_proj", "down_proj"))
    if fused is None or down is None:
        return []
    plain = not getattr(part, "is_transposed", True) and getattr(part, "is_concatenated", False)
    if fused.dim() != 3 or not plain or getattr(part, "has_bias", True):
        raise InputError(
            f"{path} ({type(part).__name__}) keeps its experts in another layout than (experts, gate and up rows, "
            "inputs) without biases; cca cannot tell which neuron owns which row"
        )
    experts, rows, _ = fused.shape
    numbers = torch.arange(experts * rows).view(experts, rows)[:, rows // 2 :]
    return [FeedForward(Owned(f"{path}.gate_up_proj", numbers.reshape(-1, 1)), part)]


def _inputs(path: str, module: nn.Module) -> int:
    _outputs(path, module)
    return module.weight.shape[0 if isinstance(module, Conv1D) else 1]  # pyright: ignore
