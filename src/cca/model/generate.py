"""Continue sequences to their end: greedily, or by samples that depend on nothing but their own random stream.

Sampling uses one uniform number per row and position, drawn from the row's own stream, so that a trace depends neither
on the batch it was made in nor on the order.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cca.model.cache import PreallocatedLayer, cache_argument
from cca.model.numerics import check_finite
from cca.model.read import prefill


def stream(seed: int, *key: object) -> np.random.Generator:
    """The random stream that belongs to `key` alone, whatever else is drawn."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def pick(logits: Float[Tensor, "B V"], temperature: float, uniforms: Shaped[Tensor, " B"]) -> Int[Tensor, " B"]:
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


class _Batch:
    """The rows that are still being written, with their left-padded cache. rows: their numbers among all rows."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, first: Tensor):
        self.model, self.cache, self.last = model, cache, first
        self.layers = cast(list[PreallocatedLayer], cache.layers)
        self.rows = list(range(len(first)))
        self.pads = mask.shape[1] - mask.sum(1)
        self.columns = torch.ones(len(first), self.layers[0].capacity, dtype=torch.long, device=mask.device)
        self.columns[:, : mask.shape[1]] = mask

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but `rows`."""
        if len(rows) == len(self.rows):
            return
        wanted = set(rows)
        places = torch.tensor([j for j, i in enumerate(self.rows) if i in wanted], device=self.columns.device)
        for layer in self.layers:
            layer.keep(places)
        self.pads, self.columns, self.last = self.pads[places], self.columns[places], self.last[places]
        self.rows = list(rows)

    def logits(self) -> Tensor:
        """One forward pass of the last tokens: logits (rows, V) after them."""
        filled = self.layers[0].filled
        return self.model(
            input_ids=self.last[:, None],
            attention_mask=self.columns[:, : filled + 1] if bool(self.pads.any()) else None,
            position_ids=(filled - self.pads)[:, None],
            **cache_argument(self.model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    cache: DynamicCache,
    mask: Int[Tensor, "B T"],
    first: Int[Tensor, " B"],
    *,
    limits: Sequence[int],
    end_tokens: frozenset[int],
    stop: Callable[[int, Sequence[int]], bool] | None = None,
    temperature: float = 0.0,
    uniforms: np.ndarray | None = None,
) -> list[list[int]]:
    """Continue B rows until an end token or their limit; finished rows leave the batch.

    Args:
        cache: as from `Prefill.take`, with room for the longest limit.
        mask: (B, T), of `cache`.
        first: (B,) each row's first new token, already chosen.
        limits: new tokens a row may have, `first` included.
        end_tokens: ids that end a row.
        stop: whether row i ends with its new tokens, besides at an end token.
        temperature: 0 for the argmax.
        uniforms: (B, >= max limit) the rows' random streams; column 0 belongs to `first`.

    Returns:
        The new tokens of each row, end token included.

    Raises:
        FloatingPointError: a chosen token's logit is not finite.
    """
    tokens: list[list[int]] = [[int(t)] for t in first]

    def ended(i: int) -> bool:
        return len(tokens[i]) >= limits[i] or tokens[i][-1] in end_tokens or bool(stop and stop(i, tokens[i]))

    done = [ended(i) for i in range(len(tokens))]
    still = [i for i, end in enumerate(done) if not end]
    if not still:
        return tokens
    batch = _Batch(model, cache, mask, first)
    batch.keep(still)
    for step in range(1, max(limits)):
        logits = batch.logits()
        uniform = torch.from_numpy(uniforms[batch.rows, step]).to(logits.device) if uniforms is not None else batch.last
        chosen = pick(logits, temperature, uniform)
        check_finite(logits.gather(1, chosen[:, None]), f"the logits after {step} new tokens are", model)
        batch.last = chosen.to(mask.device)
        for i, token in zip(batch.rows, chosen.tolist(), strict=True):
            if not done[i]:
                tokens[i].append(token)
                done[i] = ended(i)
        still = [i for i in batch.rows if not done[i]]
        if not still:
            break
        # each compaction copies the cache, so wait until it saves an eighth of the work
        if len(still) <= 0.875 * len(batch.rows):
            batch.keep(still)
    return tokens


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
