"""Statistics of values that come in clusters, such as answers by template. Pure; every draw is seeded."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cca.evaluation.results import Interval

# scipy.stats takes a second to load, which reading a run should not: it is imported where it computes

_FEWEST_TO_DRAW = 6
"""Units below which resampling is given up: of n units even the range of their means covers only 1 - 2^(1 - n)."""
_MOST_SUMS = 2**20
"""Different sums up to which all signs are tried: those of 20 units that share no size. Beyond, signs are drawn."""


class Units(NamedTuple):
    """What varies independently: sum and count of each cluster, or of each value where there is one cluster."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Cluster-robust: sqrt(G / (G - 1) * sum_g (sum_g - count_g * mean)^2) / n (Cameron and Miller 2015)."""
        units, residuals = len(self.sums), self.sums - self.counts * self.mean
        return math.sqrt(units / (units - 1) * float(residuals @ residuals)) / float(self.counts.sum())


def units_of(values: ArrayLike, clusters: Sequence[str]) -> Units:
    data = np.asarray(values, dtype=float)
    if data.ndim != 1 or data.size == 0 or data.size != len(clusters):
        raise ValueError(f"one cluster a value is needed and at least one value, got {data.size} and {len(clusters)}")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        index = np.arange(data.size)
    return Units(np.bincount(index, weights=data).astype(float), np.bincount(index).astype(float))


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence[str], seed: int, draws: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Expanded percentile interval of the mean of `values` when whole clusters are drawn with replacement.

    Instances of one template are alike, so templates and not instances are the independent units.
    With a single cluster its instances are drawn instead, since one cluster has no spread between clusters.

    The plain percentile interval is too narrow for few clusters, as normal quantiles with a variance divided by G are.
    Its tails are expanded to Phi(-sqrt(G / (G - 1)) t_{G - 1}), which for symmetric values makes it Student's interval
    (Hesterberg 2015), and it still follows skewed ones. Of fewer than six units it is Student's interval itself,
    mean -+ t SE with the cluster-robust SE, which may go beyond the values. One value, or clusters of one mean, give
    an interval of no width.

    Raises:
        ValueError: no values, or not one cluster a value.
    """
    units = units_of(values, clusters)
    total, mean = len(units.sums), units.mean
    if total == 1:
        return Interval(mean, mean)
    from scipy.stats import norm, t

    quantile = float(t.ppf(0.5 + confidence / 2, total - 1))
    if total < _FEWEST_TO_DRAW:
        return Interval(mean - quantile * units.standard_error, mean + quantile * units.standard_error)
    # units of equal sum and count are alike to the mean: to draw how often each sort comes is cheaper than to draw all
    sorts, times = np.unique(np.stack(units), axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(total, times / total, size=draws)
    means = (drawn @ sorts[0]) / (drawn @ sorts[1])
    tail = float(norm.cdf(-math.sqrt(total / (total - 1)) * quantile))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(min(float(low), mean), max(float(high), mean))


def sign_flip(values: ArrayLike, clusters: Sequence[str], seed: int, draws: int = 9_999) -> float:
    """Two-sided p-value of the sign-flip test of a mean of 0, by cluster; by value where there is one cluster.

    Where nothing but chance says which of two models is which, the sum of each cluster is as likely to have the other
    sign, whatever its values have in common (Fisher 1935; for few clusters Canay, Romano and Shaikh 2017). p is the
    share of all signs that give a mean as far from 0 or farther. The signs are all tried where their sums are few, as
    those of counts are; else `draws` are drawn, and p is (b + 1) / (draws + 1), which keeps the level (Phipson and
    Smyth 2010). For single answers that change by -1, 0 or 1 this is McNemar's exact test.

    No outcome of G units gives less than 2^(1 - G): fewer than six cannot give 0.05.

    Raises:
        ValueError: no values, or not one cluster a value.
    """
    from scipy.stats import binom

    signed = units_of(values, clusters).sums
    signed = (signed / (np.abs(signed).max() or 1)).round(12)  # sums that differ by rounding alone are the same
    observed = abs(signed.sum()) - 1e-9
    sizes, times = np.unique(np.abs(signed[signed != 0]), return_counts=True)
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, times.tolist(), strict=True):
        if len(sums) * (count + 1) > _MOST_SUMS:
            return _drawn_sign_flip(np.abs(signed), observed, seed, draws)
        positive = np.arange(count + 1)
        sums, index = np.unique(np.add.outer(sums, size * (2 * positive - count)).round(12), return_inverse=True)
        chances = np.bincount(index.ravel(), np.outer(chances, binom.pmf(positive, count, 0.5)).ravel())
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def _drawn_sign_flip(sizes: NDArray[np.float64], observed: float, seed: int, draws: int) -> float:
    rng, found = np.random.default_rng(seed), 0
    for start in range(0, draws, 1000):
        positive = rng.integers(0, 2, (min(1000, draws - start), len(sizes)), dtype=np.int8)
        found += int((np.abs(2 * (positive @ sizes) - sizes.sum()) >= observed).sum())
    return (found + 1) / (draws + 1)
