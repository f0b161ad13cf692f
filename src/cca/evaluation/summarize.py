"""The parts of what a run found (`cca.evaluation.results.Summary`), each from the records that it tells of."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from cca.errors import InputError
from cca.evaluation import stats
from cca.evaluation.pivot_kinds import Kind, counted, outcome
from cca.evaluation.results import (
    Change,
    CircuitSummary,
    Drift,
    OfKind,
    OnSlip,
    PivotSummary,
    SetResult,
    UpdateSummary,
    Validated,
)
from cca.method.circuit import Circuit
from cca.model.intervention import Intervention
from cca.records import (
    KINDS,
    NO_TEMPLATE,
    Answered,
    Choice,
    Metric,
    Pivot,
    ProblemSet,
    Score,
    Split,
    TaskScore,
    TracePair,
    WithoutPivot,
    answered,
    best_of,
)


def pivot_summary(
    pairs: Sequence[TracePair],
    left_out: Sequence[WithoutPivot],
    pivots: Mapping[str, Sequence[Pivot]],
    method: str,
    kinds: Mapping[str, Kind],
    choices: Sequence[Choice],
    unconfirmed: Collection[str] = (),
) -> PivotSummary:
    """Counts of stage 1.

    Args:
        pairs: of all traced problems.
        left_out: those without a pivot.
        pivots: by the method that found them. Of each, the share on the planted slip is told.
        method: the one whose pivots the run goes on with.
        kinds: of these, by problem, and of those that do not count.
        choices: what both models make of these.
        unconfirmed: problems of those that do not count.
    """
    every = pivots[method]
    chosen = [p for p in every if p.problem not in unconfirmed]
    return PivotSummary(
        problems=len(pairs),
        traces=len(pairs) + sum(pair.drawn for pair in pairs),
        found=len(chosen),
        share=len(chosen) / len(pairs),
        without=dict(Counter(record.reason for record in left_out)),
        completions=sum(p.completions for p in every),
        sampled=sum(2 * p.samples for p in every),
        on_slip={name: on_slip(found) for name, found in {**pivots, method: chosen}.items()},
        by_kind=by_kind(kinds, choices, unconfirmed),
    )


def by_kind(
    kinds: Mapping[str, Kind], choices: Sequence[Choice], unconfirmed: Collection[str] = ()
) -> dict[Kind, OfKind]:
    """Pivots by kind, with what both models make of them. kinds, unconfirmed: as of `pivot_summary`."""
    weak = Counter(kinds[problem] for problem in unconfirmed)
    kinds = {problem: kind for problem, kind in kinds.items() if problem not in unconfirmed}
    known = {(c.model, c.problem): c for c in choices}
    became = Counter(
        (kind, outcome(known.get(("base", problem)), known.get(("updated", problem))))
        for problem, kind in kinds.items()
    )
    return {
        kind: OfKind(n, became[kind, "already preferred"] + became[kind, "broken"], became[kind, "mended"], weak[kind])
        for kind, n in counted(list(kinds.values())).items()
    }


def on_slip(pivots: Sequence[Pivot]) -> OnSlip | None:
    """The share on the planted slip's own token of the pivots whose wrong trace makes it; None where none does."""
    judged = [p.on_slip for p in pivots if p.on_slip is not None]
    if not judged:
        return None
    share = stats.accuracy(judged)
    return OnSlip(share.n, share.value, share.ci95)


def circuit_summary(circuit: Circuit) -> CircuitSummary:
    """Sizes of the circuit."""
    members = Counter(component.kind for component in circuit.components())
    return CircuitSummary(
        components=len(circuit.gates),
        selected=members.total(),
        density=circuit.density,
        by_kind={kind: members[kind] for kind in KINDS},
        stopped=circuit.stopped,
    )


def update_summary(
    intervention: Intervention, metrics: Sequence[Metric], learning_rate: float | None = None
) -> UpdateSummary:
    """Size of the update, and what validation saw before it and at the kept step.

    intervention: the whole of it, over all rounds. metrics, learning_rate: of the first round; the latter is what
    ``auto`` came to.
    """
    first, best = metrics[0], best_of(metrics)
    return UpdateSummary(
        best_step=best.step,
        rows=intervention.row_count,
        parameters=intervention.parameter_count,
        validation=Validated(best.n, first.accuracy, best.accuracy),
        held_out_preference_accuracy=Change(first.preference_accuracy, best.preference_accuracy),
        held_out_margin=Change(first.margin, best.margin),
        learning_rate=learning_rate,
    )


def comparisons(scores: Sequence[Score], drifts: Mapping[ProblemSet, Drift], seed: int) -> dict[ProblemSet, SetResult]:
    """Base against updated on each evaluation set, in order of appearance.

    Args:
        scores: of both models.
        drifts: of the sets whose drift was measured.
        seed: of the intervals.
    """
    sets: dict[ProblemSet, list[Answered]] = {}
    for both in answered(scores):
        sets.setdefault(both.base.set, []).append(both)
    return {name: _compared(both, drifts.get(name), seed) for name, both in sets.items()}


def _compared(both: Sequence[Answered], drift: Drift | None, seed: int) -> SetResult:
    found = stats.paired(
        [a.base.correct for a in both],
        [a.updated.correct for a in both],
        [a.base.problem if a.base.template == NO_TEMPLATE else a.base.template for a in both],
        seed,
        drift=drift,
    )
    return replace(found, no_answer=_shares(both, lambda score: not score.answer), cut=_shares(both, lambda s: s.cut))


def _shares(both: Sequence[Answered], holds: Callable[[Score], bool]) -> Change | None:
    """The share of each model's answers for which `holds`; None where it does for none."""
    base, updated = (sum(map(holds, scores)) / len(both) for scores in zip(*both, strict=True))
    return Change(base, updated) if base or updated else None


def by_skill(results: Mapping[ProblemSet, SetResult], split: Split) -> dict[str, SetResult]:
    """Those of transfer or of retention, by skill."""
    return {name.skill or name.name: result for name, result in results.items() if name.split == split}


def task_comparisons(base: Sequence[TaskScore], updated: Sequence[TaskScore], seed: int) -> dict[str, SetResult]:
    """Base against updated on each benchmark; its subtasks are the clusters.

    A measure that is no count of right answers, such as truthfulqa_mc2's probability, has no minimum detectable
    effect.

    Raises:
        InputError: they are not of the same documents.
    """
    if len(base) != len(updated) or {(s.task, s.subtask, s.document) for s in base} ^ {
        (s.task, s.subtask, s.document) for s in updated
    }:
        raise InputError(
            "base_tasks.jsonl and updated_tasks.jsonl are not of the same documents; run the benchmarks again: "
            "cca evaluate RUN --redo"
        )
    later = {(s.task, s.subtask, s.document): s.value for s in updated}
    groups: dict[str, list[tuple[TaskScore, float]]] = {}
    for score in base:
        groups.setdefault(score.task, []).append((score, later[score.task, score.subtask, score.document]))
    found: dict[str, SetResult] = {}
    for name, both in groups.items():
        first, second = [score.value for score, _ in both], [value for _, value in both]
        clusters, metric = [score.subtask for score, _ in both], both[0][0].metric
        if {*first, *second} <= {0, 1}:
            before, after = ([value == 1 for value in values] for values in (first, second))
            found[name] = stats.paired(before, after, clusters, seed, metric=metric)
        else:
            found[name] = stats.paired_shares(first, second, clusters, seed, metric)
    return found
