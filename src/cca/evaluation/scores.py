"""Greedy answers of the base or the updated model, graded."""

from collections.abc import Callable, Iterable, Sequence

from cca.method.traces import TRACED, greedy_traces
from cca.model.engine import Engine
from cca.model.generate import Watch
from cca.problems.prompts import Prompter
from cca.records import Problem, ProblemSet, Score, Trace, Which


def evaluated_sets(problems: Iterable[Problem]) -> dict[ProblemSet, list[Problem]]:
    """The problems that are evaluated, together with those of their split and skill, in order of appearance.

    Those of training and validation are left out: a model that was updated on them says nothing by answering them.
    """
    found: dict[ProblemSet, list[Problem]] = {}
    for problem in problems:
        if problem.split not in TRACED:
            found.setdefault(problem.set, []).append(problem)
    return found


def answer(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    *,
    model: Which,
    max_new_tokens: int,
    slots: int,
    done: Callable[[Score], None] | None = None,
    watch: Watch | None = None,
) -> list[Score]:
    """Greedy answers to `problems`, graded.

    Args:
        engine: writes as it is; call this within ``engine.changed(delta)`` for the updated model.
        prompter: asks and grades.
        problems: of any split.
        model: which of the two this is, for the records.
        max_new_tokens: of an answer, at most.
        slots: answers that are written at once.
        done: told of each score as soon as there is one.
        watch: sees the writing go on.

    Returns:
        A score for each problem, in their order.
    """

    def score(p: Problem, t: Trace) -> Score:
        return Score(model, p.split, p.skill, p.id, p.template, t.answer, t.correct, len(t.tokens), t.text, t.cut)

    def told(problem: Problem, trace: Trace) -> None:
        if done:
            done(score(problem, trace))

    traces = greedy_traces(engine, prompter, problems, max_new_tokens, slots=slots, done=told, watch=watch)
    return [score(p, t) for p, t in zip(problems, traces, strict=True)]
