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


class Shape(NamedTuple):
    """What a layer keeps of a token: keys and values (K, T, D) without a token, which say of which type, and where."""

    keys: Float[Tensor, "K 0 D"]
    values: Float[Tensor, "K 0 D"]

    @classmethod
    def of(cls, text: Text) -> "list[Shape]":
        """Of each layer, from what was read of `text`."""
        return [cls(k[:, :0].clone(), v[:, :0].clone()) for k, v in zip(text.keys, text.values, strict=True)]

    @property
    def bytes_per_token(self) -> int:
        return sum(side.shape[0] * side.shape[2] * side.element_size() for side in self)

    def rows(self, tokens: int, host: bool) -> list[Float[Tensor, "M D"]]:
        """Memory for the keys and values of so many tokens, a row a head and token."""
        return [
            torch.empty(side.shape[0] * tokens, side.shape[2], dtype=side.dtype, pin_memory=side.is_cuda)
            if host
            else side.new_empty(side.shape[0] * tokens, side.shape[2])
            for side in self
        ]


@dataclass
class Ragged:
    """Keys and values of N sequences, which may begin alike, without padding: what they begin with stands there once.

    layers: of each, keys and values (M, D) on its own device, or all in the host's memory: first the K * `begun` rows
    of the common start, then one after the other each sequence's own K * `lengths[i]` ones.
    """

    shapes: list[Shape]
    begun: int
    lengths: list[int]
    layers: list[list[Float[Tensor, "M D"]]]

    @classmethod
    def room_for(cls, shapes: list[Shape], start: Text | None, lengths: Sequence[int], host: bool = False) -> "Ragged":
        """Memory for sequences that have `lengths` tokens of their own after `start`, which is put there if read.

        host: in the host's memory, from where CUDA fetches it without waiting.
        """
        begun = len(start.ids) if start else 0
        tokens = begun + sum(lengths)
        made = cls(shapes, begun, list(lengths), [shape.rows(tokens, host) for shape in shapes])
        if start:
            made._write(start, 0, begun, 0)
        return made

    @classmethod
    def of(cls, texts: Sequence[Text]) -> "Ragged":
        """What was read of `texts`, which have the same start, if any."""
        made = cls.room_for(Shape.of(texts[0]), texts[0].start, [text.own_length() for text in texts])
        for number, text in enumerate(texts):
            made.put(number, text)
        return made

    def __post_init__(self) -> None:
        ends = torch.tensor([self.begun, *self.lengths]).cumsum(0)
        self.firsts = ends[:-1].tolist()

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return sum(side.nbytes for layer in self.layers for side in layer)

    def put(self, number: int, text: Text) -> None:
        """Make `text`, of which the common start was put before, the sequence `number`."""
        self._write(text, self.firsts[number], self.lengths[number], len(text.start.ids) if text.start else 0)

    def _write(self, text: Text, first: int, length: int, after: int) -> None:
        for number in range(len(self.layers)):
            keys, values = self._tokens(number, first, length)
            text.copy_to(number, keys, values, after)

    def _tokens(self, layer: int, first: int, length: int) -> list[Float[Tensor, "K n D"]]:
        """Keys and values of the tokens from `first` on, which belong to one sequence."""
        return [
            side[heads * first : heads * (first + length)].view(heads, length, -1)
            for side, heads in zip(self.layers[layer], self._heads(layer), strict=True)
        ]

    def _heads(self, layer: int) -> list[int]:
        return [side.shape[0] for side in self.shapes[layer]]

    def on_devices(self, rows: Sequence[int], start: Text | None) -> "Ragged":
        """The sequences `rows` after `start`, which these are without, copied to their layers' devices."""
        part = Ragged.room_for(self.shapes, start, [self.lengths[i] for i in rows])
        for layer in range(len(self.layers)):
            for to, row in zip(part.firsts, rows, strict=True):
                kept = self._tokens(layer, self.firsts[row], self.lengths[row])
                for mine, its in zip(part._tokens(layer, to, self.lengths[row]), kept, strict=True):
                    mine.copy_(its, non_blocking=True)
        return part

    def take(self, rows: Sequence[int], room: int) -> tuple[DynamicCache, Tensor]:
        """A cache with the sequences `rows`, left-padded, and its mask (B, T).

        room: how many more positions it can take in; with 0 it stays as it is, whatever is joined to it.
        """
        own = torch.tensor([self.lengths[i] for i in rows])
        length = own + self.begun
        width = int(length.max())
        column = torch.arange(width + room)[None] - (width - length)[:, None]
        mask = (column[:, :width] >= 0).long()
        column = column.clamp(min=0).minimum(length[:, None] - 1)
        first = torch.tensor([self.firsts[i] for i in rows])
        places = _Places(column, first[:, None], own[:, None], self.begun)
        cache = DynamicCache()
        for number, layer in enumerate(self.layers):
            keys, values = (
                places.gathered(side, heads) for side, heads in zip(layer, self._heads(number), strict=True)
            )
            cache.layers.append(PreallocatedLayer(keys, values, width) if room else ConstantLayer(keys, values))
        return cache, mask


class _Places:
    """Where the tokens of a batch stand among the rows of a layer; told to each device once."""

    def __init__(self, column: Int[Tensor, "B C"], first: Int[Tensor, "B 1"], own: Int[Tensor, "B 1"], begun: int):
        self.column, self.first, self.own, self.begun = column, first, own, begun
        self.known: dict[tuple[torch.device, int], Int[Tensor, "B K C"]] = {}

    def gathered(self, stored: Float[Tensor, "M D"], heads: int) -> Float[Tensor, "B K C D"]:
        """The batch's, in one pass over memory."""
        key = stored.device, heads
        if key not in self.known:
            in_start = self.column < self.begun
            place = torch.where(in_start, self.column, heads * self.first + self.column - self.begun)
            a_head = torch.where(in_start, self.begun, self.own)
            found = place[:, None] + torch.arange(heads)[None, :, None] * a_head[:, None]
            self.known[key] = found.to(stored.device)
        index = self.known[key]
        return stored.index_select(0, index.flatten()).view(*index.shape, -1)


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
