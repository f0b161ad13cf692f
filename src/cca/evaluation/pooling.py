"""Base against updated model, and one method against another, over the test problems of several seeds."""

from collections.abc import Sequence

from cca.errors import InputError
from cca.evaluation import stats
from cca.evaluation.results import PooledResult
from cca.folder import RunFolder
from cca.records import Answered, Score, Split, answered

Answers = dict[Split, list[Answered]]
"""Both models' answers by split, all skills of a split together."""


def answers_of(folder: RunFolder) -> Answers:
    """The answers of a finished run."""
    found: Answers = {}
    for both in answered(folder.read("scores.jsonl", Score)):
        found.setdefault(both.base.split, []).append(both)
    return found


def outcomes(pairs: Sequence[tuple[Score, Score]], seed: int) -> stats.Outcomes:
    """Two answers to each problem as outcomes with their clusters.

    Problems of a skill are independent draws, so each is a cluster of its own; those of a template are alike.
    """
    clusters = [f"{seed}:{one.problem}" if one.skill else one.template for one, _ in pairs]
    return stats.Outcomes([one.correct for one, _ in pairs], [other.correct for _, other in pairs], clusters)


def against_base(seeds: Sequence[Answers], split: Split) -> PooledResult | None:
    """The updated model's answers against the base model's; None where no seed has problems of `split`."""
    found = [outcomes(answers[split], seed) for seed, answers in enumerate(seeds) if split in answers]
    return stats.pooled(found, seed=0) if found else None


def between(first: Sequence[Answers], other: Sequence[Answers]) -> PooledResult:
    """The updated model's target answers in `other` against those in `first`, on the same problems, seed by seed."""
    found = []
    for seed, (mine, theirs) in enumerate(zip(first, other, strict=True)):
        updated = {both.updated.problem: both.updated for both in theirs.get("test", [])}
        pairs = [(both.updated, updated.get(both.updated.problem)) for both in mine.get("test", [])]
        together = [(one, other) for one, other in pairs if other is not None]
        if len(together) < len(pairs) or len(pairs) < len(updated):
            raise InputError(
                f"the runs of seed number {seed + 1} did not answer the same problems (scores.jsonl); evaluate them "
                "again: cca evaluate RUN --redo"
            )
        found.append(outcomes(together, seed))
    return stats.pooled(found, seed=0)
