"""What people look at: the records of a run folder joined into rows of text and numbers, for terminal, report and
notebook alike. Nothing here computes with a model; texts need its tokenizer.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cca.errors import InputError
from cca.evaluation.pivot_kinds import Kind, Outcome, between, outcome
from cca.evaluation.results import Summary
from cca.folder import RunFolder
from cca.records import (
    Answered,
    Choice,
    Metric,
    Pivot,
    Problem,
    ProblemSet,
    Score,
    TracePair,
    Verdict,
    answered,
    best_of,
    problem_of,
)

if TYPE_CHECKING:
    from cca.problems.prompts import Prompter

REPORT = "report"
"""The stage that no figures come from."""


@dataclass(frozen=True)
class Continuation:
    """How a pivot's trace goes on with one of its two tokens. token and text follow each other; answer, verdict: as
    graded.

    base, updated: the token's probability after the prefix under each model; None where not evaluated.
    """

    token: str
    text: str
    answer: str
    correct: bool
    verdict: Verdict
    base: float | None
    updated: float | None


@dataclass(frozen=True)
class PivotView:
    """A pivot in words. before: the trace up to the pivot. position: the pivot's index among the trace's tokens."""

    problem: str
    split: str
    template: str
    question: str
    gold: str
    greedy_correct: bool
    on_slip: bool | None
    position: int
    before: str
    desired: Continuation
    undesired: Continuation
    outcome: Outcome
    kind: Kind


def settings(folder: RunFolder) -> dict[str, Any]:
    """The run's config, by section and key; its file holds every value, defaults included."""
    return tomllib.loads(folder.config)


def pivot_views(folder: RunFolder, prompter: "Prompter") -> list[PivotView]:
    """All pivots of the run's method, in the order in which they were found.

    Raises:
        InputError: the run has none yet.
    """
    method = settings(folder)["pivots"]["method"]
    problems = {p.id: p for p in folder.read("problems.jsonl", Problem)}
    known = {(c.model, c.problem): c for c in folder.read("choices.jsonl", Choice)}
    pivots = [p for p in folder.read("pivots.jsonl", Pivot) if p.method == method]
    if not pivots:
        raise InputError(f"{folder.path} has no pivots yet; find them with: cca pivots {folder.path}")
    return [
        _pivot_view(
            p,
            problem_of(p, problems, "pivots.jsonl"),
            prompter,
            known.get(("base", p.problem)),
            known.get(("updated", p.problem)),
        )
        for p in pivots
    ]


def _pivot_view(
    pivot: Pivot, problem: Problem, prompter: "Prompter", base: Choice | None, updated: Choice | None
) -> PivotView:
    written = pivot.prefix[len(pivot.prefix) - pivot.position :]
    before = prompter.decode(written)

    def continuation(token: int, after: Sequence[int], before: str, of: Literal["desired", "undesired"]):
        start, whole = prompter.decode([*written, token]), prompter.decode([*written, *after])
        graded = prompter.trace(problem, [*written, *after])
        text = prompter.tokenizer.decode([token])
        return Continuation(
            _rest(start, before, text) or text,
            _rest(whole, start, ""),
            graded.answer,
            graded.correct,
            graded.verdict,
            None if base is None else math.exp(getattr(base, of)),
            None if updated is None else math.exp(getattr(updated, of)),
        )

    return PivotView(
        problem=problem.id,
        split=problem.split,
        template=problem.template,
        question=problem.question,
        gold=problem.answer,
        greedy_correct=pivot.greedy_correct,
        on_slip=pivot.on_slip,
        position=pivot.position,
        before=before,
        desired=continuation(pivot.desired, pivot.after_desired, before, "desired"),
        undesired=continuation(pivot.undesired, pivot.after_undesired, before, "undesired"),
        outcome=outcome(base, updated),
        kind=between(pivot, prompter, problem.answer).kind,
    )


def _rest(whole: str, start: str, otherwise: str) -> str:
    """What `whole` adds to `start`: a token decoded alone may lose its space, or be part of a character."""
    return whole[len(start) :] if whole.startswith(start) else otherwise


@dataclass(frozen=True)
class Effect:
    """Base against updated on the problems of one template, or of one skill. low, high: 95%, of the difference."""

    split: str
    skill: str | None
    template: str
    n: int
    base: float
    updated: float
    difference: float
    low: float
    high: float
    gained: int
    lost: int


def effects(scores: Sequence[Score], seed: int) -> list[Effect]:
    """Of each template of each evaluation set; the intervals are of its problems, resampled."""
    from cca.evaluation import stats

    groups: dict[tuple[ProblemSet, str], list[Answered]] = {}
    for both in answered(scores):
        groups.setdefault((both.base.set, both.base.template), []).append(both)
    found = []
    for ((split, skill), template), both in groups.items():
        base, updated = [a.base.correct for a in both], [a.updated.correct for a in both]
        result = stats.paired(base, updated, [template] * len(both), seed)
        assert result.gained is not None and result.lost is not None, "answers are right or wrong"
        low, high = result.ci95
        accuracies = (result.base, result.updated, result.difference)
        found.append(Effect(split, skill, template, result.n, *accuracies, low, high, result.gained, result.lost))
    return found


@dataclass(frozen=True)
class Step:
    """A validated step of the update. step: counted through all rounds. low, high: Wilson's interval of accuracy.

    kept: whether the run's update is that of this step, in its round.
    """

    round: int
    step: int
    loss: float | None
    margin: float
    preference_accuracy: float
    accuracy: float
    low: float
    high: float
    n: int
    kept: bool


def steps(folder: RunFolder) -> list[Step]:
    """The validated steps of all rounds, one round after the other."""
    from cca.evaluation import stats

    found: list[Step] = []
    rounds = [folder, *map(RunFolder.open, folder.rounds())]
    start = 0
    for number, part in enumerate(rounds, 1):
        metrics = part.read("metrics.jsonl", Metric)
        kept = best_of(metrics).step if metrics else None
        for m in metrics:
            low, high = stats.wilson(round(m.accuracy * m.n), m.n)
            figures = (m.loss, m.margin, m.preference_accuracy, m.accuracy, low, high, m.n)
            found.append(Step(number, start + m.step, *figures, m.step == kept))
        start += kept or 0
    return found


@dataclass(frozen=True)
class Answer:
    """What one model, or one trace, answered to a problem."""

    by: str
    text: str
    answer: str
    verdict: Verdict


@dataclass(frozen=True)
class ProblemView:
    """A problem with what was answered: by base and updated model where it was evaluated, else by its traces."""

    id: str
    split: str
    skill: str | None
    template: str
    question: str
    gold: str
    solution: str
    answers: list[Answer]


def problem_view(folder: RunFolder, id: str) -> ProblemView:
    """The problem called `id`.

    Raises:
        InputError: the run has no such problem.
    """
    problems = {p.id: p for p in folder.read("problems.jsonl", Problem)}
    if id not in problems:
        alike = [p for p in problems if p.startswith(id)][:5] or list(problems)[:5]
        raise InputError(f"{folder.path} has no problem {id!r}; it has, for example, {', '.join(alike)}")
    problem = problems[id]
    answers = [
        Answer(f"{s.model} model", s.text, s.answer, s.verdict)
        for s in folder.read("scores.jsonl", Score)
        if s.problem == id
    ]
    for pair in folder.read("traces.jsonl", TracePair):
        if pair.problem == id:
            answers += [
                Answer(f"base model, {kind} trace", t.text, t.answer, t.verdict) for kind, t in pair.by_kind().items()
            ]
    return ProblemView(
        id,
        problem.split,
        problem.skill,
        problem.template,
        problem.question,
        problem.answer,
        problem.solution,
        answers,
    )


def summary_of(folder: RunFolder) -> Summary:
    """The figures of a run, with the seconds that its stages took.

    Raises:
        InputError: it is not finished.
    """
    if not folder.file("summary.json").exists() and not folder.finished("evaluate"):
        raise InputError(
            f"{folder.path} is not finished, so it has no summary; finish it with: cca run --out {folder.path}"
        )
    spent = folder.manifest.get("seconds", {})
    seconds = {stage: value for stage, value in spent.items() if stage != REPORT}
    if seconds:
        seconds["total"] = round(sum(seconds.values()), 2)
    return replace(folder.read_one("summary.json", Summary), seconds=seconds)
