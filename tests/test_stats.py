"""Intervals: of shares, of differences, over templates and over seeds; and how far two circuits overlap."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import xlogy
from scipy.stats import binomtest, fisher_exact, norm, t, ttest_1samp

from cca.evaluation.clusters import cluster_bootstrap
from cca.evaluation.results import too_few
from cca.evaluation.stats import (
    Outcomes,
    accuracy,
    overlap,
    paired,
    paired_score,
    paired_shares,
    pooled,
    precision_recall,
    wilson,
)


def named(clusters: int, size: int) -> list[str]:
    return [f"t{i}" for i in range(clusters) for _ in range(size)]


def changes(rng: np.random.Generator, clusters: int, size: int, mean: float, spread: float) -> np.ndarray:
    """Changes of answers, three in ten, where each template's mean change is drawn with deviation `spread`."""
    effect = rng.normal(mean, spread, (clusters, 1))
    draw = rng.random((clusters, size))
    return ((draw < 0.15 + effect / 2) * 1.0 - (draw > 0.85 + effect / 2)).ravel()


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (15, 148)])
def test_wilson_is_the_score_interval(successes, n):
    z, p = norm.ppf(0.975), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson(successes, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_typed_results_and_statistics_load_neither_torch_nor_scipy():
    code = "import sys, cca.evaluation.stats, cca.evaluation.results, cca.evaluation.options; "
    code += "assert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wilson_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_refuses_impossible_counts():
    for successes, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="wilson needs"):
            wilson(successes, n)


def test_cluster_bootstrap_is_wider_where_instances_of_a_template_agree():
    clusters = [str(i // 20) for i in range(400)]
    alike = np.repeat(np.arange(20) % 2, 20)
    mixed = np.arange(400) % 2
    wide = cluster_bootstrap(alike, clusters, seed=0)
    narrow = cluster_bootstrap(mixed, clusters, seed=0)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    # 20 clusters of value 0 or 1: standard error 0.5 / sqrt(19), and Student's quantile
    assert (wide.high - wide.low) / 2 == pytest.approx(t.ppf(0.975, 19) * 0.5 / 19**0.5, rel=0.1)


def test_cluster_bootstrap_repeats_with_its_seed_and_covers_one_cluster_by_its_instances():
    values, clusters = [0.0, 1.0, 1.0, 0.0], ["a"] * 4
    assert cluster_bootstrap(values, clusters, 3) == cluster_bootstrap(values, clusters, 3)
    low, high = cluster_bootstrap(values, clusters, 3)
    assert low < 0.5 < high
    many = np.random.default_rng(0).random(300) < 0.3
    expected = t.ppf(0.975, 299) * many.std(ddof=1) / 300**0.5
    low, high = cluster_bootstrap(many, ["a"] * 300, 0)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)


def test_cluster_bootstrap_draws_with_its_seed_and_whatever_the_order_and_names_of_the_clusters():
    values = np.random.default_rng(0).normal(size=60)
    clusters, others = named(12, 5), [f"x{-i}" for i in range(12) for _ in range(5)]
    found = cluster_bootstrap(values, clusters, 1)
    assert found != cluster_bootstrap(values, clusters, 2)
    assert found == pytest.approx(cluster_bootstrap(values[::-1], others[::-1], 1), abs=1e-12)


@pytest.mark.parametrize("clusters", [8, 32])
def test_the_interval_covers_the_true_difference_95_times_of_100_even_with_few_clusters(clusters):
    # the plain percentile interval covers 88% (8 clusters) and 94% (32) on such data
    rng, names = np.random.default_rng(1), named(clusters, 28)
    covered = 0
    for seed in range(600):
        low, high = cluster_bootstrap(changes(rng, clusters, 28, 0.05, 0.1), names, seed, draws=1000)
        covered += low <= 0.05 <= high
    assert 0.92 <= covered / 600 <= 0.97


def test_the_expanded_interval_is_students_for_symmetric_values():
    # Hesterberg 2015: the tails Phi(-sqrt(n / (n - 1)) t) make it so
    means = norm.ppf((np.arange(16) + 0.5) / 16)
    low, high = cluster_bootstrap(np.repeat(means, 3), named(16, 3), seed=0, draws=100_000)
    student = ttest_1samp(means, 0).confidence_interval()
    assert (low, high) == pytest.approx((student.low, student.high), rel=0.03)


def test_fewer_than_six_clusters_give_students_interval_with_the_cluster_robust_error():
    means = np.array([0.2, 0.5, 0.1])
    student = ttest_1samp(means, 0).confidence_interval()
    assert cluster_bootstrap(np.repeat(means, 4), named(3, 4), seed=0) == pytest.approx((student.low, student.high))
    # sizes 2, 1, 3 and mean 1/2: residual sums 1, -1/2, -1/2, so SE = sqrt(3/2 * 3/2) / 6 = 1/4
    low, high = cluster_bootstrap([1, 1, 0, 1, 0, 0], ["a", "a", "b", "c", "c", "c"], seed=0)
    assert (low, high) == pytest.approx((0.5 - t.ppf(0.975, 2) / 4, 0.5 + t.ppf(0.975, 2) / 4))


def test_ten_thousand_draws_of_32_clusters_take_under_a_tenth_of_a_second():
    values, names = np.random.default_rng(0).normal(size=32 * 28), named(32, 28)
    taken = []
    for _ in range(3):
        began = time.process_time()
        cluster_bootstrap(values, names, seed=0)
        taken.append(time.process_time() - began)
    assert min(taken) < 0.1


def test_cluster_bootstrap_refuses_no_values_and_values_without_cluster():
    for values, clusters in (([], []), ([1.0, 2.0], ["a"]), ([[1.0, 2.0]], ["a", "b"])):
        with pytest.raises(ValueError, match="one cluster a value"):
            cluster_bootstrap(values, clusters, seed=0)


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


def test_the_interval_of_a_difference_holds_it_and_stays_between_minus_one_and_one():
    rng = np.random.default_rng(0)
    for seed in range(100):
        n = int(rng.integers(1, 40))
        base, updated = rng.random((2, n)) < rng.random((2, 1))
        clusters = [str(c) for c in rng.integers(0, rng.integers(1, 12), n)]
        result = paired(base.tolist(), updated.tolist(), clusters, seed)
        assert -1 <= result.ci95.low <= result.difference <= result.ci95.high <= 1
        one_draw = cluster_bootstrap([*base, *updated], clusters * 2, seed, draws=1)
        assert one_draw.low <= np.mean([*base, *updated]) <= one_draw.high


@pytest.mark.parametrize("n", [1, 5, 200, 10_000])
def test_where_no_answer_of_n_changed_the_interval_is_the_exact_bound_on_those_that_would(n):
    result = paired([True] * n, [True] * n, ["a"] * n, seed=0)
    low, high = binomtest(0, n).proportion_ci(0.95, "exact")
    assert low == 0
    assert result.ci95 == pytest.approx((-high, high))
    assert (result.gained, result.lost, result.sign_flip_p) == (0, 0, 1)


def test_no_change_in_few_templates_leaves_more_open_than_in_many():
    found = [paired([False] * 224, [False] * 224, named(g, 224 // g), seed=0).ci95.high for g in (2, 4, 8, 32, 224)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.3
    assert found[-1] == pytest.approx(1 - 0.025 ** (1 / 224))
    # as often as Student's quantile at 7 degrees of freedom is passed by a normal variable
    assert found[2] == pytest.approx(1 - norm.sf(t.ppf(0.975, 7)) ** (1 / 224))
    effect = paired([True] * 224, [True] * 224, named(8, 28), 0).minimum_detectable_effect
    assert effect == pytest.approx(0.0351, abs=5e-5)


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abcdefgh")), min_size=1, max_size=40)
UNIFORM = st.tuples(st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 9)).map(
    lambda drawn: [(drawn[0], drawn[1], str(cluster)) for cluster in range(drawn[2]) for _ in range(drawn[3])]
)


@given(ANSWERS | UNIFORM)
def test_no_sample_gives_certainty(answers):
    """Whatever n answers show, the interval is as wide as that many independent ones leave open."""
    result = paired(*zip(*answers, strict=True), seed=0)
    low, high = result.ci95
    n, unseen = result.n, 1 - 0.025 ** (1 / result.n)
    assert -1 <= low <= result.difference <= high <= 1
    assert high - low >= unseen
    assert low < result.difference or result.difference == -1
    assert high > result.difference or result.difference == 1
    assert result.gained is not None and result.lost is not None
    if (result.gained, result.lost) not in ((0, 0), (n, 0), (0, n)):
        score = paired_score(result.gained, result.lost, n, 1.96)
        assert low <= score.low + 1e-4
        assert high >= score.high - 1e-4


@given(ANSWERS | UNIFORM)
def test_an_interval_leaves_0_out_only_where_the_test_does_as_well(answers):
    result = paired(*zip(*answers, strict=True), seed=0)
    assert result.ci95.holds_zero or result.sign_flip_p <= 0.05
    if too_few(result.units):
        assert result.ci95.holds_zero
        assert result.minimum_detectable_effect is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from("abcdefg")), min_size=1, max_size=30))
def test_a_share_of_no_count_is_not_certain_either(documents):
    result = paired_shares(*zip(*documents, strict=True), seed=0, metric="acc")
    assert -1 <= result.ci95.low <= result.difference <= result.ci95.high <= 1
    assert result.ci95.low < result.ci95.high
    assert result.ci95.holds_zero or result.sign_flip_p <= 0.05


def test_a_share_that_no_document_changed_has_the_exact_bound():
    result = paired_shares([0.25] * 50, [0.25] * 50, named(50, 1), 0, "acc")
    assert result.ci95.high == -result.ci95.low == pytest.approx(1 - 0.025 ** (1 / 50))
    # all 50 rise by 0.1: a share u of others could fall to -1 or rise to 1
    risen, u = paired_shares([0.0] * 50, [0.1] * 50, named(50, 1), 0, "acc"), 1 - 0.025 ** (1 / 50)
    assert risen.ci95 == pytest.approx(((1 - u) * 0.1 - u, (1 - u) * 0.1 + u))


def test_the_score_interval_equals_the_published_example():
    # Fagerland, Lydersen and Laake 2014: 21 patients, 1 and 7 discordant, Tango's interval -0.517 to -0.026
    assert paired_score(1, 7, 21, 1.96) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 9), (9, 0, 9), (0, 3, 9), (1, 0, 1), (5, 2, 40), (3, 6, 10)])
def test_the_score_interval_ends_where_the_score_test_of_the_likeliest_losses_does(gained, lost, n):
    def statistic(d: float) -> float:
        shares = np.linspace(max(0, -d), (1 - d) / 2, 200_001)
        with np.errstate(divide="ignore"):
            likelihood = xlogy(gained, shares + d) + xlogy(lost, shares) + xlogy(n - gained - lost, 1 - 2 * shares - d)
        q = shares[likelihood.argmax()]
        return abs(gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    for bound in (found := paired_score(gained, lost, n, 1.96)):
        assert abs(bound) == 1 or statistic(bound) == pytest.approx(1.96, rel=1e-3)
    assert paired_score(lost, gained, n, 1.96) == pytest.approx((-found.high, -found.low))


def test_accuracy_has_its_interval():
    value = accuracy([True, False, False, True])
    assert (value.n, value.value) == (4, 0.5)
    assert value.ci95 == wilson(2, 4)
    with pytest.raises(ValueError, match="wilson needs"):
        accuracy([])


def outcomes(rng: np.random.Generator, templates: list[str], gain: dict[str, float]) -> Outcomes:
    """Answers that were all wrong, of which the share `gain` of each template turns right."""
    return Outcomes([False] * len(templates), [bool(rng.random() < gain[name]) for name in templates], templates)


def test_pooled_seeds_are_clustered_by_template_across_seeds():
    rng, names = np.random.default_rng(0), named(12, 20)
    gain = {name: 0.6 * (i % 2) for i, name in enumerate(dict.fromkeys(names))}
    runs = [outcomes(rng, names, gain) for _ in range(5)]
    shared = pooled(runs, seed=0)
    apart = pooled([run._replace(templates=[f"{i}{x}" for x in names]) for i, run in enumerate(runs)], seed=0)
    assert (shared.n, shared.difference) == (apart.n, apart.difference) == (1200, pytest.approx(0.3, abs=0.03))
    # twelve templates, however many seeds see them: half as wide were they sixty
    half = (shared.ci95.high - shared.ci95.low) / 2
    assert half == pytest.approx(t.ppf(0.975, 11) * 0.3 / 11**0.5, rel=0.1)
    assert apart.ci95.high - apart.ci95.low < 0.5 * 2 * half
    assert (shared.minimum_detectable_effect or 0) > 2 * (apart.minimum_detectable_effect or 1)


def test_pooled_seeds_give_the_spread_between_seeds_each_weighing_the_same():
    rng = np.random.default_rng(0)
    sizes, gains = (10, 20, 40), (0.1, 0.3, 0.8)
    runs = [outcomes(rng, named(2, size), {"t0": gain, "t1": gain}) for size, gain in zip(sizes, gains, strict=True)]
    result = pooled(runs, seed=0)
    each = [paired(*run, seed=0).difference for run in runs]
    student = ttest_1samp(each, 0).confidence_interval()
    assert result.by_seed == pytest.approx(each)
    assert result.seeds_ci95 == pytest.approx((max(-1, student.low), min(1, student.high)))
    assert result.difference == pytest.approx(np.average(each, weights=sizes))
    assert result.difference != pytest.approx(np.mean(each), abs=0.01)


def test_one_seed_has_no_spread_between_seeds():
    result = pooled([Outcomes([False, True], [True, True], ["a", "b"])], seed=0)
    assert (result.by_seed, result.seeds_ci95) == ([0.5], None)
    alone = paired([False, True], [True, True], ["a", "b"], seed=0)
    assert all(getattr(result, name) == getattr(alone, name) for name in ("n", "difference", "ci95", "sign_flip_p"))


def test_seeds_that_agree_leave_open_what_their_problems_do():
    runs = [Outcomes([True] * 100, [True] * 100, [f"{seed}:{i}" for i in range(100)]) for seed in range(3)]
    result = pooled(runs, seed=0)
    assert result.by_seed == [0, 0, 0]
    assert result.ci95.high == pytest.approx(1 - 0.025 ** (1 / 300))
    # three seeds: Student's quantile at two degrees of freedom
    assert result.seeds_ci95 is not None
    assert result.seeds_ci95.high == -result.seeds_ci95.low == pytest.approx(1 - norm.sf(t.ppf(0.975, 2)) ** (1 / 300))


def test_pooled_refuses_no_seeds_and_seeds_without_matching_problems():
    with pytest.raises(ValueError, match="at least one seed"):
        pooled([], seed=0)
    # lengths that match in sum only
    for first in (Outcomes([], [], []), Outcomes([True], [True, False], ["a"]), Outcomes([True], [True], ["a", "b"])):
        with pytest.raises(ValueError, match="every seed"):
            pooled([first, Outcomes([True, True], [True], ["b"])], seed=0)


def test_precision_and_recall_are_shares_of_the_predicted_and_of_the_present():
    result = precision_recall(true_positive=6, false_positive=2, false_negative=4)
    assert result.precision == (8, 0.75, wilson(6, 8))
    assert result.recall == (10, 0.6, wilson(6, 10))


def test_precision_or_recall_of_nothing_is_none():
    assert precision_recall(0, 0, 3) == (None, (3, 0.0, wilson(0, 3)))
    assert precision_recall(0, 2, 0) == ((2, 0.0, wilson(0, 2)), None)
    with pytest.raises(ValueError, match="negative"):
        precision_recall(2, -1, 0)


def test_overlap_equals_fishers_tea_tasting():
    # Fisher 1935: of 8 cups 4 are chosen; all right 1 in 70, three or more right 17 in 70
    truth = [True] * 4 + [False] * 4
    assert overlap(truth, truth) == (8, 4, 4, 4, 1.0, pytest.approx(1 / 70))
    three = [True, True, True, False, True, False, False, False]
    assert overlap(truth, three) == (8, 4, 4, 3, pytest.approx(3 / 5), pytest.approx(17 / 70))


def test_overlap_equals_fishers_exact_test_on_circuits_of_different_size():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.1, rng.random(500) < 0.2
    result = overlap(a, b)
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    _, expected = fisher_exact(table, alternative="greater")
    assert result.p_value == pytest.approx(expected)
    assert (result.n, result.first, result.second, result.shared) == (500, a.sum(), b.sum(), (a & b).sum())
    assert result.jaccard == pytest.approx((a & b).sum() / (a | b).sum())


def test_empty_circuits_overlap_in_nothing_and_by_no_surprise():
    assert overlap([False] * 3, [False] * 3) == (3, 0, 0, 0, None, 1.0)
    assert overlap([True, False], [False, True]) == (2, 1, 1, 0, 0.0, 1.0)


def test_overlap_refuses_selections_among_different_things():
    for a, b in (([True], [True, False]), ([], []), ([[True]], [[True]])):
        with pytest.raises(ValueError, match="same things"):
            overlap(a, b)
