import numpy as np
import pytest
from scipy.stats import binomtest

from cca.stats import accuracy, cluster_bootstrap, mcnemar, paired, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (15, 148)])
def test_wilson_equals_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_refuses_impossible_counts():
    for successes, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="wilson needs"):
            wilson(successes, n)


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(175, 63) == pytest.approx(binomtest(63, 238).pvalue)
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(0, 0) == 1.0


def test_cluster_bootstrap_is_wider_where_instances_of_a_template_agree():
    clusters = [str(i // 20) for i in range(400)]
    alike = np.repeat(np.arange(20) % 2, 20)
    mixed = np.arange(400) % 2
    wide = cluster_bootstrap(alike, clusters, seed=0)
    narrow = cluster_bootstrap(mixed, clusters, seed=0)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    # 20 clusters of value 0 or 1: standard error 0.5 / sqrt(20)
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * 0.5 / 20**0.5, rel=0.1)


def test_cluster_bootstrap_repeats_with_its_seed_and_covers_one_cluster_by_its_instances():
    values, clusters = [0.0, 1.0, 1.0, 0.0], ["a"] * 4
    assert cluster_bootstrap(values, clusters, 3) == cluster_bootstrap(values, clusters, 3)
    low, high = cluster_bootstrap(values, clusters, 3)
    assert low < 0.5 < high


def test_paired_counts_gained_and_lost():
    base = [True, True, False, False, False]
    updated = [True, False, True, True, False]
    result = paired(base, updated, ["a", "a", "b", "b", "c"], seed=0)
    assert (result.n, result.base, result.updated, result.gained, result.lost) == (5, 0.4, 0.6, 2, 1)
    assert result.difference == pytest.approx(0.2)
    assert result.ci95.low <= result.difference <= result.ci95.high


def test_paired_refuses_different_problems():
    with pytest.raises(ValueError, match="same problems"):
        paired([True], [True, False], ["a"], seed=0)


def test_accuracy_has_its_interval():
    value = accuracy([True, False, False, True])
    assert (value.n, value.value) == (4, 0.5)
    assert value.ci95 == wilson(2, 4)
