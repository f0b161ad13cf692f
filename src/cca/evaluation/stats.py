"""Statistics for accuracies: intervals, paired comparisons, what they could have found. Pure; every draw is seeded."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cca.evaluation.results import Drift, Interval, PooledResult, SetResult

# scipy.stats takes a second to load, which reading a run should not: it is imported where it computes

_FEWEST_TO_DRAW = 6
"""Units below which resampling is given up: of n units even the range of their means covers only 1 - 2^(1 - n)."""


class Accuracy(NamedTuple):
    """A share of `n` answers with its Wilson interval."""

    n: int
    value: float
    ci95: Interval


class Outcomes(NamedTuple):
    """One seed's answers before and after, and the template of each problem."""

    base: Sequence[bool]
    updated: Sequence[bool]
    templates: Sequence[str]


class PrecisionRecall(NamedTuple):
    """Precision is None where nothing was predicted, recall where there was nothing to find."""

    precision: Accuracy | None
    recall: Accuracy | None


class Overlap(NamedTuple):
    """Two selections among the same `n` things. jaccard is None where both are empty."""

    n: int
    first: int
    second: int
    shared: int
    jaccard: float | None
    p_value: float


class _Units(NamedTuple):
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


def _units(values: ArrayLike, clusters: Sequence[str]) -> _Units:
    data = np.asarray(values, dtype=float)
    if data.ndim != 1 or data.size == 0 or data.size != len(clusters):
        raise ValueError(f"one cluster a value is needed and at least one value, got {data.size} and {len(clusters)}")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        index = np.arange(data.size)
    return _Units(np.bincount(index, weights=data).astype(float), np.bincount(index).astype(float))


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927), as scipy computes it.

    Raises:
        ValueError: n < 1 or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def _share(successes: int, n: int) -> Accuracy:
    interval = wilson(successes, n)
    return Accuracy(n, successes / n, interval)


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """Accuracy with its Wilson interval.

    Raises:
        ValueError: there are no answers.
    """
    return _share(sum(correct), len(correct))


def precision_recall(true_positive: int, false_positive: int, false_negative: int) -> PrecisionRecall:
    """tp / (tp + fp) and tp / (tp + fn), for predicted against true positions.

    Raises:
        ValueError: a count is negative.
    """
    if min(true_positive, false_positive, false_negative) < 0:
        raise ValueError(f"counts must not be negative: {true_positive}, {false_positive}, {false_negative}")
    predicted, present = true_positive + false_positive, true_positive + false_negative
    return PrecisionRecall(
        _share(true_positive, predicted) if predicted else None, _share(true_positive, present) if present else None
    )


def overlap(first: ArrayLike, second: ArrayLike) -> Overlap:
    """How much two selections share, and the probability that as many or more are shared by chance.

    first, second: whether each thing is selected. Jaccard: shared / (first + second - shared). p_value: P(X >= shared),
    X hypergeometric, as where `second` were drawn at random among all n (the one-sided test of Fisher 1935). Selections
    that favour the same kind of thing overlap more than that for this reason alone: test each kind by itself.

    Raises:
        ValueError: the selections are not of the same things, or of none.
    """
    from scipy.stats import hypergeom

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"overlap needs two selections among the same things, got shapes {a.shape} and {b.shape}")
    size_a, size_b, shared = int(a.sum()), int(b.sum()), int((a & b).sum())
    union = size_a + size_b - shared
    p_value = float(hypergeom.sf(shared - 1, a.size, size_a, size_b))
    return Overlap(a.size, size_a, size_b, shared, shared / union if union else None, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many they are, in the given order.

    To call those up to alpha significant raises a single false alarm with probability alpha at most.
    Of the m values in ascending order, max over j <= i of min(1, (m - j + 1) p_(j)): the step-down method of Holm 1979
    as adjusted p-values (Wright 1992). It holds whatever the dependence between the tests. statsmodels has it too, but
    to install that package with pandas and patsy for these three lines would cost every user more than they do.

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    p = np.asarray(p_values, dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values are between 0 and 1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p-value for `gained` and `lost` discordant pairs (1 where there are none)."""
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(gained, lost), gained + lost, 0.5).pvalue)


def mcnemar_power(n: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """Probability that McNemar's exact test on `n` independent problems gives p <= `alpha` (Duffy 1984).

    discordant: the share of problems whose answer changes. difference: gained less lost, as shares of all problems.
    sum_D Bin(D; n, discordant) P(min(X, D - X) <= c_D), X ~ Bin(D, (discordant + difference) / (2 discordant)), where
    c_D is the largest count with 2 P(Bin(D, 1/2) <= c_D) <= alpha.

    Raises:
        ValueError: n < 1 or not |difference| <= discordant <= 1.
    """
    if n < 1 or not abs(difference) <= discordant <= 1:
        raise ValueError(
            f"power needs n >= 1 and |difference| <= discordant <= 1, got {n}, {discordant} and {difference}"
        )
    if discordant == 0:
        return 0.0
    from scipy.stats import binom

    # beyond these counts lies 1e-10 of the probability, and they are few where n is large
    fewest, most = int(binom.ppf(1e-10, n, discordant)), int(binom.isf(1e-10, n, discordant))
    pairs = np.arange(max(1, fewest), most + 1)
    critical = binom.ppf(alpha / 2, pairs, 0.5)
    critical -= binom.cdf(critical, pairs, 0.5) > alpha / 2
    gain = (1 + difference / discordant) / 2
    found = binom.cdf(critical, pairs, gain) + binom.cdf(critical, pairs, 1 - gain)
    return float(binom.pmf(pairs, n, discordant) @ found)


def minimum_detectable_effect(
    change: ArrayLike, clusters: Sequence[str], alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest true difference that these problems had probability `power` to show at two-sided level `alpha`.

    change: updated less base answer of each problem, -1, 0 or 1. The larger of two differences, since a change should
    be found by the test over problems and by the interval over templates:

    - exact: the difference at which `mcnemar_power` reaches `power`, as many answers changing as were seen to, or all
      in one direction where the difference is more than that. It is all that is left where no answer changed: an
      estimated standard error of 0 would say that anything is found. With n problems it is then about 7.9 / n, for six
      changes in one direction are the fewest with p <= 0.05.
    - by cluster: (t_{1 - alpha/2} + t_{power}) SE with Student's quantiles at G - 1 degrees of freedom (Bloom 1995) and
      the cluster-robust SE of the mean change over G clusters; over problems where there is one cluster.

    Where no or few answers changed it cannot be seen how alike the changes of a template are. Then this is a lower
    bound, for problems that change independently: a change of one template alone is harder to find. None where even a
    difference of 1 would not be found: in fewer than six problems, or in clusters that disagree too much.

    Raises:
        ValueError: no problems, not one cluster a problem, a change that is none, or not 0 < alpha < power < 1.
    """
    if not 0 < alpha < power < 1:
        raise ValueError(f"minimum_detectable_effect needs 0 < alpha < power < 1, got {alpha} and {power}")
    data, units = np.asarray(change, dtype=float), _units(change, clusters)
    if not np.isin(data, (-1, 0, 1)).all():
        raise ValueError("a change of an answer is -1, 0 or 1")
    from scipy.optimize import root_scalar
    from scipy.stats import t

    n, discordant = data.size, float(np.abs(data).mean())

    def lacking(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference, alpha) - power

    if lacking(1.0) < 0:
        return None
    exact = float(root_scalar(lacking, bracket=(0.0, 1.0), xtol=1e-6).root)
    freedom = len(units.sums) - 1
    quantiles = float(t.ppf(1 - alpha / 2, freedom) + t.ppf(power, freedom))
    effect = max(exact, quantiles * units.standard_error)
    return effect if effect <= 1 else None


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
    units = _units(values, clusters)
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


def paired(
    base: Sequence[bool],
    updated: Sequence[bool],
    clusters: Sequence[str],
    seed: int,
    *,
    drift: Drift | None = None,
    metric: str | None = None,
) -> SetResult:
    """Compare two sets of answers to the same problems: the interval by template, McNemar's test by problem.

    Args:
        base: whether each of the base model's answers is right.
        updated: the same of the updated model, in the same order.
        clusters: the template of each problem.
        seed: of the bootstrap.
        drift: what was measured on these problems besides, for the result.
        metric: of a benchmark, for the result.

    Raises:
        ValueError: the lengths differ or there are no problems.
    """
    compared = _compared(base, updated, clusters, seed)
    before, after = accuracy(base).ci95, accuracy(updated).ci95
    return SetResult(**compared, base_ci95=before, updated_ci95=after, drift=drift, metric=metric)


def paired_shares(
    base: Sequence[float], updated: Sequence[float], clusters: Sequence[str], seed: int, metric: str
) -> SetResult:
    """`paired` for a measure from 0 to 1 that is no count of right answers: without what counts them.

    Raises:
        ValueError: the lengths differ or there are no documents.
    """
    n, change = len(base), np.subtract(updated, base)
    return SetResult(
        n=n,
        base=sum(base) / n,
        updated=sum(updated) / n,
        difference=sum(change.tolist()) / n,
        ci95=cluster_bootstrap(change, clusters, seed),
        gained=None,
        lost=None,
        mcnemar_p=None,
        minimum_detectable_effect=None,
        metric=metric,
    )


def _compared(base: Sequence[bool], updated: Sequence[bool], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures that `SetResult` and `PooledResult` share."""
    if len(base) != len(updated):
        raise ValueError(f"paired needs the same problems twice, got {len(base)} and {len(updated)} answers")
    change = np.asarray(updated, dtype=float) - np.asarray(base, dtype=float)
    interval = cluster_bootstrap(change, clusters, seed)
    gained, lost, n = int((change > 0).sum()), int((change < 0).sum()), len(base)
    return {
        "n": n,
        "base": sum(base) / n,
        "updated": sum(updated) / n,
        "difference": float(change.mean()),
        "ci95": _as_difference(interval),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar(gained, lost),
        "minimum_detectable_effect": minimum_detectable_effect(change, clusters),
    }


def pooled(outcomes: Sequence[Outcomes], seed: int) -> PooledResult:
    """Several seeds' comparisons as one, and how much the seeds differ.

    Each interval answers one question:

    - `ci95`: what difference would *other templates* show, under updates like these? Templates are drawn, each with its
      problems of all seeds, since problems of one template are alike whichever seed drew them. The seeds are taken as
      they are.
    - `seeds_ci95`: what mean difference would *other seeds* show (other problems, traces, circuit and update)? The
      seeds' differences are the data, every seed weighing the same. Where the seeds share their templates it takes
      these as they are.

    Neither holds for other templates and other seeds at once. McNemar's test and the counts are of all problems.

    Raises:
        ValueError: no seeds, or a seed without problems or with unequal lengths.
    """
    if not outcomes:
        raise ValueError("pooled needs at least one seed")
    for part in outcomes:
        if not len(part.base) == len(part.updated) == len(part.templates) > 0:
            raise ValueError("pooled needs base, updated and template of at least one problem from every seed")
    together = _compared(
        [correct for part in outcomes for correct in part.base],
        [correct for part in outcomes for correct in part.updated],
        [template for part in outcomes for template in part.templates],
        seed,
    )
    differences = [(sum(part.updated) - sum(part.base)) / len(part.base) for part in outcomes]
    return PooledResult(**together, by_seed=differences, seeds_ci95=_between_seeds(differences))


def _between_seeds(differences: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of the seeds' differences; None where there is one seed."""
    n = len(differences)
    if n < 2:
        return None
    from scipy.stats import t

    mean = sum(differences) / n
    half = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return _as_difference(Interval(mean - half, mean + half))


def _as_difference(interval: Interval) -> Interval:
    return Interval(max(-1.0, interval.low), min(1.0, interval.high))
