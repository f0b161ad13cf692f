"""Evaluation: greedy accuracy of one arm on chunks of problems, drift, and the comparison of two arms."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cca.delta import Delta
from cca.engines.transformers import generate_greedy, logits_at, right_padded
from cca.numerics import check_finite
from cca.prompts import Prompter
from cca.records import Problem, Score

_LOGITS = 2**27
"""Logits held at once: half a GiB in float32, of which a few copies are made."""


def set_name(problem: Problem) -> str:
    """The evaluation set of a problem: ``target``, ``held_out_templates`` or the skill's name."""
    named = {"test": "target", "held_out": "held_out_templates"}
    return named.get(problem.split, problem.split.removeprefix("skill:"))


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
            Score(arm, set_name(problem), problem.id, problem.template, trace.answer, trace.correct, len(tokens))
        )
    return scores


@torch.no_grad()
def drift(model: PreTrainedModel, prompter: Prompter, delta: Delta, problems: Sequence[Problem], batch: int) -> float:
    """Mean KL(base || updated) in nats per token, over the tokens of the problems' own solutions.

    It sees a change of the model long before any answer changes.
    """
    texts = sorted(
        ((prompter.prompt(p), prompter.reference(p.solution)) for p in problems), key=lambda t: len(t[0] + t[1])
    )
    longest = max(len(answer) for _, answer in texts)
    batch = max(1, min(batch, _LOGITS // (longest * model.config.get_text_config().vocab_size)))
    total, count = 0.0, 0
    for start in range(0, len(texts), batch):
        chunk = texts[start : start + batch]
        ids = right_padded([prompt + answer for prompt, answer in chunk])
        first = torch.tensor([len(prompt) - 1 for prompt, _ in chunk])
        lengths = torch.tensor([len(answer) for _, answer in chunk])
        offset = torch.arange(int(lengths.max()))
        places, scored = (first[:, None] + offset).clamp(max=ids.shape[1] - 1), offset < lengths[:, None]

        def predicted(ids: Tensor = ids, places: Tensor = places, scored: Tensor = scored) -> Tensor:
            logits = logits_at(model, ids, places, use_cache=False).logits
            return logits[scored.to(logits.device)].float().log_softmax(-1)

        base = predicted()
        with delta.attached(model):
            updated = predicted()
        divergence = (base.exp() * (base - updated)).sum()
        check_finite(divergence, "the drift is", model)
        total += float(divergence)
        count += len(base)
    return total / count
