"""Greedy answers of the base or the updated model, graded."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from cca.method.traces import TRACED, greedy_traces
from cca.problems.prompts import Prompter
from cca.records import Problem, ProblemSet, Score, Which


def evaluated_sets(problems: Iterable[Problem]) -> dict[ProblemSet, list[Problem]]:
    """The problems that are evaluated, together with those of their split and skill, in order of appearance.

    Those of training and validation are left out: a model that was updated on them says nothing by answering them.
    """
    found: dict[ProblemSet, list[Problem]] = {}
    for problem in problems:
        if problem.split not in TRACED:
            found.setdefault(problem.set, []).append(problem)
    return found


def answer_chunk(
    network: PreTrainedModel,
    prompter: Prompter,
    problems: Sequence[Problem],
    *,
    model: Which,
    max_new_tokens: int,
) -> list[Score]:
    """Greedy answers to `problems` in one batch, graded.

    Args:
        network: computes as it is; call this within ``delta.active(network)`` for the updated model.
        prompter: asks and grades.
        problems: of any split.
        model: which of the two this is, for the records.
        max_new_tokens: of an answer, at most.

    Returns:
        A score for each problem, in their order.
    """
    traces = greedy_traces(network, prompter, problems, max_new_tokens)
    return [
        Score(model, p.split, p.skill, p.id, p.template, t.answer, t.correct, len(t.tokens), t.text, t.cut)
        for p, t in zip(problems, traces, strict=True)
    ]
