"""Read sequences once: keys and values that can be cut anywhere, and logits after chosen positions.

A causal model's cache of a sequence contains that of each of its prefixes, so what was read once serves every decode
and every step from any prefix of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from cca.model.cache import ConstantLayer, PreallocatedLayer, cache_argument
from cca.model.numerics import check_finite

_WORTH_SHARING = 64
"""Tokens that sequences must have in common to be read once."""


@dataclass
class Prefill:
    """Right-padded keys and values of B sequences and what the model predicts after chosen positions.

    keys, values: per layer (B, K, T, D); lengths (B,); logits: float32 (B, V) after each sequence's last token;
    predictions: (B, n) argmax tokens after each sequence's positions from `predict_from` on. Each layer's keys and
    values are on its own device.
    """

    keys: list[Float[Tensor, "B K T D"]]
    values: list[Float[Tensor, "B K T D"]]
    lengths: Int[Tensor, " B"]
    logits: Tensor
    predictions: Int[Tensor, "B n"] | None

    def take(self, rows: Sequence[int], lengths: Sequence[int], room: int) -> tuple[DynamicCache, Tensor]:
        """A cache with the first `lengths[i]` positions of row `rows[i]`, left-padded, and its mask (B, T).

        room: how many more positions it can take in; with 0 it stays as it is, whatever is joined to it.
        """
        length = torch.tensor(lengths)
        width = max(lengths)
        column = torch.arange(width + room)[None] - (width - length)[:, None]
        mask = (column[:, :width] >= 0).long().to(self.logits.device)
        row, column = torch.tensor(rows)[:, None], column.clamp(min=0).minimum(length[:, None] - 1)
        places = {device: (row.to(device), column.to(device)) for device in {k.device for k in self.keys}}
        cache = DynamicCache()
        cache.layers += [
            PreallocatedLayer(*stored, width) if room else ConstantLayer(*stored)
            for stored in (
                (_gathered(k, *places[k.device]), _gathered(v, *places[v.device]))
                for k, v in zip(self.keys, self.values, strict=True)
            )
        ]
        return cache, mask


def _gathered(stored: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`stored` (N, K, T, D) at rows (B, 1) and columns (B, C): (B, K, C, D), in one pass over memory."""
    heads, width, size = stored.shape[1:]
    head = torch.arange(heads, device=stored.device)[None, :, None]
    flat = (row[:, :, None] * heads + head) * width + column[:, None, :]
    return stored.reshape(-1, size).index_select(0, flat.flatten()).view(*flat.shape, size)


def logits_at(model: PreTrainedModel, ids: Int[Tensor, "B T"], places: Int[Tensor, "B n"], **options: Any) -> Any:
    """A forward pass of `ids` (B, T) that computes logits (B, n, V) after the positions `places` (B, n) alone."""

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        at = places.to(args[0].device)
        return args[0][torch.arange(len(at), device=at.device)[:, None], at], *args[1:]

    head = cast(nn.Module, model.get_output_embeddings())
    hook = head.register_forward_pre_hook(pick)
    try:
        return model(input_ids=ids.to(model.device), **options)
    finally:
        hook.remove()


def last_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "B V"]:
    """Logits (B, V) after the last token of each of `sequences`, in one right-padded batch."""
    last = torch.tensor([[len(s) - 1] for s in sequences])
    return logits_at(model, right_padded(sequences), last, use_cache=False).logits[:, 0]


@torch.no_grad()
def prefill(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], *, predict_from: Sequence[int] | None = None
) -> Prefill:
    """Read `sequences` in one batch. No mask is needed: padding lies to the right, where a causal model never looks.

    What all of them begin with (worked examples) is read once. predict_from: for each sequence the first position
    after which the model's argmax is wanted.

    Raises:
        FloatingPointError: the logits after a sequence are not finite.
    """
    lengths = torch.tensor([len(s) for s in sequences])
    ids = right_padded(sequences)
    first = torch.tensor(predict_from) if predict_from is not None else lengths - 1
    count = int((lengths - first).max())
    places = (first[:, None] + torch.arange(count)).minimum(lengths[:, None] - 1)
    cache = DynamicCache()
    shared = common_start(sequences, int(first.min()))
    if shared:
        start = ids[:1, :shared].to(model.device)
        model(input_ids=start, **cache_argument(model, cache), use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
    at = torch.arange(shared, ids.shape[1], device=model.device)[None]
    options = {**cache_argument(model, cache), "position_ids": at, "use_cache": True}
    out = logits_at(model, ids[:, shared:], places - shared, **options)
    last = out.logits[:, -1].float().to(model.device)
    check_finite(last, "the logits after a prompt are", model, lambda: model(input_ids=ids.to(model.device)))
    layers = cast(list[DynamicLayer], cache.layers)
    return Prefill(
        [cast(Tensor, layer.keys) for layer in layers],
        [cast(Tensor, layer.values) for layer in layers],
        lengths,
        last,
        out.logits.argmax(-1) if predict_from is not None else None,
    )


class OneTokenStep(NamedTuple):
    """Last tokens (B,) with the left-padded cache of what stands before them and its mask (B, T)."""

    cache: DynamicCache
    mask: Int[Tensor, "B T"]
    last: Int[Tensor, " B"]

    def logits(self, model: PreTrainedModel) -> Float[Tensor, "B V"]:
        """Logits (B, V) after the last tokens, with whatever gates are active. The cache grows: call it once."""
        return model(
            input_ids=self.last[:, None],
            attention_mask=torch.cat([self.mask, self.mask.new_ones(len(self.last), 1)], dim=1),
            position_ids=self.mask.sum(1)[:, None],
            **cache_argument(model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits.squeeze(1)


def common_start(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens, at most `limit`, all sequences begin with; 0 where too few to be worth a pass of their own."""
    if len(sequences) < 2:
        return 0
    ordered = [tuple(s) for s in sequences]
    first, last = min(ordered), max(ordered)  # what these two have in common all have
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    count = min(next(differing, len(first)), limit)
    return count if count >= _WORTH_SHARING else 0


def right_padded(sequences: Sequence[Sequence[int]], value: int = 0) -> Int[Tensor, "B T"]:
    """(B, T) int64 with `value` to the right of shorter sequences."""
    width = max(len(s) for s in sequences)
    return torch.tensor([[*s, *[value] * (width - len(s))] for s in sequences])
