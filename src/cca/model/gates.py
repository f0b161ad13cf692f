"""Gate components inside a context manager: each component's output is multiplied by 2 x gate.

Only at the last position of each sequence (paper section 3.2): 1 amplifies, 0.5 is neutral, 0 removes. Heads are
gated where attention receives them, after any q/k normalisation and rotation; neurons at the input of the down
projection.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from cca.model.attention import attention_through, is_softmax, stock_attention
from cca.model.components import Components
from cca.model.experts import ExpertGates, Width, is_experts, with_experts


def _scale_last(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the last of the positions T of (..., T, D) by `factor`, which broadcasts against (..., 1, D).

    The product is in float32, like the gates, and then rounded to the type of `x`.
    """
    last = (x[..., -1:, :] * factor.to(x.device)).to(x.dtype)
    return last if x.shape[-2] == 1 else torch.cat([x[..., :-1, :], last], dim=-2)


def _gated_attention(base: str, of_heads: Mapping[nn.Module, tuple[Tensor, ...]]) -> Callable[..., Any]:
    """What attention calls in place of `base`. of_heads: by attention, the gates of its heads."""

    def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        gates = of_heads.get(module)
        if gates is not None:
            if query.shape[2] == 1 and is_softmax(base, module, kwargs):
                mask = args[0] if args else kwargs["attention_mask"]
                return _one_query(query, key, value, mask, kwargs.get("scaling"), kwargs.get("softcap"), gates), None
            heads = (gate[:, None, None] for gate in gates)
            query, key, value = (_scale_last(x, g) for x, g in zip((query, key, value), heads, strict=True))
        return stock_attention(base, module, query, key, value, *args, **kwargs)

    return forward


class _Newest(torch.autograd.Function):
    """`x[:, :, -1:]` of (B, K, T, D) of which all earlier positions are constants.

    Their gradients, which nothing reads, repeat the newest's without memory; a slice would fill them with zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.shape = x.shape
        return x[:, :, -1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.expand(ctx.shape)


def _newest(x: Tensor) -> Tensor:
    return cast(Tensor, _Newest.apply(x))


def _one_query(
    query: Float[Tensor, "B H 1 D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    mask: Shaped[Tensor, "..."] | None,
    scaling: float | None,
    softcap: float | None,
    gates: tuple[Tensor, ...],
) -> Float[Tensor, "B 1 H D"]:
    """What softmax attention gives for one gated query, with gradients for its own key and value only.

    Earlier keys and values come from a cache and are constants, but for the attention function they are one tensor
    with the newest, and it would compute and copy a gradient for each of them: most of a step's time.
    query (B, H, 1, D), key and value (B, K, T, D); returns (B, 1, H, D).
    """
    query_gate, key_gate, value_gate = (gate[:, None, None].to(query.device) for gate in gates)
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    packed = (query * query_gate).to(query.dtype).reshape(len(query), key.shape[1], groups, -1)
    newest_key, newest_value = (_newest(key) * key_gate).to(key.dtype), (_newest(value) * value_gate).to(value.dtype)
    earlier_key, earlier_value = key[:, :, :-1].detach(), value[:, :, :-1].detach()
    scores = torch.cat([packed @ earlier_key.mT, packed @ newest_key.mT], dim=-1)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        mask = mask if mask.shape[1] == 1 else mask.reshape(len(query), key.shape[1], groups, -1)
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.float().softmax(-1).to(query.dtype)
    earlier, newest = weights.split([weights.shape[-1] - 1, 1], dim=-1)
    mixed = earlier @ earlier_value + newest * newest_value
    return mixed.reshape(len(query), heads, 1, -1).transpose(1, 2).contiguous()


def _scale_neurons(factor: Tensor, width: Width) -> Callable[..., tuple[Tensor]]:
    """A hook that multiplies the last position of (B, T, I), or of (B x T, I), by a factor per neuron (I,)."""

    def scale(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0]
        return (_scale_last(x.reshape(-1, width.positions, x.shape[-1]), factor).reshape(x.shape),)

    return scale


@contextmanager
def gated(model: PreTrainedModel, components: Components, gates: Float[Tensor, " C"]) -> Iterator[None]:
    """Within the context, multiply every component's output at the last position by 2 x its gate.

    gates: (C,) in [0, 1], float32, in the components' flat order; gradients flow into it. Neutral gates (0.5)
    change nothing. Works for full sequences and for one-token steps against a cache, provided that the last
    position of every sequence is the last column (left padding).
    """
    width, of_heads = Width(), dict[nn.Module, tuple[Tensor, ...]]()
    with ExitStack() as stack:
        wrap = partial(_gated_attention, of_heads=of_heads)
        stack.enter_context(attention_through(model, wrap))
        hook = components.layers[0].module.register_forward_pre_hook(width.see, with_kwargs=True)
        stack.callback(hook.remove)
        for layer, (query, key, value, neuron) in zip(components.layers, components.split(gates * 2), strict=True):
            of_heads[layer.attention] = query, key, value
            sizes = [len(part.up) for part in layer.feed_forward]
            for part, factor in zip(layer.feed_forward, neuron.split(sizes), strict=True):
                if is_experts(part.down):
                    stack.enter_context(with_experts(part.down, gates=ExpertGates(factor, width)))
                else:
                    hook = part.down.register_forward_pre_hook(_scale_neurons(factor, width))
                    stack.callback(hook.remove)
        yield
