"""Gate components inside a context manager: each component's output is multiplied by 2 x gate.

Only at the last position of each sequence (paper section 3.2): 1 amplifies, 0.5 is neutral, 0 removes. Heads are
gated where attention receives them, after any q/k normalisation and rotation; neurons at the input of the down
projection.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cca.anatomy import Anatomy

_STATE = "_cca_head_gates"
_PREFIX = "cca_gated_"


def _scale_last(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the last of the positions T of (..., T, D) by `factor`, which broadcasts against (..., 1, D)."""
    return x * factor if x.shape[-2] == 1 else torch.cat([x[..., :-1, :], x[..., -1:, :] * factor], dim=-2)


def _gated_attention(base: str) -> Callable[..., Any]:
    def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        gates: tuple[Tensor, Tensor, Tensor] | None = getattr(module, _STATE, None)
        if gates is not None:
            if base == "sdpa" and query.shape[2] == 1 and kwargs.get("position_bias") is None:
                mask = args[0] if args else kwargs["attention_mask"]
                return _one_query(query, key, value, mask, kwargs.get("scaling"), gates), None
            heads = (gate[:, None, None] for gate in gates)
            query, key, value = (_scale_last(x, g) for x, g in zip((query, key, value), heads, strict=True))
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)(module, query, key, value, *args, **kwargs)  # pyright: ignore[reportArgumentType]

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
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, gates: tuple[Tensor, ...]
) -> Tensor:
    """What scaled dot-product attention gives for one gated query, with gradients for its own key and value only.

    Earlier keys and values come from a cache and are constants, but for the attention function they are one tensor
    with the newest, and it would compute and copy a gradient for each of them: most of a step's time.
    query (B, H, 1, D), key and value (B, K, T, D); returns (B, 1, H, D).
    """
    query_gate, key_gate, value_gate = (gate[:, None, None] for gate in gates)
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    packed = (query * query_gate).reshape(len(query), key.shape[1], groups, -1)
    newest_key, newest_value = _newest(key) * key_gate, _newest(value) * value_gate
    earlier_key, earlier_value = key[:, :, :-1].detach(), value[:, :, :-1].detach()
    scores = torch.cat([packed @ earlier_key.mT, packed @ newest_key.mT], dim=-1)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        mask = mask if mask.shape[1] == 1 else mask.reshape(len(query), key.shape[1], groups, -1)
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.float().softmax(-1).to(query.dtype)
    earlier, newest = weights.split([weights.shape[-1] - 1, 1], dim=-1)
    mixed = earlier @ earlier_value + newest * newest_value
    return mixed.reshape(len(query), heads, 1, -1).transpose(1, 2).contiguous()


def _scale_neurons(factor: Tensor) -> Callable[..., tuple[Tensor]]:
    """A hook that multiplies the last position of (B, T, I) by a factor per neuron (I,)."""

    def scale(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (_scale_last(args[0], factor),)

    return scale


@contextmanager
def gated(model: PreTrainedModel, anatomy: Anatomy, gates: Tensor) -> Iterator[None]:
    """Within the context, multiply every component's output at the last position by 2 x its gate.

    gates: (C,) in [0, 1], float32, in the anatomy's flat order; gradients flow into it. Neutral gates (0.5)
    change nothing. Works for full sequences and for one-token steps against a cache, provided that the last
    position of every sequence is the last column (left padding).
    """
    base = str(model.config._attn_implementation)
    name = _PREFIX + base
    AttentionInterface.register(name, _gated_attention(base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    hooks = []
    try:
        for layer, (query, key, value, neuron) in zip(anatomy.layers, anatomy.split(gates * 2), strict=True):
            dtype = layer.query.weight.dtype
            object.__setattr__(layer.attention, _STATE, tuple(g.to(dtype) for g in (query, key, value)))

            hooks.append(layer.down.register_forward_pre_hook(_scale_neurons(neuron.to(dtype))))
        model.config._attn_implementation = name
        yield
    finally:
        model.config._attn_implementation = base
        for hook in hooks:
            hook.remove()
        for layer in anatomy.layers:
            if hasattr(layer.attention, _STATE):
                delattr(layer.attention, _STATE)
