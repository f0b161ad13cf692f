"""Base against updated model, and one method against another, over the test problems of several seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cca.errors import InputError
from cca.evaluation import stats
from cca.evaluation.results import PooledResult
from cca.folder import RunFolder
from cca.records import NO_TEMPLATE, Answered, Problem, Score, Split, answered


class Answers(NamedTuple):
    """What a run found. by_split: both models' answers, all skills of a split together. clusters: of `clusters_of`."""

    by_split: dict[Split, list[Answered]]
    clusters: dict[str, str]


def answers_of(folder: RunFolder) -> Answers:
    """The answers of a finished run."""
    found: dict[Split, list[Answered]] = {}
    for both in answered(folder.read("scores.jsonl", Score)):
        found.setdefault(both.base.split, []).append(both)
    return Answers(found, clusters_of(folder.read("problems.jsonl", Problem)))


def clusters_of(problems: Iterable[Problem]) -> dict[str, str]:
    """Within what the answers to a problem vary together, by its id.

    Problems of a template are alike. Those of a skill, or of a source that names no template, are not; but several
    seeds may ask the same of them, so that each is a cluster by its question.
    """
    return {p.id: p.question if p.skill or p.template == NO_TEMPLATE else p.template for p in problems}


def outcomes(pairs: Sequence[tuple[Score, Score]], clusters: Mapping[str, str]) -> stats.Outcomes:
    """Two answers to each problem as outcomes. clusters: of each problem by id."""
    return stats.Outcomes(
        [one.correct for one, _ in pairs],
        [other.correct for _, other in pairs],
        [clusters[one.problem] for one, _ in pairs],
    )


def against_base(seeds: Sequence[Answers], split: Split) -> PooledResult | None:
    """The updated model's answers against the base model's; None where no seed has problems of `split`."""
    found = [outcomes(a.by_split[split], a.clusters) for a in seeds if split in a.by_split]
    return stats.pooled(found, seed=0) if found else None


def between(first: Sequence[Answers], other: Sequence[Answers]) -> PooledResult:
    """The updated model's target answers in `other` against those in `first`, on the same problems, seed by seed."""
    found = []
    for seed, (mine, theirs) in enumerate(zip(first, other, strict=True)):
        updated = {both.updated.problem: both.updated for both in theirs.by_split.get("test", [])}
        pairs = [(both.updated, updated.get(both.updated.problem)) for both in mine.by_split.get("test", [])]
        together = [(one, other) for one, other in pairs if other is not None]
        if len(together) < len(pairs) or len(pairs) < len(updated):
            raise InputError(
                f"the runs of seed number {seed + 1} did not answer the same problems (scores.jsonl); evaluate them "
                "again: cca evaluate RUN --redo"
            )
        found.append(outcomes(together, mine.clusters))
    return stats.pooled(found, seed=0)
