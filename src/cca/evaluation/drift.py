"""Drift: how far the updated model is from the base on given text. It moves before any answer does."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cca.evaluation.results import Drift
from cca.model.intervention import Intervention
from cca.model.memory import Halving
from cca.model.numerics import check_finite
from cca.model.read import by_budget, common_start, passing
from cca.problems.prompts import Prompter
from cca.records import Problem

_LOGITS = 2**27
"""Logits held at once: half a GiB in float32, of which a few copies are made."""


class Text(NamedTuple):
    """Token ids, of which the `written` ones measure drift."""

    context: tuple[int, ...]
    written: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.context) + len(self.written)


def solution_texts(prompter: Prompter, problems: Sequence[Problem], count: int) -> list[Text]:
    """The worked solutions of at most `count` of `problems`, evenly spaced, so that every template has its part."""
    solved = [p for p in problems if p.solution.strip()]
    if len(solved) > count:
        solved = [solved[i * len(solved) // count] for i in range(count)]
    return [Text(prompter.prompt(p), prompter.reference(p.solution)) for p in solved]


def plain_texts(ids: Sequence[int], length: int = 256) -> list[Text]:
    """A text's token ids cut into pieces of `length`, each of whose tokens but the first is measured."""
    pieces = [tuple(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [Text(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]


@torch.no_grad()
def drift(
    network: PreTrainedModel,
    intervention: Intervention,
    texts: Sequence[Text],
    batch: int,
    progress: Callable[[int], None] | None = None,
) -> Drift:
    """Drift over the `written` tokens of `texts`, each after its context.

    Args:
        network: the base model.
        intervention: makes the updated model of it.
        texts: at least one.
        batch: texts read together, at most; fewer where their logits would fill the memory.
        progress: told after each pass how many tokens it read; each text is read twice.

    Raises:
        FloatingPointError: a probability is not finite.
        TooLargeError: a text alone does not fit in memory.
    """
    texts = sorted(texts, key=lambda t: t.tokens)
    longest = max(len(t.written) for t in texts)
    batch = max(1, min(batch, _LOGITS // (longest * network.config.get_text_config().vocab_size)))
    divergence, change, count = 0.0, 0.0, 0
    shared = common_start([t.context for t in texts], min(len(t.context) for t in texts) - 1)

    def add(chunk: Sequence[Text]) -> None:
        nonlocal divergence, change, count
        tokens = sum(t.tokens for t in chunk)
        base = _predicted(network, chunk, shared)
        if progress:
            progress(tokens)
        with intervention.attached(network):
            updated = _predicted(network, chunk, shared)
        if progress:
            progress(tokens)
        apart = (base.exp() * (base - updated)).sum()
        check_finite(apart, "the drift is", network)
        written = torch.tensor([token for t in chunk for token in t.written], device=base.device)[:, None]
        fall = float((base.gather(1, written) - updated.gather(1, written)).sum())
        divergence, change, count = divergence + float(apart), change + fall, count + len(base)

    passes = Halving[Text](lambda t: t.tokens - shared, _too_long)
    passes.run(by_budget(texts, lambda t: t.tokens - shared, network, batch, shared), add)
    return Drift(divergence / count, math.exp(change / count), count)


def _too_long(text: Text) -> str:
    return (
        f"there is too little memory for the drift on a text of {text.tokens:,} tokens; set model.dtype to "
        "bfloat16, or model.device_map to auto"
    )


def _predicted(network: PreTrainedModel, texts: Sequence[Text], shared: int) -> Tensor:
    """Log probabilities (N, V) of all tokens at each of the N written positions of `texts`.

    shared: how many tokens the contexts begin with that are read once.
    """
    places, before = list[int](), 0
    for text in texts:
        first = before + len(text.context) - 1
        places += range(first, first + len(text.written))
        before += text.tokens - shared
    with passing(network, [t.context + t.written for t in texts], places, shared=shared) as found:
        return found.logits.float().log_softmax(-1)
