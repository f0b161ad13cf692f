"""Evaluation: greedy accuracy of one arm on chunks of problems, drift, and the comparison of two arms."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cca.delta import Delta
from cca.engines.transformers import generate_greedy, right_padded
from cca.prompts import Prompter
from cca.records import Problem, Score


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
    total, count = 0.0, 0
    for start in range(0, len(texts), batch):
        chunk = texts[start : start + batch]
        ids = right_padded([prompt + answer for prompt, answer in chunk]).to(model.device)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(chunk):
            scored[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
        base = model(input_ids=ids, use_cache=False).logits[scored].float().log_softmax(-1)
        with delta.attached(model):
            updated = model(input_ids=ids, use_cache=False).logits[scored].float().log_softmax(-1)
        total += float((base.exp() * (base - updated)).sum())
        count += len(base)
    return total / count
