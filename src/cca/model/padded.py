"""Prefixes in left-padded batches, for passes of one token each after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cca.model.cache import ConstantLayer, PreallocatedLayer, cache_argument
from cca.model.read import Text


@dataclass
class Padded:
    """Right-padded keys and values, per layer (N, K, T, D), of N sequences of which each can be cut anywhere.

    Each layer's are on its own device.
    """

    keys: list[Float[Tensor, "N K T D"]]
    values: list[Float[Tensor, "N K T D"]]

    @classmethod
    def room_for(cls, count: int, width: int, like: Text) -> "Padded":
        """Zeros for `count` sequences of at most `width` tokens."""
        sides = [[p.new_zeros(count, p.shape[0], width, p.shape[2]) for p in side] for side in (like.keys, like.values)]
        return cls(*sides)

    @classmethod
    def of(cls, texts: Sequence[Text]) -> "Padded":
        """What was read of `texts`."""
        padded = cls.room_for(len(texts), max(len(t.ids) for t in texts), texts[0])
        for row, text in enumerate(texts):
            padded.put(row, text)
        return padded

    def put(self, row: int, text: Text) -> None:
        """Make `text` the sequence `row`."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            text.copy_to(layer, keys[row, :, : len(text.ids)], values[row, :, : len(text.ids)])

    def take(self, rows: Sequence[int], lengths: Sequence[int], room: int) -> tuple[DynamicCache, Tensor]:
        """A cache with the first `lengths[i]` positions of sequence `rows[i]`, left-padded, and its mask (B, T).

        room: how many more positions it can take in; with 0 it stays as it is, whatever is joined to it.
        """
        length = torch.tensor(lengths)
        width = max(lengths)
        column = torch.arange(width + room)[None] - (width - length)[:, None]
        mask = (column[:, :width] >= 0).long()
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


class OneTokenStep(NamedTuple):
    """Last tokens (B,) with the left-padded cache of what stands before them and its mask (B, T)."""

    cache: DynamicCache
    mask: Int[Tensor, "B T"]
    last: Int[Tensor, " B"]

    def logits(self, model: PreTrainedModel) -> Float[Tensor, "B V"]:
        """Logits (B, V) after the last tokens, with whatever gates are active. The cache grows: call it once."""
        mask = self.mask.to(self.last.device)
        return model(
            input_ids=self.last[:, None],
            attention_mask=torch.cat([mask, mask.new_ones(len(self.last), 1)], dim=1),
            position_ids=mask.sum(1)[:, None],
            **cache_argument(model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits.squeeze(1)
