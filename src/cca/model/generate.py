"""Generation with a transformers model: one prefill, many decodes from it, no cache that grows by copying.

Three operations serve all stages. `prefill` reads sequences once and keeps their keys and values; `Prefill.take`
picks rows and cuts them anywhere, since a causal model's cache of a sequence contains that of each of its prefixes;
`decode` continues rows to their end. Sampling uses one uniform number per row and position, drawn from the
row's own stream, so that a trace depends neither on the batch it was made in nor on the order.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from cca.model.numerics import check_finite

_WORTH_SHARING = 64
"""Tokens that sequences must have in common to be read once."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values in buffers (B, K, capacity, D) of which the first `filled` positions count, written in place."""

    def __init__(self, key_buffer: Tensor, value_buffer: Tensor, filled: int):
        super().__init__()
        self.dtype, self.device = key_buffer.dtype, key_buffer.device
        self.key_buffer, self.value_buffer, self.filled = key_buffer, value_buffer, filled
        self._show()

    @property
    def capacity(self) -> int:
        return self.key_buffer.shape[2]

    def _show(self) -> None:
        # a full buffer is shown as it is: a slice of it would cost autograd a copy of its gradient
        self.keys, self.values = (
            b if self.filled == self.capacity else b[:, :, : self.filled] for b in (self.key_buffer, self.value_buffer)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.key_buffer = write_columns(self.key_buffer, key_states, self.filled)
        self.value_buffer = write_columns(self.value_buffer, value_states, self.filled)
        self.filled += key_states.shape[2]
        self._show()
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Drop all but `rows` of the batch."""
        rows = rows.to(self.key_buffer.device)
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self._show()


class ConstantLayer(DynamicLayer):
    """Keys and values (B, K, T, D) of a prefix, to which new ones are joined for the caller alone: nothing is kept.

    A layer that is computed twice may use it twice.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.dtype, self.device, self.keys, self.values = keys.dtype, keys.device, keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return torch.cat([cast(Tensor, self.keys), key_states], 2), torch.cat(
            [cast(Tensor, self.values), value_states], 2
        )


class _WriteColumns(torch.autograd.Function):
    """`buffer[:, :, start:] = fresh` without the two copies that autograd makes of a sliced assignment's gradient."""

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, fresh: Tensor, start: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.columns = slice(start, start + fresh.shape[2])
        buffer[:, :, ctx.columns] = fresh
        ctx.mark_dirty(buffer)
        return buffer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, gradient[:, :, ctx.columns], None


def write_columns(buffer: Tensor, fresh: Tensor, start: int) -> Tensor:
    """Write `fresh` (B, K, n, D) into positions `start` and on of `buffer`, whose older content is a constant."""
    return cast(Tensor, _WriteColumns.apply(buffer, fresh, start))


@dataclass
class Prefill:
    """Right-padded keys and values of B sequences and what the model predicts after chosen positions.

    keys, values: per layer (B, K, T, D); lengths (B,); logits: float32 (B, V) after each sequence's last token;
    predictions: (B, n) argmax tokens after each sequence's positions from `predict_from` on. Each layer's keys and
    values are on its own device.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    logits: Tensor
    predictions: Tensor | None

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


def cache_argument(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """`cache` under the name that the model's forward pass takes: transformers 5.24 renamed `past_key_values`."""
    return {_cache_name(type(model)): cache}


@remembered
def _cache_name(model_class: type[PreTrainedModel]) -> str:
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


def logits_at(model: PreTrainedModel, ids: Tensor, places: Tensor, **options: Any) -> Any:
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


def last_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
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
    mask: Tensor
    last: Tensor

    def logits(self, model: PreTrainedModel) -> Tensor:
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


def right_padded(sequences: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """(B, T) int64 with `value` to the right of shorter sequences."""
    width = max(len(s) for s in sequences)
    return torch.tensor([[*s, *[value] * (width - len(s))] for s in sequences])


def stream(seed: int, *key: object) -> np.random.Generator:
    """The random stream that belongs to `key` alone, whatever else is drawn."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def pick(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Next tokens (B,): the argmax at temperature 0, otherwise a sample that `uniforms` (B,) decide.

    The Gumbel-max way: each token's noise is a hash of the row's uniform number and the token. The rounding of a
    batch of another size (1e-5) changes a sample only where the best two scores are that close; the inverse
    distribution function has a border at every token of the vocabulary, and changed one of 96 traces of a test.
    """
    if temperature == 0:
        return logits.argmax(-1)
    key = (uniforms.double() * 2**53).to(torch.int64).to(logits.device)
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    noise = (_mixed(_mixed(key)[:, None] + tokens) & (2**53 - 1)).double().add_(0.5).div_(2**53)
    return (logits.float() / temperature - noise.log_().neg_().log_().float()).argmax(-1)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, whose products wrap as unsigned ones do."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    cache: DynamicCache,
    mask: Tensor,
    first: Tensor,
    *,
    limits: Sequence[int],
    end_tokens: frozenset[int],
    stop: Callable[[int, Sequence[int]], bool] | None = None,
    temperature: float = 0.0,
    uniforms: np.ndarray | None = None,
) -> list[list[int]]:
    """Continue B rows until an end token or their limit; finished rows leave the batch.

    cache and mask: as from `Prefill.take`, with room for the longest limit. first (B,): each row's first new token,
    already chosen. limits: new tokens a row may have, `first` included. stop: whether a row ends with its new tokens,
    besides at an end token. uniforms (B, >= max limit): the row's stream; column 0 belongs to `first`. Returns the new
    tokens of each row, end token included.

    Raises:
        FloatingPointError: a chosen token's logit is not finite.
    """
    tokens: list[list[int]] = [[int(t)] for t in first]
    done = [limits[i] <= 1 or t[0] in end_tokens or bool(stop and stop(i, t)) for i, t in enumerate(tokens)]
    alive = [i for i in range(len(tokens)) if not done[i]]
    if not alive:
        return tokens
    layers = cast(list[PreallocatedLayer], cache.layers)
    pads = mask.shape[1] - mask.sum(1)
    columns = torch.ones(len(tokens), layers[0].capacity, dtype=torch.long, device=mask.device)
    columns[:, : mask.shape[1]] = mask
    in_batch = list(range(len(tokens)))
    last = first
    step = 0
    while True:
        if len(alive) < len(in_batch):
            rows = torch.tensor([j for j, i in enumerate(in_batch) if i in set(alive)], device=mask.device)
            for layer in layers:
                layer.keep(rows)
            pads, columns, last = pads[rows], columns[rows], last[rows]
            in_batch = alive
        filled = layers[0].filled
        out = model(
            input_ids=last[:, None],
            attention_mask=columns[:, : filled + 1] if bool(pads.any()) else None,
            position_ids=(filled - pads)[:, None],
            **cache_argument(model, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        step += 1
        uniform = torch.from_numpy(uniforms[in_batch, step]) if uniforms is not None else last
        logits = out.logits[:, -1]
        last = pick(logits, temperature, uniform.to(logits.device))
        check_finite(logits.gather(1, last[:, None]), f"the logits after {step} new tokens are", model)
        last = last.to(mask.device)
        for i, token in zip(in_batch, last.tolist(), strict=True):
            if not done[i]:
                tokens[i].append(token)
                done[i] = len(tokens[i]) >= limits[i] or token in end_tokens or bool(stop and stop(i, tokens[i]))
        still = [i for i in in_batch if not done[i]]
        if not still:
            return tokens
        # each compaction copies the cache, so wait until it saves an eighth of the work
        alive = still if len(still) <= 0.875 * len(in_batch) else in_batch


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_tokens: frozenset[int],
    stop: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Greedy continuations of `prompts`, all in one batch. Arguments as in `decode`."""
    read = prefill(model, prompts)
    cache, mask = read.take(range(len(prompts)), read.lengths.tolist(), room=max_new_tokens)
    first = read.logits.argmax(-1)
    limits = [max_new_tokens] * len(prompts)
    return decode(model, cache, mask, first, limits=limits, end_tokens=end_tokens, stop=stop)
