"""What only a model with planted slips can show: are pivots where the slips are, and which slips does a method repair?

    cca compare --out runs/compare --seeds 10 11 12
    python experiments/ground_truth.py runs/compare --seeds 10 11 12 --methods branching bias steering

Prints, over all seeds: precision and recall of the Branching and the Prefix method's pivots, by kind of slip and by
template, and why some slips have no pivot; how the circuits of the two overlap, and which heads each picks; by kind,
what each compared method gains over the base model, and what the first gains over each of the others. For a separate
circuit for each kind of slip see kinds.py.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cca.evaluation import stats
from cca.evaluation.results import PooledResult
from cca.evaluation.slip_truth import slip_position
from cca.method.circuit import Circuit
from cca.model.bundled import planted_slips, slip_kinds
from cca.model.components import Component
from cca.records import Pivot, Score, TracePair, Which, WithoutPivot
from cca.run.run import Run
from cca.show.tables import points

PIVOT_METHODS = ("branching", "prefix")
Selected = NDArray[np.bool_]


def percent(found: stats.Accuracy | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:.1%} ({found.ci95.low:.1%} to {found.ci95.high:.1%}) of {found.n}"


class Answered(NamedTuple):
    """Whether each model's answer to one problem is correct."""

    base: bool
    updated: bool
    template: str


def compared(answered: list[Answered]) -> PooledResult:
    base, updated = [a.base for a in answered], [a.updated for a in answered]
    return stats.pooled([stats.Outcomes(base, updated, [a.template for a in answered])], seed=0)


class Judged:
    """Counts of true positives, false positives and false negatives of a group of problems."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]

    def add(self, found: bool | None, slip: bool) -> None:
        """found: whether the pivot is on the slip; None where there is no pivot. slip: whether there is one to find."""
        self.counts[0] += found is True
        self.counts[1] += found is False
        self.counts[2] += slip and found is not True

    def cells(self) -> str:
        result = stats.precision_recall(*self.counts)
        return f"{percent(result.precision)} | {percent(result.recall)}"


class Verdict(NamedTuple):
    """A traced problem of a template with a planted slip. slip: whether a wrong trace makes it. on_slip: by method,
    whether its pivot is the slip's own token; None where there is no pivot."""

    pair: TracePair
    kind: str
    slip: bool
    on_slip: dict[str, bool | None]


def judge(run: Run) -> Iterable[Verdict]:
    """The verdict on each traced problem of a template with a planted slip.

    A pivot counts as a hit where it is the slip's own token, and as a false positive otherwise, even where the wrong
    trace errs in some other way.
    """
    kinds = slip_kinds(run.config.model.path)
    by_id = {p.id: p for p in run.problems}
    pivots = {(p.problem, p.method): p for p in run.folder.read("pivots.jsonl", Pivot)}
    for pair in run.folder.read("traces.jsonl", TracePair):
        kind, problem = kinds.get(pair.template), by_id[pair.problem]
        if kind is None:
            continue
        wrong = [t for t in (pair.greedy, pair.sampled) if t is not None and not t.correct]
        slip = any(slip_position(run.prompter, problem, t.tokens, kind) is not None for t in wrong)
        found = {m: pivots.get((pair.problem, m)) for m in PIVOT_METHODS}
        yield Verdict(pair, kind, slip, {m: None if p is None else p.on_slip is True for m, p in found.items()})


def pivots_table(verdicts: list[list[Verdict]]) -> None:
    groups: dict[tuple[str, str], dict[str, Judged]] = {}
    for pair, kind, slip, on_slip in chain.from_iterable(verdicts):
        for name in (("all", ""), (kind, ""), (kind, pair.template)):
            judged = groups.setdefault(name, {m: Judged() for m in PIVOT_METHODS})
            for method, found in on_slip.items():
                judged[method].add(found, slip)
    print("\n| slip | template | branching: precision | recall | prefix: precision | recall |\n" + "| --- " * 6 + "|")
    for (kind, template), judged in sorted(groups.items()):
        print(f"| {kind} | {template} | {judged['branching'].cells()} | {judged['prefix'].cells()} |")


def misses_table(runs: list[Run], verdicts: list[list[Verdict]]) -> None:
    """What became of the problems with a trace that makes the planted slip, and where both methods agree."""
    outcomes: Counter[str] = Counter()
    same = pairs = 0
    for run, judged in zip(runs, verdicts, strict=True):
        reasons = {w.problem: w.reason for w in run.folder.read("without_pivot.jsonl", WithoutPivot)}
        positions: dict[str, list[int]] = {}
        for pivot in run.folder.read("pivots.jsonl", Pivot):
            positions.setdefault(pivot.problem, []).append(pivot.position)
        pairs += len(positions)
        same += sum(len(set(of_methods)) == 1 for of_methods in positions.values())
        for pair, _, slip, on_slip in judged:
            if slip:
                found = on_slip["branching"]
                outcomes[reasons[pair.problem] if found is None else f"pivot {'on' if found else 'off'} it"] += 1
    of_searched = stats.precision_recall(outcomes["pivot on it"], outcomes["pivot off it"], 0).precision
    agreement = stats.precision_recall(same, pairs - same, 0).precision
    print("\n| traces with the planted slip, branching | |\n" + "| --- " * 2 + "|")
    for name, count in outcomes.most_common():
        print(f"| {name} | {count} of {outcomes.total()} |")
    print(f"| on it, of those searched | {percent(of_searched)} |")
    print(f"| both methods name the same token | {percent(agreement)} |")


def target_answers(runs: list[Run], model: Which) -> list[dict[str, Score]]:
    """Each run's answers to the target's problems, by problem."""
    return [
        {s.problem: s for s in run.folder.read("scores.jsonl", Score) if s.split == "test" and s.model == model}
        for run in runs
    ]


def kinds_table(
    title: str, planted: dict[str, Any], before: list[dict[str, Score]], after: list[dict[str, Score]]
) -> None:
    """What changes from one set of answers to another, by kind of slip and by whether it prevails in its template."""
    groups: dict[str, list[Answered]] = {}
    for first, second in zip(before, after, strict=True):
        for problem, score in first.items():
            slip = planted.get(score.template)
            names = [f"{slip['kind']} | {which}" for which in ("all", share(slip))] if slip else ["none | all"]
            for name in names:
                found = Answered(score.correct, second[problem].correct, score.template)
                groups.setdefault(name, []).append(found)
    print(
        f"\n| {title}: planted slip | where it | n | accuracy | points (95%) | gained / lost |\n" + "| --- " * 6 + "|"
    )
    for name, group in sorted(groups.items()):
        found = compared(group)
        print(
            f"| {name} | {found.n} | {found.base:.1%} -> {found.updated:.1%} | {points(found)} | "
            f"{found.gained} / {found.lost} |"
        )


def share(slip: dict[str, Any]) -> str:
    return "prevails" if slip["share"] > 0.5 else "is the minority"


# ---- circuits ----


def selection(run: Run) -> Selected:
    return Circuit.load(run.folder.file("circuit.safetensors")).selected.numpy()


def are_heads(components: list[Component]) -> Selected:
    return np.array([c.kind != "neuron" for c in components])


def overlap_lines(components: list[Component], label: str, seed: int, one: Selected, two: Selected) -> Iterable[str]:
    """A line for heads and one for neurons: heads are chosen far more often, so any two circuits overlap in them."""
    heads = are_heads(components)
    for name, of in (("heads", heads), ("neurons", ~heads)):
        o = stats.overlap(one[of], two[of])
        jaccard = "-" if o.jaccard is None else f"{o.jaccard:.2f}"
        yield f"| {label} | {seed} | {name} | {o.first}, {o.second} | {o.shared} | {jaccard} | {o.p_value:.1g} |"


OVERLAP = "\n| circuits | seed | of | sizes | shared | Jaccard | p of so many by chance |\n" + "| --- " * 7 + "|"


def names(components: list[Component], chosen: Selected) -> str:
    """The chosen components, each by its layer, kind and number."""
    found = [f"{c.layer} {c.kind} {c.number}" for c, is_chosen in zip(components, chosen, strict=True) if is_chosen]
    return ", ".join(found) or "-"


def methods_table(branching: list[Run], prefix: list[Run]) -> None:
    """Which components each method's pivots lead to."""
    components = list(branching[0].model.components)
    heads = are_heads(components)
    lists = []
    print(OVERLAP)
    for one, two in zip(branching, prefix, strict=True):
        first, second, seed = selection(one), selection(two), one.config.seed
        print("\n".join(overlap_lines(components, "branching, prefix", seed, first, second)))
        for name, of in (("both", first & second), ("branching", first & ~second), ("prefix", second & ~first)):
            lists.append(f"| {seed} | {name} | {names(components, of & heads)} |")
    every = np.logical_and.reduce([selection(run) for run in (*branching, *prefix)])
    lists.append(f"| all | both, neurons too | {names(components, every)} |")
    print("\n| seed | heads of | layer, kind, number |\n" + "| --- " * 3 + "|\n" + "\n".join(lists))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", type=Path, help="folder of cca compare with the methods branching and prefix")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["branching"],
        help="methods whose gains by kind are shown, and those of the first over each of the others",
    )
    options = parser.parse_args()

    @cache
    def runs(method: str) -> list[Run]:
        return [Run.resume(options.compared / str(seed) / method) for seed in options.seeds]

    branching = runs("branching")
    verdicts = [list(judge(run)) for run in branching]
    pivots_table(verdicts)
    misses_table(branching, verdicts)
    methods_table(branching, runs("prefix"))
    planted = planted_slips(branching[0].config.model.path)
    base = target_answers(branching, "base")  # the same for every method
    answered = {method: target_answers(runs(method), "updated") for method in options.methods}
    for method, found in answered.items():
        kinds_table(f"base -> {method}", planted, base, found)
    first, *others = options.methods
    for method in others:
        kinds_table(f"{method} -> {first}", planted, answered[method], answered[first])


if __name__ == "__main__":
    main()
