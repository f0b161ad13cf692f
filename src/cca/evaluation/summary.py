"""What a run found, as one plain dictionary: `summary.json`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cca.controls.interventions import Intervention
from cca.evaluation import stats
from cca.evaluation.harness.run import TaskScore
from cca.evaluation.scores import Drift
from cca.method.circuit import Circuit
from cca.model.components import Components
from cca.records import Answered, Metric, Pivot, Score, TracePair, WithoutPivot, answered


def pivot_summary(
    pairs: Sequence[TracePair], left_out: Sequence[WithoutPivot], pivots: Mapping[str, Sequence[Pivot]], method: str
) -> dict[str, Any]:
    """Counts of stage 1; `on_slip` by method, over the pivots whose wrong trace makes its planted slip."""
    chosen = pivots[method]
    return {
        "problems": len(pairs),
        "traces": len(pairs) + sum(pair.drawn for pair in pairs),
        "found": len(chosen),
        "yield": len(chosen) / len(pairs),
        "without": dict(Counter(record.reason for record in left_out)),
        "completions": sum(p.completions for p in chosen),
        "on_slip": {name: on_slip(found) for name, found in pivots.items()},
    }


def on_slip(pivots: Sequence[Pivot]) -> dict[str, Any] | None:
    """The share of pivots on the planted slip's own token, with its interval; None where nothing was planted."""
    judged = [p.on_slip for p in pivots if p.on_slip is not None]
    if not judged:
        return None
    share = stats.accuracy(judged)
    return {"n": share.n, "share": share.value, "ci95": list(share.ci95)}


def circuit_summary(components: Components, circuit: Circuit) -> dict[str, Any]:
    """Sizes of the circuit."""
    return {
        "components": components.size,
        "selected": int(circuit.selected.sum()),
        "density": circuit.density,
        "by_kind": components.counts(circuit.selected),
        "stopped": circuit.stopped,
    }


def update_summary(intervention: Intervention, metrics: Sequence[Metric], best_step: int) -> dict[str, Any]:
    """Size of the whole update, and what the first round's validation saw at step 0 and at the kept step."""
    first = metrics[0]
    best = next(m for m in metrics if m.step == best_step)
    return {
        "best_step": best_step,
        "rows": intervention.row_count,
        "parameters": intervention.parameter_count,
        "validation": {"n": best.n, "base": first.accuracy, "updated": best.accuracy},
        "held_out_pivots_won": {"base": first.won, "updated": best.won},
        "held_out_margin": {"base": first.margin, "updated": best.margin},
    }


def comparisons(scores: Sequence[Score], drifts: Mapping[str, Drift], seed: int) -> dict[str, dict[str, Any]]:
    """Base against updated for each evaluation set, in order of appearance."""
    sets: dict[str, list[Answered]] = {}
    for both in answered(scores):
        sets.setdefault(both.base.set, []).append(both)
    found: dict[str, dict[str, Any]] = {}
    for name, both in sets.items():
        base, updated = [a.base.correct for a in both], [a.updated.correct for a in both]
        result = stats.paired(base, updated, [a.base.template for a in both], seed)
        found[name] = result._asdict() | {
            "base_ci95": list(stats.accuracy(base).ci95),
            "updated_ci95": list(stats.accuracy(updated).ci95),
            "drift_kl": drifts[name].kl,
            "perplexity_ratio": drifts[name].perplexity_ratio,
        }
    return found


def task_comparisons(base: Sequence[TaskScore], updated: Sequence[TaskScore], seed: int) -> dict[str, dict[str, Any]]:
    """Base against updated for each benchmark; subtasks are the clusters. A measure that is no count of right answers,
    such as truthfulqa_mc2's probability, has neither McNemar's test nor a smallest detectable difference."""
    later = {(s.task, s.subtask, s.document): s.value for s in updated}
    groups: dict[str, list[tuple[TaskScore, float]]] = {}
    for score in base:
        groups.setdefault(score.task, []).append((score, later[score.task, score.subtask, score.document]))
    found: dict[str, dict[str, Any]] = {}
    for name, both in groups.items():
        first, second = [s.value for s, _ in both], [value for _, value in both]
        clusters = [s.subtask for s, _ in both]
        row: dict[str, Any] = {"n": len(both), "metric": both[0][0].metric}
        if {*first, *second} <= {0, 1}:
            row |= stats.paired([v == 1 for v in first], [v == 1 for v in second], clusters, seed)._asdict()
        else:
            change = [b - a for a, b in zip(first, second, strict=True)]
            row |= dict.fromkeys(("gained", "lost", "mcnemar_p", "detectable"))
            row |= {"base": sum(first) / len(both), "updated": sum(second) / len(both)}
            row |= {
                "difference": sum(change) / len(both),
                "ci95": list(stats.cluster_bootstrap(change, clusters, seed)),
            }
        found[name] = row | {"drift_kl": None, "perplexity_ratio": None}
    return found
