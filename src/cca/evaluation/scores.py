"""Evaluation: greedy accuracy of one arm on chunks of problems, drift, and the comparison of two arms."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cca.controls.interventions import Intervention
from cca.model.generate import generate_greedy
from cca.model.read import last_logits, logits_at, right_padded
from cca.model.numerics import check_finite
from cca.problems.prompts import Prompter
from cca.records import Choice, Pivot, Problem, Score

_LOGITS = 2**27
"""Logits held at once: half a GiB in float32, of which a few copies are made."""


def set_name(problem: Problem) -> str:
    """The evaluation set of a problem: ``target``, ``held_out_templates``, ``transfer:NAME`` or ``retention:NAME``."""
    return {"test": "target", "held_out": "held_out_templates"}.get(problem.split, problem.split)


class Text(NamedTuple):
    """Token ids, of which the `written` ones measure drift."""

    context: tuple[int, ...]
    written: tuple[int, ...]


def answer_chunk(
    model: PreTrainedModel, prompter: Prompter, problems: Sequence[Problem], *, arm: str, max_new_tokens: int
) -> list[Score]:
    """Greedy answers to `problems` in one batch, graded."""
    prompts = [prompter.prompt(p) for p in problems]
    written = generate_greedy(
        model, prompts, max_new_tokens=max_new_tokens, end_tokens=prompter.end_tokens, stop=prompter.stop_rule()
    )
    scores = []
    for problem, tokens in zip(problems, written, strict=True):
        trace = prompter.trace(problem, tokens)
        scores.append(
            Score(
                arm,
                set_name(problem),
                problem.id,
                problem.template,
                trace.answer,
                trace.correct,
                len(tokens),
                trace.text,
            )
        )
    return scores


@torch.no_grad()
def choices(model: PreTrainedModel, pivots: Sequence[Pivot], *, arm: str, batch: int) -> list[Choice]:
    """How probable the model finds the two tokens of each of `pivots`, in their order.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    found: dict[int, Choice] = {}
    order = sorted(range(len(pivots)), key=lambda i: len(pivots[i].prefix))  # so that little is padding
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        chunk = [pivots[i] for i in rows]
        logits = last_logits(model, [p.prefix for p in chunk])
        tokens = torch.tensor([[p.desired, p.undesired] for p in chunk], device=logits.device)
        both = logits.float().log_softmax(-1).gather(1, tokens)
        check_finite(both, "the probabilities of a pivot are", model)
        for i, pivot, (desired, undesired) in zip(rows, chunk, both.tolist(), strict=True):
            found[i] = Choice(arm, pivot.problem, desired, undesired)
    return [found[i] for i in range(len(pivots))]


class Drift(NamedTuple):
    """How far the updated model is from the base, over `tokens` tokens of text. It moves before any answer does.

    kl: mean KL(base || updated) in nats per token. perplexity_ratio: of the updated model to the base; 1 where the text
    is as likely as before, below 1 where it is likelier.
    """

    kl: float
    perplexity_ratio: float
    tokens: int


@torch.no_grad()
def drift(model: PreTrainedModel, intervention: Intervention, texts: Sequence[Text], batch: int) -> Drift:
    """Drift over the `written` tokens of `texts`, each after its context.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    texts = sorted(texts, key=lambda t: len(t.context) + len(t.written))
    longest = max(len(t.written) for t in texts)
    batch = max(1, min(batch, _LOGITS // (longest * model.config.get_text_config().vocab_size)))
    divergence, change, count = 0.0, 0.0, 0
    for start in range(0, len(texts), batch):
        chunk = texts[start : start + batch]
        ids = right_padded([t.context + t.written for t in chunk])
        first = torch.tensor([len(t.context) - 1 for t in chunk])
        lengths = torch.tensor([len(t.written) for t in chunk])
        offset = torch.arange(int(lengths.max()))
        places, scored = (first[:, None] + offset).clamp(max=ids.shape[1] - 1), offset < lengths[:, None]
        following = torch.tensor([token for t in chunk for token in t.written])

        def predicted(ids: Tensor = ids, places: Tensor = places, scored: Tensor = scored) -> Tensor:
            logits = logits_at(model, ids, places, use_cache=False).logits
            return logits[scored.to(logits.device)].float().log_softmax(-1)

        base = predicted()
        with intervention.attached(model):
            updated = predicted()
        apart = (base.exp() * (base - updated)).sum()
        check_finite(apart, "the drift is", model)
        divergence += float(apart)
        of_text = following.to(base.device)[:, None]
        change += float((base.gather(1, of_text) - updated.gather(1, of_text)).sum())
        count += len(base)
    return Drift(divergence / count, math.exp(change / count), count)


def plain_texts(ids: Sequence[int], length: int = 256) -> list[Text]:
    """A text's token ids cut into pieces of `length`, each of whose tokens but the first is measured."""
    pieces = [tuple(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [Text(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
