"""Statistics for accuracies: intervals and paired comparisons. Pure functions; every random draw is seeded."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


class Accuracy(NamedTuple):
    """A share of `n` answers with its Wilson interval."""

    n: int
    value: float
    ci95: Interval


class Paired(NamedTuple):
    """Base against updated on the same problems."""

    n: int
    base: float
    updated: float
    difference: float
    ci95: Interval
    gained: int
    lost: int
    mcnemar_p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927).

    Raises:
        ValueError: n < 1 or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """Accuracy with its Wilson interval."""
    n = len(correct)
    return Accuracy(n, sum(correct) / n, wilson(sum(correct), n))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p-value for `gained` and `lost` discordant pairs (1 where there are none)."""
    if gained + lost == 0:
        return 1.0
    return float(scipy_stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue)


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence[str], seed: int, draws: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Percentile interval of the mean of `values` when whole clusters are drawn with replacement.

    Instances of one template are alike, so templates and not instances are the independent units.
    With a single cluster its instances are drawn instead, since one cluster has no spread between clusters.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0 or data.size != len(clusters):
        raise ValueError(f"cluster_bootstrap needs one cluster a value, got {data.size} and {len(clusters)}")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        index = np.arange(data.size)
    sums = np.bincount(index, weights=data)
    counts = np.bincount(index)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(counts), size=(draws, len(counts)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired(base: Sequence[bool], updated: Sequence[bool], clusters: Sequence[str], seed: int) -> Paired:
    """Compare two sets of answers to the same problems.

    Raises:
        ValueError: the lengths differ or there are no problems.
    """
    if len(base) != len(updated):
        raise ValueError(f"paired needs the same problems twice, got {len(base)} and {len(updated)} answers")
    change = np.asarray(updated, dtype=float) - np.asarray(base, dtype=float)
    interval = cluster_bootstrap(change, clusters, seed)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    n = len(base)
    return Paired(
        n, sum(base) / n, sum(updated) / n, float(change.mean()), interval, gained, lost, mcnemar(gained, lost)
    )
