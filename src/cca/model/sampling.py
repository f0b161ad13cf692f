"""Which token comes next: the argmax, or a sample that depends on nothing but its own random stream.

Sampling uses one uniform number per row and position, drawn from the row's own stream, so that a trace depends neither
on the batch it was made in nor on the order.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BLOCK = 4096
"""Tokens of the vocabulary that are looked at together."""


def stream(seed: int, *key: object) -> np.random.Generator:
    """The random stream that belongs to `key` alone, whatever else is drawn."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def argmax(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The first of the highest logits of each row, (B,).

    Block by block: torch finds the highest number of many faster than where it stands.
    """
    blocks = [part.amax(-1) for part in _blocks(logits)]
    at = _tokens(torch.cat(blocks, 1).argmax(-1), logits)
    return at.gather(1, _of(logits, at).argmax(-1, keepdim=True))[:, 0]


def pick(
    logits: Float[Tensor, "B V"], temperature: float, uniforms: Shaped[Tensor, " B"], top_k: int = 0
) -> Int[Tensor, " B"]:
    """Next tokens (B,): the argmax at temperature 0, otherwise a sample that `uniforms` (B,) decide.

    With `top_k` it is one of the k likeliest tokens; those as likely as the k-th are among them, as in transformers'
    `TopKLogitsWarper`. (That comes after the temperature there, which leaves the order as it is.) 0: any token.

    The Gumbel-max way, first for a block of tokens by its share, then for a token of that block: each one's noise is a
    hash of the row's uniform number and the block or token. The rounding of a batch of another size (1e-5) changes a
    sample only where the best two scores are that close; the inverse distribution function has a border at every token
    of the vocabulary, and changed one of 96 traces of a test. Noise for every token of a large vocabulary would take
    longer than the model.
    """
    if temperature == 0:
        return argmax(logits)
    key = _mixed((uniforms.double() * 2**53).to(torch.int64).to(logits.device))
    if 0 < top_k < logits.shape[1]:
        top = _top(logits, top_k)
        scores = top.logits.float() / temperature + _noise(key, top.tokens)
        return top.tokens.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
    # rows one by one stay in a processor's cache
    shares = torch.cat([_shares(part, temperature) for part in logits.split(1 if logits.device.type == "cpu" else 64)])
    blocks = torch.arange(shares.shape[1], device=logits.device)
    chosen = (shares.log() + _noise(key, -1 - blocks)).argmax(-1) if len(blocks) > 1 else torch.zeros_like(key)
    at = _tokens(chosen, logits)
    scores = _of(logits, at).float() / temperature + _noise(key, at)
    return at.gather(1, scores.argmax(-1, keepdim=True))[:, 0]


class _Top(NamedTuple):
    """Tokens of each row in their order, and their logits; of those that are not among the likeliest -inf."""

    tokens: Int[Tensor, "B n"]
    logits: Float[Tensor, "B n"]


def _top(logits: Float[Tensor, "B V"], k: int) -> _Top:
    """The k likeliest tokens of each row, and those as likely as the k-th."""
    count, size = k, logits.shape[1]
    while True:
        count = min(2 * count, size)
        highest, tokens = logits.topk(count)
        least = highest[:, k - 1 : k]
        if count == size or not ((highest[:, -1:] == least) & least.isfinite()).any():
            break  # else there may be more that are equal
    highest = highest.masked_fill(highest < least, -torch.inf)
    tokens, order = tokens.sort()  # how many were looked at, and so the order of equal ones, depends on the other rows
    return _Top(tokens, highest.gather(1, order))


def _blocks(values: Tensor) -> list[Tensor]:
    """(B, V) as (B, n, BLOCK), and what is left over as (B, 1, rest)."""
    whole = values.shape[1] // BLOCK * BLOCK
    parts = values[:, :whole].unflatten(1, (-1, BLOCK)) if whole else values[:, None, :0], values[:, None, whole:]
    return [part for part in parts if part.shape[2]]


def _tokens(block: Int[Tensor, " B"], logits: Tensor) -> Int[Tensor, "B n"]:
    """The tokens of each row's block, as far as there are so many."""
    size = min(BLOCK, logits.shape[1])
    return block[:, None] * BLOCK + torch.arange(size, device=logits.device)


def _of(logits: Tensor, at: Int[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """Logits of the tokens `at`; of those beyond the vocabulary -inf."""
    beyond = at >= logits.shape[1]
    return logits.gather(1, at.masked_fill(beyond, 0)).masked_fill(beyond, -torch.inf)


def _shares(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B n"]:
    """What the tokens of each block have together, up to a factor of the row."""
    scores = logits.float().div(temperature)
    scores = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return torch.cat([part.sum(-1) for part in _blocks(scores)], 1)


def _noise(key: Int[Tensor, " B"], numbers: Int[Tensor, "..."]) -> Float[Tensor, "B n"]:
    """Gumbel noise (B, n) for each row's `numbers`, (n,) or (B, n)."""
    uniform = (_mixed(key[:, None] + numbers) & (2**53 - 1)).double().add_(0.5).div_(2**53)
    return uniform.log_().neg_().log_().neg_().float()


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, whose products wrap as unsigned ones do."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))
