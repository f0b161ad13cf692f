"""Prove by a small forward pass that a model computes as its components say, before anything slow relies on it.

A head must depend on the rows that it is said to own and on no others, and reach attention through the function that
gates are put around. So a model that merely looks like a known one is refused rather than gated wrongly.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cca.errors import InputError
from cca.model.attention import attention_through, stock_attention
from cca.model.components import Components, FeedForward, Layer, Owned
from cca.model.experts import is_experts
from cca.model.gates import gated
from cca.model.numerics import check_finite
from cca.model.padded import OneTokenStep, Ragged
from cca.model.read import read, texts

_TOKENS, _PREFIX = 4, 12
_TINY = 0.01
_FAINT = 0.05
"""A row counts where its gradient is above this share of the largest; 16-bit rounding stays below it."""


@dataclass
class _Seen:
    """What a pass showed: by attention its heads, by weight its projection's output, by down projection its input.

    Outputs are cut off from what they were computed from, so a gradient ends at the nearest projection.
    """

    heads: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    neurons: dict[nn.Module, Tensor] = field(default_factory=dict)

    def attention(self, base: str) -> Callable[..., Any]:
        def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.heads[module] = (query, key, value)
            return stock_attention(base, module, query, key, value, *args, **kwargs)

        return forward

    def output_of(self, weight: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            self.outputs[weight] = out.detach().requires_grad_()
            return self.outputs[weight]

        return hook

    def input_of(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.neurons[module] = args[0]


def verify_components(model: Any, components: Components) -> None:
    """One pass of a few tokens through `model`, and the gradients of each kind of layer's heads and neurons.

    Raises:
        InputError: a component depends on other rows than it owns, or its attention cannot be reached; the message
            names the module.
        FloatingPointError: the model's own logits are not finite.
    """
    _check_components(model, components)
    _check_cached_step(model, components)


def _check_components(model: Any, components: Components) -> None:
    layers = _different(components)
    seen = _Seen()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.get_input_embeddings().num_embeddings, (1, _TOKENS), generator=generator).to(model.device)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(attention_through(model, seen.attention))
        for layer in layers:
            for weight in {owned.weight for owned in layer.owned() if owned.weight.endswith(".weight")}:
                module = model.get_submodule(weight.removesuffix(".weight"))
                stack.callback(module.register_forward_hook(seen.output_of(weight)).remove)
            for part in layer.feed_forward:
                if not is_experts(part.down):
                    stack.callback(part.down.register_forward_pre_hook(seen.input_of).remove)
        logits = model(input_ids=ids, use_cache=False).logits
        check_finite(logits, "the logits of a small pass are", model, lambda: model(input_ids=ids, use_cache=False))
        for layer in layers:
            _check_heads(layer, seen, generator)
            for part in layer.feed_forward:
                if not is_experts(part.down):
                    _check_neurons(part, seen, generator)


@torch.no_grad()
def _check_cached_step(model: Any, components: Components) -> None:
    """The gated last token must see in plain keys and values all that the model knows of the tokens before it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.get_input_embeddings().num_embeddings, (1, _PREFIX), generator=generator).to(model.device)
    gates = torch.rand(components.size, generator=generator).to(model.device)
    with gated(model, components, gates):
        whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    try:
        # beside another sequence, of which it must see nothing
        packed = texts([ids[0].flip(0).tolist(), ids[0, :-1].tolist()])
        read(model, packed)
        cache, mask = Ragged.of(packed).take([1], room=1)
        with gated(model, components, gates):
            step = OneTokenStep(cache, mask, ids[0, -1:]).logits(model)[0].float()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{type(model).__name__} does not work from cached keys and values "
            f"({type(error).__name__}: {error}), on which cca relies; choose another model"
        ) from error
    difference = float((step - whole).std() / whole.std())
    # 16-bit rounding may send a token to another expert; logits that have nothing in common differ by more than 1
    if not difference < (1e-3 if model.dtype == torch.float32 else 0.5):
        raise InputError(
            f"{type(model).__name__} gives other logits from cached keys and values than in one pass (by "
            f"{difference:.2g} of their spread), so it keeps something else besides; choose another model"
        )


def _different(components: Components) -> list[Layer]:
    """One layer of each class and shape."""
    kinds: dict[Any, Layer] = {}
    for layer in components.layers:
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.module.named_parameters())
        kinds.setdefault((type(layer.module), shapes), layer)
    return list(kinds.values())


def _check_heads(layer: Layer, seen: _Seen, generator: torch.Generator) -> None:
    if layer.attention not in seen.heads:
        raise InputError(
            f"the attention of {layer.name} ({type(layer.attention).__name__}) does not call transformers' attention "
            "interface, so its heads cannot be gated; choose another model"
        )
    owners = {"query": layer.query, "key": layer.key, "value": layer.value}
    outputs = {owned.weight: seen.outputs[owned.weight] for owned in owners.values()}
    for (kind, owned), heads in zip(owners.items(), seen.heads[layer.attention], strict=True):
        if heads.shape[1] != len(owned):
            raise InputError(
                f"{layer.name}: attention receives {heads.shape[1]} {kind} heads where {owned.weight} has {len(owned)}"
                "; cca cannot tell which head owns which row"
            )
        for number, head in enumerate(heads[0]):
            # a normalisation over all heads couples them along the head's own direction only, so that is left out
            direction = nn.functional.normalize(head.detach(), dim=-1)
            weighting = torch.randn(head.shape, generator=generator).to(head)
            weighting = weighting - (weighting * direction).sum(-1, keepdim=True) * direction
            _check_rows(f"{kind} head {number} of {layer.name}", (head * weighting).sum(), owned, [number], outputs)


def _check_neurons(part: FeedForward, seen: _Seen, generator: torch.Generator) -> None:
    name, count = part.up.weight, len(part.up)
    reached, out = seen.neurons.get(part.down), seen.outputs[name]
    if reached is None or reached.shape[-1] != count:
        raise InputError(f"the down projection that belongs to {name} does not receive its {count} neurons")
    gate_rows = out.shape[-1] - count
    if gate_rows:
        (slope,) = torch.autograd.grad(reached.sum(), out, retain_graph=True)
        rows = part.up.rows.flatten().to(out.device)
        if not torch.allclose(out[..., rows] * slope[..., rows], reached, rtol=_FAINT, atol=1e-3):
            raise InputError(
                f"the neurons of {name} are not linear in its last {count} rows; cca cannot place this layout"
            )
    some = torch.randperm(count, generator=generator)[: max(1, count // 8)].tolist()
    _check_rows(f"some neurons of {name}", reached[..., some].sum(), part.up, some, {name: out}, gate_rows)


def _check_rows(
    what: str, value: Tensor, owned: Owned, numbers: Sequence[int], outputs: Mapping[str, Tensor], ignored: int = 0
) -> None:
    """`value` must depend on the rows of its components and, of all `outputs` but the first `ignored`, on no others."""
    gradients = torch.autograd.grad(value, list(outputs.values()), retain_graph=True, allow_unused=True)
    strength = {
        name: torch.zeros(out.shape[-1]) if g is None else g.abs().float().flatten(0, -2).sum(0).cpu()
        for (name, out), g in zip(outputs.items(), gradients, strict=True)
    }
    faint = _FAINT * max(float(s.max()) for s in strength.values())
    own = owned.rows[list(numbers)].flatten()
    # a neuron may be next to silent for these few tokens; one that does not depend on a row has a gradient of 0
    if float((strength[owned.weight][own] > _TINY * faint).float().mean()) < 0.5:
        raise InputError(f"{what} does not depend on its rows of {owned.weight}; cca cannot place this layout")
    for name, strengths in strength.items():
        foreign = strengths > faint
        foreign[:ignored] = False
        if name == owned.weight:
            foreign[own] = False
        if bool(foreign.any()):
            row = int(foreign.nonzero()[0])
            raise InputError(f"{what} also depends on row {row} of {name}; cca cannot place this layout")
