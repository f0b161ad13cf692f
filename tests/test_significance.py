"""The sign-flip test, McNemar's power, the smallest change that a sample shows, and Holm's correction."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, norm, t
from test_stats import changes, named

from cca.evaluation.clusters import cluster_bootstrap, sign_flip
from cca.evaluation.results import too_few
from cca.evaluation.stats import (
    holm,
    mcnemar_power,
    minimum_detectable_effect,
)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p-value."""
    return float(binomtest(min(gained, lost), gained + lost, 0.5).pvalue) if gained + lost else 1.0


# ---- the sign-flip test ----


def flipped(sums: list[float]) -> float:
    """The share of all signs whose sum is as far from 0 as that of `sums`, or farther."""
    flips = np.array(list(product((1, -1), repeat=len(sums))))
    return float(np.mean(np.abs(flips @ sums) >= abs(sum(sums)) - 1e-9))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_the_sign_flip_test_tries_all_signs_of_the_clusters(sums):
    values = [float(np.sign(total)) for total in sums for _ in range(abs(total) or 1)]
    clusters = [str(i) for i, total in enumerate(sums) for _ in range(abs(total) or 1)]
    assert sign_flip(values, clusters, seed=0) == pytest.approx(flipped(sums))


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9))
def test_the_sign_flip_test_takes_values_that_are_no_counts(thousandths):
    values = [value / 1000 for value in thousandths]
    assert sign_flip(values, list(map(str, range(len(values)))), seed=0) == pytest.approx(flipped(values))


@pytest.mark.parametrize(("gained", "lost"), [(175, 63), (5, 0), (1, 1), (0, 0), (9, 2), (3000, 2800)])
def test_without_templates_the_sign_flip_test_is_mcnemars_exact_test(gained, lost):
    change = [1] * gained + [-1] * lost + [0] * 9
    for clusters in (["a"] * len(change), named(len(change), 1)):
        assert sign_flip(change, clusters, seed=0) == pytest.approx(mcnemar(gained, lost))


def test_where_signs_are_too_many_to_try_they_are_drawn_with_the_seed(monkeypatch):
    values, names = np.random.default_rng(3).normal(0.3, 1, 14), named(14, 1)
    exact = sign_flip(values, names, seed=0)
    monkeypatch.setattr("cca.evaluation.clusters._MOST_SUMS", 1)
    assert sign_flip(values, names, seed=0) == sign_flip(values, names, seed=0) != sign_flip(values, names, seed=1)
    assert sign_flip(values, names, seed=0) == pytest.approx(exact, abs=0.02)
    assert sign_flip([1.0] * 40, named(40, 1), seed=0) == 1e-4, "never 0"


def test_fewer_than_six_templates_cannot_give_a_p_of_0_05():
    for count in range(1, 12):
        least = sign_flip([1.0] * 4 * count, named(count, 4), 0) if count > 1 else sign_flip([1.0], ["a"], 0)
        assert least == pytest.approx(2.0 ** (1 - count))
        assert too_few(count) == (least > 0.05) == (count < 6)


def test_the_sign_flip_test_keeps_its_level_where_the_answers_of_a_template_are_alike():
    rng, names = np.random.default_rng(0), named(16, 28)
    by_template, by_problem = [], []
    for seed in range(500):
        change = changes(rng, 16, 28, 0, 0.1)
        by_template.append(sign_flip(change, names, seed) <= 0.05)
        by_problem.append(mcnemar(int((change > 0).sum()), int((change < 0).sum())) <= 0.05)
    assert 0.03 <= np.mean(by_template) <= 0.07
    assert np.mean(by_problem) > 0.15, "McNemar's test takes the answers of a template as independent"


def test_mcnemar_power_is_the_sum_over_all_tables_that_are_found_significant():
    for n, discordant, difference, alpha in ((25, 0.4, 0.3, 0.05), (17, 1.0, 0.5, 0.05), (20, 0.5, -0.4, 0.0625)):
        shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
        expected = sum(
            multinomial.pmf([gained, lost, n - gained - lost], n, shares)
            for gained in range(n + 1)
            for lost in range(n + 1 - gained)
            if mcnemar(gained, lost) <= alpha
        )
        assert mcnemar_power(n, discordant, difference, alpha) == pytest.approx(expected, abs=1e-8)


def test_mcnemar_power_equals_the_validated_example():
    # tests of R's MESS (power_mcnemar_test, exact, one-sided 0.025): 144 pairs, discordant 0.25 and 0.45, power 0.80
    assert mcnemar_power(144, 0.70, 0.20) == pytest.approx(0.80, abs=5e-3)


def test_mcnemar_power_comes_to_connors_normal_formula_in_large_samples():
    # Connor 1987: Phi((d sqrt(n) - z sqrt(psi)) / sqrt(psi - d^2)); his example of 23 pairs is for power 0.80
    def connor(n, psi, d):
        return norm.cdf((d * n**0.5 - norm.ppf(0.975) * psi**0.5) / (psi - d * d) ** 0.5)

    assert connor(22, 0.5, 0.4) < 0.8 < connor(23, 0.5, 0.4)
    for n, psi, d in ((20_000, 0.2, 0.009), (20_000, 0.05, 0.004), (50_000, 0.5, 0.007)):
        assert mcnemar_power(n, psi, d) == pytest.approx(connor(n, psi, d), abs=0.015)


def test_mcnemar_power_refuses_impossible_shares():
    for n, discordant, difference in ((0, 0.5, 0.1), (9, 0.1, 0.2), (9, 1.1, 0.2)):
        with pytest.raises(ValueError, match="power needs"):
            mcnemar_power(n, discordant, difference)


@pytest.mark.parametrize("n", [6, 50, 224, 4392])
def test_without_any_change_the_detectable_difference_is_that_of_six_changes_in_one_direction(n):
    found = minimum_detectable_effect([0] * n, ["a"] * n)
    assert found is not None
    assert binom.sf(5, n, found) == pytest.approx(0.8, abs=1e-3)
    assert mcnemar(6, 0) <= 0.05 < mcnemar(5, 0)


def test_fewer_than_six_problems_can_detect_nothing():
    assert minimum_detectable_effect([0] * 5, ["a"] * 5) is None
    assert minimum_detectable_effect([1, 0, -1, 0, 1], list("abcde")) is None


@pytest.mark.parametrize(("n", "discordant"), [(224, 0.0), (224, 0.04), (878, 0.12)])
def test_a_difference_of_the_detectable_size_is_found_in_80_of_100_samples_of_independent_problems(n, discordant):
    rng = np.random.default_rng(0)
    half = round(n * discordant / 2)
    difference = minimum_detectable_effect([1] * half + [-1] * half + [0] * (n - 2 * half), ["a"] * n)
    assert difference is not None
    changed = max(2 * half / n, difference)
    shares = [(changed + difference) / 2, (changed - difference) / 2, 1 - changed]
    tables, times = np.unique(rng.multinomial(n, shares, size=5000), axis=0, return_counts=True)
    found = np.average([mcnemar(gained, lost) <= 0.05 for gained, lost, _ in tables.tolist()], weights=times)
    assert 0.78 <= found <= 0.82


def test_a_difference_of_the_detectable_size_is_found_in_80_of_100_samples_of_templates_that_differ():
    rng, names = np.random.default_rng(0), named(16, 28)
    # the mean over many samples, for one sample's standard error is itself uncertain
    difference = np.mean([minimum_detectable_effect(changes(rng, 16, 28, 0, 0.1), names) or 1 for _ in range(100)])
    samples = [changes(rng, 16, 28, float(difference), 0.1) for _ in range(1000)]
    found = np.mean([cluster_bootstrap(sample, names, seed, 500).low > 0 for seed, sample in enumerate(samples)])
    assert 0.76 <= found <= 0.84


def test_the_detectable_difference_is_larger_where_instances_of_a_template_change_alike():
    alike = np.repeat([1, -1] * 10, 20)
    mixed = np.array([1, -1] * 200)
    # 20 clusters of mean 1 or -1: SE = sqrt(20 / 19) / sqrt(20), and Student's quantiles at 19 degrees of freedom
    expected = (t.ppf(0.975, 19) + t.ppf(0.8, 19)) / 19**0.5
    assert minimum_detectable_effect(alike, named(20, 20)) == pytest.approx(expected)
    independent = minimum_detectable_effect(mixed, named(20, 20))
    assert independent is not None and independent < expected / 4
    assert independent == minimum_detectable_effect(mixed, named(1, 400))
    assert minimum_detectable_effect([1] * 20 + [-1] * 20, named(2, 20)) is None


def test_minimum_detectable_effect_refuses_what_is_no_change_of_an_answer_and_impossible_levels():
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        minimum_detectable_effect([0.5, 0], ["a", "a"])
    with pytest.raises(ValueError, match="alpha < power"):
        minimum_detectable_effect([1, 0], ["a", "a"], power=0.01)


def test_holm_equals_published_examples_in_the_given_order():
    # documentation of pingouin.multicomp, as R's p.adjust(method="holm")
    assert holm([0.50, 0.003, 0.32, 0.054, 0.0003]) == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])
    # Wikipedia, Holm-Bonferroni method: at 0.05 the first and the fourth are rejected, the third (0.03 > 0.025) is not
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni():
    rng = np.random.default_rng(0)
    for m in range(1, 7):
        p = (rng.random(m) ** 3).round(2).tolist()
        subsets = [s for size in range(1, m + 1) for s in combinations(range(m), size)]
        closed = [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(m)]
        assert holm(p) == pytest.approx(closed)


def test_holm_refuses_what_is_no_probability():
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, p])
