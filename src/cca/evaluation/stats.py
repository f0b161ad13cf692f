"""Statistics for accuracies: intervals, paired comparisons, what they could have found. Pure; every draw is seeded."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cca.evaluation.clusters import cluster_bootstrap, sign_flip, units_of
from cca.evaluation.results import Drift, Interval, PooledResult, SetResult, too_few

# scipy.stats takes a second to load, which reading a run should not: it is imported where it computes


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
    be found by the sign-flip test and by the interval over templates:

    - exact: the difference at which the test reaches `power` on problems that change independently, where it is
      McNemar's (`mcnemar_power`), as many answers changing as were seen to, or all in one direction where the
      difference is more than that. It is all that is left where no answer changed: an estimated standard error of 0
      would say that anything is found. With n problems it is then about 7.9 / n, for six changes in one direction are
      the fewest with p <= 0.05.
    - by cluster: (t_{1 - alpha/2} + t_{power}) SE with Student's quantiles at G - 1 degrees of freedom (Bloom 1995) and
      the cluster-robust SE of the mean change over G clusters; over problems where there is one cluster.

    Where no or few answers changed it cannot be seen how alike the changes of a template are. Then this is a lower
    bound, for problems that change independently: a change of one template alone is harder to find. None where even a
    difference of 1 would not be found: in fewer than six templates or problems, or in clusters that disagree too much.

    Raises:
        ValueError: no problems, not one cluster a problem, a change that is none, or not 0 < alpha < power < 1.
    """
    if not 0 < alpha < power < 1:
        raise ValueError(f"minimum_detectable_effect needs 0 < alpha < power < 1, got {alpha} and {power}")
    data, units = np.asarray(change, dtype=float), units_of(change, clusters)
    if not np.isin(data, (-1, 0, 1)).all():
        raise ValueError("a change of an answer is -1, 0 or 1")
    from scipy.optimize import root_scalar
    from scipy.stats import t

    if too_few(len(units.sums), alpha):
        return None
    n, discordant = data.size, float(np.abs(data).mean())

    def lacking(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference, alpha) - power

    exact = float(root_scalar(lacking, bracket=(0.0, 1.0), xtol=1e-6).root)
    freedom = len(units.sums) - 1
    quantiles = float(t.ppf(1 - alpha / 2, freedom) + t.ppf(power, freedom))
    effect = max(exact, quantiles * units.standard_error)
    return effect if effect <= 1 else None


def paired_score(gained: int, lost: int, n: int, quantile: float) -> Interval:
    """Score interval of the difference of two proportions of the same `n` problems (Tango 1998).

    quantile: of the normal distribution, 1.96 for 95%. The limits are the differences d at which
    (gained - lost - n d)^2 = quantile^2 n (2 q + d - d^2), with q the likeliest share of losses given d. Like Wilson's
    interval, to which it comes where `lost` is 0 of small shares, it has a width where the estimated variance is 0.
    """
    from scipy.optimize import root_scalar

    def upper(gained: int, lost: int) -> float:
        def beyond(d: float) -> float:
            b = (2 * n - gained + lost) * d - gained - lost
            q = (math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d))) - b) / (4 * n)
            return (gained - lost - n * d) ** 2 - quantile**2 * n * (2 * q + d * (1 - d))

        start = (gained - lost) / n + 1e-12  # d = (gained - lost) / n is a root of its own where one count is 0 or n
        return float(root_scalar(beyond, bracket=(start, 1.0)).root) if start < 1 else 1.0

    return Interval(-upper(lost, gained), upper(gained, lost))


def paired(
    base: Sequence[bool],
    updated: Sequence[bool],
    clusters: Sequence[str],
    seed: int,
    *,
    drift: Drift | None = None,
    metric: str | None = None,
) -> SetResult:
    """Compare two sets of answers to the same problems, template by template: test, interval, what could be found.

    The interval is that of `cluster_bootstrap`, and claims no more than the data can tell: it holds what as many
    independent problems would leave open, so that it has a width where all templates agree or nothing changed, and it
    holds 0 unless the test, `sign_flip`, leaves it out as well. Where none of n answers changed it is -+ the exact
    bound on the share of those that would, 1 - 0.025^(1/n) (Clopper and Pearson 1934), widened for few templates.

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
    """`paired` for a measure from 0 to 1 that is no count of right answers: without what counts or plans with them.

    Raises:
        ValueError: the lengths differ or there are no documents.
    """
    shared = _differing(base, updated, clusters, seed)
    return SetResult(**shared, gained=None, lost=None, minimum_detectable_effect=None, metric=metric)


def _compared(base: Sequence[bool], updated: Sequence[bool], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures that `SetResult` and `PooledResult` share."""
    shared = _differing(base, updated, clusters, seed)
    change = _change(base, updated)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return {
        **shared,
        "gained": gained,
        "lost": lost,
        "minimum_detectable_effect": minimum_detectable_effect(change, clusters),
    }


def _differing(base: Sequence[float], updated: Sequence[float], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures that a share has as well."""
    if len(base) != len(updated):
        raise ValueError(f"paired needs the same problems twice, got {len(base)} and {len(updated)} answers")
    change, n = _change(base, updated), len(base)
    units = len(units_of(change, clusters).sums)
    p = sign_flip(change, clusters, seed)
    return {
        "n": n,
        "base": sum(base) / n,
        "updated": sum(updated) / n,
        "difference": float(change.mean()),
        "ci95": _hull(
            cluster_bootstrap(change, clusters, seed), _independent(change, units), (0.0,) if p > 0.05 else ()
        ),
        "sign_flip_p": p,
        "units": units,
    }


def _change(base: Sequence[float], updated: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(updated, dtype=float) - np.asarray(base, dtype=float)


def _independent(change: NDArray[np.float64], units: int) -> Interval:
    """What the interval of the mean change would be were the values independent: the least that it may be.

    units: the templates or seeds that the values come from, whose number widens the interval as Student's quantile
    does; the values themselves where they are as many. Where all changes are the same m, the share u of others is
    bounded, and with it the mean, by (1 - u) m -+ u.
    """
    from scipy.stats import norm, t

    n = change.size
    quantile = float(norm.ppf(0.975) if units == n else t.ppf(0.975, units - 1))
    if np.ptp(change) == 0:
        unseen = -math.expm1(float(norm.logsf(quantile)) / n)
        return Interval(*((1 - unseen) * change[0] + sign * unseen for sign in (-1, 1)))
    if np.isin(change, (-1, 0, 1)).all():
        return paired_score(int((change > 0).sum()), int((change < 0).sum()), n, quantile)
    mean, half = float(change.mean()), quantile * float(change.std(ddof=1)) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def _hull(*parts: Sequence[float]) -> Interval:
    """The least interval of a difference that holds them all."""
    bounds = [bound for part in parts for bound in part]
    return Interval(max(-1.0, float(min(bounds))), min(1.0, float(max(bounds))))


def pooled(outcomes: Sequence[Outcomes], seed: int) -> PooledResult:
    """Several seeds' comparisons as one, and how much the seeds differ.

    Each interval answers one question:

    - `ci95`: what difference would *other templates* show, under updates like these? Templates are drawn, each with its
      problems of all seeds, since problems of one template are alike whichever seed drew them. The seeds are taken as
      they are.
    - `seeds_ci95`: what mean difference would *other seeds* show (other problems, traces, circuit and update)? The
      seeds' differences are the data, every seed weighing the same. Where the seeds share their templates it takes
      these as they are.

    Neither holds for other templates and other seeds at once, and neither claims more than `paired` does.

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
    change = np.concatenate([_change(part.base, part.updated) for part in outcomes])
    return PooledResult(**together, by_seed=differences, seeds_ci95=_between_seeds(differences, change))


def _between_seeds(differences: Sequence[float], change: NDArray[np.float64]) -> Interval | None:
    """Student's interval of the mean of the seeds' differences; None where there is one seed. change: all answers'."""
    n = len(differences)
    if n < 2:
        return None
    from scipy.stats import t

    mean = sum(differences) / n
    half = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return _hull((mean - half, mean + half), _independent(change, n))
