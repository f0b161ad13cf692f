"""Read sequences once: keys and values that can be cut anywhere, and logits after chosen positions.

A causal model's keys and values of a sequence contain those of each of its prefixes, so what was read once serves
every decode and every step from any prefix of it. Sequences pass through the model side by side, as one row of tokens
(`packed`): each layer's attention is called for one sequence after the other, all else for all tokens at once. So
nothing is padding, and what is computed for a sequence does not depend on those beside it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from cca.model.attention import Pattern, attend, attention_through, is_softmax, stock_attention
from cca.model.cache import ConstantLayer, cache_argument
from cca.model.memory import Halving
from cca.model.numerics import check_finite
from cca.model.sampling import argmax

T = TypeVar("T")
TOKENS = {"cpu": 2048, "cuda": 4096}
"""Tokens of a pass, by device: enough to keep it busy, few enough that what lies between two layers stays in its
caches."""
_WORTH_SHARING = 16
"""Tokens that sequences must have in common to be read once."""
_ROWS = 8
"""Tokens of a pass, and rows of logits, are a multiple of this: other numbers of rows are rounded in another order."""
_LOGITS = 2**29
"""Logits of a pass, at most: of a vocabulary of 262,144 there are 8 GiB after 4,096 tokens in float32."""


@dataclass(eq=False)
class Text:
    """Token ids that are read once, and what reading them gave.

    ids: all of them. predict_from: the first position after which the model's argmax is wanted, if any. start: what it
    begins with, where that is read on its own for several texts.
    keys, values: per layer (K, T, D), of the positions after `start`, each layer's on its own device. last: logits (V,)
    after the last token. predictions: the argmax after each position from `predict_from` on.
    """

    ids: tuple[int, ...]
    predict_from: int | None = None
    start: "Text | None" = None
    keys: list[Float[Tensor, "K T D"]] = field(default_factory=list, repr=False)
    values: list[Float[Tensor, "K T D"]] = field(default_factory=list, repr=False)
    last: Tensor | None = field(default=None, repr=False)
    predictions: list[int] = field(default_factory=list, repr=False)
    forgotten: bool = False

    @property
    def whole(self) -> "Text":
        """What it begins with, itself where that is nothing shared."""
        return self.start.whole if self.start else self

    @property
    def is_read(self) -> bool:
        return self.last is not None

    def own_length(self) -> int:
        """How many ids stand after `start`."""
        return len(self.ids) - (len(self.start.ids) if self.start else 0)

    @property
    def wanted(self) -> range:
        """The positions after which logits are needed."""
        return range(len(self.ids) - 1 if self.predict_from is None else self.predict_from, len(self.ids))

    @property
    def own(self) -> tuple[int, ...]:
        """The ids after `start`."""
        return self.ids[len(self.start.ids) :] if self.start else self.ids

    def unread(self) -> "Text":
        """The same ids after the same start, to be read again."""
        return Text(self.ids, start=self.start)

    def forget(self) -> None:
        """Let go of keys, values and logits, which must not be asked for again."""
        self.keys, self.values, self.forgotten = [], [], True
        if self.last is not None:
            self.last = self.last.new_empty(0)

    def copy_to(self, layer: int, keys: Tensor, values: Tensor, after: int = 0) -> None:
        """Write a layer's n positions from position `after` on into `keys` and `values` (K, n, D)."""
        end, begun = after + keys.shape[1], len(self.start.ids) if self.start else 0
        shared = max(0, min(begun, end) - after)
        if self.start and shared:
            self.start.copy_to(layer, keys[:, :shared], values[:, :shared], after)
        if end > begun:
            own = slice(max(0, after - begun), end - begun)
            keys[:, shared:], values[:, shared:] = self.keys[layer][:, own], self.values[layer][:, own]


def texts(sequences: Sequence[Sequence[int]], start: Sequence[int] | None = None) -> list[Text]:
    """A text for each of `sequences`, which share what they begin with: `start`, by default what is common to all."""
    if start is None:
        start = sequences[0][: common_start(sequences, min(map(len, sequences)) - 1)]
    shared = Text(tuple(start)) if len(start) >= _WORTH_SHARING else None

    def has_it(sequence: tuple[int, ...]) -> bool:
        return shared is not None and len(sequence) > len(start) and sequence[: len(start)] == shared.ids

    return [Text(s, start=shared if has_it(s) else None) for s in map(tuple, sequences)]


@torch.no_grad()
def read(model: PreTrainedModel, unread: Sequence[Text], progress: Callable[[int], None] | None = None) -> None:
    """Read those of `unread` that were not read before, and what they begin with.

    progress: told after each pass how many tokens it read.

    Raises:
        FloatingPointError: the logits after a sequence are not finite.
        TooLargeError: a sequence alone does not fit in memory.
    """
    for start in {id(t.start): t.start for t in unread if t.start and not t.start.is_read}.values():
        read(model, [start], progress)
    cost = _cost(model)
    passes = Halving(cost, _too_large)
    for start in {id(t.start): t.start for t in unread}.values():

        def work(group: Sequence[Text], start: Text | None = start) -> None:
            _read(model, group, start)
            if progress:
                progress(sum(map(Text.own_length, group)))

        passes.run(by_budget([t for t in unread if t.start is start and not t.is_read], cost, model), work)


def _too_large(text: Text) -> str:
    return (
        f"there is too little memory to read {len(text.ids):,} tokens at once; shorten prompts (prompt.shots), or set "
        "model.dtype to bfloat16 or model.device_map to auto"
    )


def _cost(model: PreTrainedModel) -> Callable[[Text], int]:
    """Tokens that a text takes of a pass; more than it has where its logits are what fills the memory."""
    of_a_prediction = tokens_of_a_pass(model) * model.config.get_text_config().vocab_size / _LOGITS
    return lambda text: max(text.own_length(), int(of_a_prediction * len(text.wanted)))


def tokens_of_a_pass(model: PreTrainedModel) -> int:
    """About how many tokens a pass should have."""
    return TOKENS.get(model.device.type, TOKENS["cpu"])


def by_budget(
    items: Iterable[T], tokens: Callable[[T], int], model: PreTrainedModel, most: int | None = None, shared: int = 0
) -> Iterator[list[T]]:
    """Groups of `items`, in their order, each of about as many tokens as a pass should have, and of at most `most`.

    shared: tokens that each pass computes besides, of which there should be fewer.
    """
    budget = max(tokens_of_a_pass(model), 2 * shared)
    group, count = list[T](), 0
    for item in items:
        if group and (count + tokens(item) > budget or len(group) == most):
            yield group
            group, count = [], 0
        group.append(item)
        count += tokens(item)
    if group:
        yield group


def _read(model: PreTrainedModel, group: Sequence[Text], start: Text | None) -> None:
    shared = len(start.ids) if start else 0
    wanted, own, places, before = [t.wanted for t in group], [t.own for t in group], list[int](), 0
    for ids, positions in zip(own, wanted, strict=True):
        places += [before + p - shared for p in positions]
        before += len(ids)
    sizes, count = [len(ids) for ids in own], len(places)
    if odd := -before % _ROWS:
        own.append(own[0][:1] * odd)
        sizes.append(odd)
    places += places[-1:] * (-count % _ROWS)
    out = packed(model, own, places, start=start)
    last = torch.tensor([len(positions) for positions in wanted]).cumsum(0) - 1
    after = out.logits[last.to(out.logits.device)].to(model.device)
    check_finite(after, "the logits after a prompt are", model, lambda: packed(model, own, places, start=start))
    best = argmax(out.logits).tolist() if any(t.predict_from is not None for t in group) else []
    # no views, which would hold those of the whole pass
    keys, values = (
        [[part.clone() for part in layer[0].split(sizes, 1)[: len(group)]] for layer in side]
        for side in (out.keys, out.values)
    )
    lasts = [logits.clone() for logits in after]
    for number, text in enumerate(group):  # only now, for each may have run out of memory
        text.keys, text.values = [layer[number] for layer in keys], [layer[number] for layer in values]
        text.last = lasts[number]
        if text.predict_from is not None:
            text.predictions = best[int(last[number]) + 1 - len(wanted[number]) : int(last[number]) + 1]


@dataclass(frozen=True)
class Packed:
    """What a pass over N packed tokens gave: logits (n, V) where asked for; per layer keys and values (1, K, N, D)."""

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def packed(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], places: Sequence[int], *, start: Text | None = None
) -> Packed:
    """What `passing` gives, where no backward pass is to follow."""
    with passing(model, sequences, places, start=start) as found:
        return found


@contextmanager
def passing(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    places: Sequence[int],
    *,
    start: Text | None = None,
    shared: int = 0,
) -> Iterator[Packed]:
    """One pass over `sequences` side by side, as one row of N tokens.

    Within the context a backward pass may compute layers again. With gradients it gives no keys and values.

    Args:
        places: positions in that row after which logits are wanted, of no others.
        start: read before; what stands before each of the sequences.
        shared: how many tokens all the sequences begin with that are computed once, for all of them, and stand once at
            the beginning of the row; gradients come together there.
    """
    common = sequences[0][:shared]
    parts = [common, *(s[shared:] for s in sequences)] if shared else list(sequences)
    before = len(start.ids) if start else shared
    spans, at, positions = list[tuple[int, int]](), 0, list[int]()
    for number, part in enumerate(parts):
        first = 0 if shared and not number else before
        spans.append((at, at + len(part)))
        positions += range(first, first + len(part))
        at += len(part)
    cache = DynamicCache()
    cache.layer_class_to_replicate = ConstantLayer
    if start:
        whole = [_whole(start, layer) for layer in range(len(start.keys))]
        cache.layers += [ConstantLayer(k, v) for k, v in whole]

    def wrap(base: str) -> Callable[..., Any]:
        return _apart(base, spans, before, alone=bool(shared))

    ids = torch.tensor([[token for part in parts for token in part]], device=model.device)

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0][:, torch.tensor(places, device=args[0].device)], *args[1:]

    hook = cast(nn.Module, model.get_output_embeddings()).register_forward_pre_hook(pick)
    try:
        with attention_through(model, wrap, Pattern.of):
            logits = model(
                input_ids=ids,
                position_ids=torch.tensor([positions], device=model.device),
                **cache_argument(model, cache),
                use_cache=True,
            ).logits[0]
            hook.remove()
            layers = cast(list[ConstantLayer], cache.layers)
            yield Packed(logits, [layer.own_keys for layer in layers], [layer.own_values for layer in layers])
    finally:
        hook.remove()


def _whole(text: Text, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1, K, T, D) of all positions of a text."""
    keys, values = text.keys[layer], text.values[layer]
    if text.start:
        keys, values = (torch.cat([a[0], b], 1) for a, b in zip(_whole(text.start, layer), (keys, values), strict=True))
    return keys[None], values[None]


def _apart(base: str, spans: Sequence[tuple[int, int]], before: int, alone: bool) -> Callable[..., Any]:
    """Attention of packed sequences, one after the other, each with what stands before it.

    spans: where they are. before: how many keys they all look at besides their own, which come first among the keys.
    alone: the first span is these keys, and is looked at as a sequence of its own.
    """

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Pattern, **kwargs: Any
    ) -> tuple[Tensor, None]:
        out, offset, positions = list[Tensor](), key.shape[2] - query.shape[2], kwargs.get("position_ids")
        for number, (a, b) in enumerate(spans):
            start = 0 if alone and not number else before
            k, v = key[:, :, offset + a : offset + b], value[:, :, offset + a : offset + b]
            if start:
                k, v = torch.cat([key[:, :, :start], k], 2), torch.cat([value[:, :, :start], v], 2)
            if positions is not None:
                kwargs["position_ids"] = positions[:, a:b]
            mask = attention_mask.of_a_sequence(start, b - a, base, query)
            if start and base == "sdpa" and mask is not None and is_softmax(base, module, kwargs):
                out.append(attend(query[:, :, a:b], k, v, mask, kwargs.get("scaling"), None))
            else:
                out.append(stock_attention(base, module, query[:, :, a:b], k, v, mask, **kwargs)[0])
        return torch.cat(out, 1), None

    return forward


@contextmanager
def last_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Iterator[Float[Tensor, "B V"]]:
    """Logits (B, V) after the last token of each of `sequences`, in one pass, for use within the context.

    What all of them begin with is computed once. Gradients flow where they are wanted.
    """
    shared = common_start(sequences, min(len(s) for s in sequences) - 1)
    ends = torch.tensor([len(s) - shared for s in sequences]).cumsum(0) + shared - 1
    with passing(model, sequences, ends.tolist(), shared=shared) as found:
        yield found.logits


def common_start(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens, at most `limit`, all sequences begin with; 0 where too few to be worth a pass of their own."""
    if len(sequences) < 2:
        return 0
    ordered = [tuple(s) for s in sequences]
    first, last = min(ordered), max(ordered)  # what these two have in common all have
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    count = min(next(differing, len(first)), limit)
    return count if count >= _WORTH_SHARING else 0
