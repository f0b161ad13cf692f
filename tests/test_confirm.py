"""Pivots by success rates of sampled completions, against plain sampling."""

import json
import math
from dataclasses import replace

import pytest
import reference

import cca
from cca import cli
from cca.errors import InputError, NothingToLearnError
from cca.folder import RunFolder
from cca.method.options import PivotOptions, TraceOptions
from cca.method.pivots import check_found, prefix_pivot, search_pivots
from cca.method.traces import Traces, trace_pairs
from cca.records import Pivot, WithoutPivot
from cca.run.config import load_config
from cca.run.run import Run

LIMIT, SEED = 160, 3
HOW = {"temperature": 1.0, "seed": SEED}


@pytest.fixture(scope="module")
def by_id(problems):
    return {p.id: p for p in problems}


@pytest.fixture(scope="module")
def pairs(bundled, prompter, problems):
    found = []
    traced = [p for p in problems if p.split == "train"][::4]
    many = TraceOptions(max_new_tokens=LIMIT, batch=64, temperature_if_correct=1.8, temperature_if_wrong=1.5)
    trace_pairs(bundled.engine, prompter, traced, many, 0, found.append)
    found = sorted((pair for pair in found if pair.sampled), key=lambda pair: len(pair.sampled.tokens))
    assert len(found) >= 10
    return found[:10]


def searched(bundled, prompter, pairs, by_id, slots=64, **options):
    return search_pivots(
        bundled.engine,
        prompter,
        pairs,
        by_id,
        PivotOptions.of(None, options),
        seed=SEED,
        max_new_tokens=LIMIT,
        slots=slots,
    )


@pytest.fixture(scope="module")
def confirmed(bundled, prompter, pairs, by_id):
    return searched(bundled, prompter, pairs, by_id, confirm=4)


def test_confirming_changes_nothing_of_a_pivot_but_its_rates(bundled, prompter, pairs, by_id, confirmed):
    plain = searched(bundled, prompter, pairs, by_id)
    assert [(p.position, p.prefix, p.desired, p.after_desired, p.completions) for p in plain] == [
        (p.position, p.prefix, p.desired, p.after_desired, p.completions) for p in confirmed
    ]
    assert {p.samples for p in plain} == {0} and {p.gain for p in plain} == {None}
    assert {p.samples for p in confirmed} == {4}
    assert len({p.gain for p in confirmed}) > 1


def test_success_rates_are_those_of_completions_sampled_one_by_one(bundled, prompter, pairs, by_id, confirmed):
    for pair, pivot in list(zip(pairs, confirmed, strict=True))[:2]:
        for token, right in (
            (pivot.desired, pivot.right_after_desired),
            (pivot.undesired, pivot.right_after_undesired),
        ):
            args = (bundled.network, prompter, pair, by_id[pair.problem], (pivot.position, token))
            assert right == reference.right_completions(*args, 4, LIMIT, **HOW)


@pytest.mark.parametrize("method", ["branching", "prefix", "probability"])
def test_rates_depend_on_no_other_pair_and_no_number_of_slots(bundled, prompter, pairs, by_id, method):
    together = searched(bundled, prompter, pairs[:6], by_id, method=method, confirm=3)
    narrow = searched(bundled, prompter, pairs[:6][::-1], by_id, slots=5, method=method, confirm=3)
    assert narrow[::-1] == together
    assert {p.method for p in together} == {method}


def test_the_rates_of_the_prefix_method_are_those_at_its_pivot(bundled, prompter, pairs, by_id):
    found = searched(bundled, prompter, pairs[:6], by_id, method="prefix", confirm=3)
    for pair, pivot in zip(pairs, found, strict=False):
        assert (pivot.position, pivot.desired) == (prefix_pivot(pair).position, prefix_pivot(pair).desired)
        args = (bundled.network, prompter, pair, by_id[pair.problem], (pivot.position, pivot.desired))
        assert pivot.right_after_desired == reference.right_completions(*args, 3, LIMIT, **HOW)


def test_the_probability_method_finds_where_plainly_sampled_rates_change(bundled, prompter, pairs, by_id):
    found = searched(bundled, prompter, pairs, by_id, method="probability", confirm=2)
    several = [(pair, pivot) for pair, pivot in zip(pairs, found, strict=True) if 2 < pivot.deviations < 8][:2]
    assert len(several) == 2
    for pair, pivot in several:
        y, model = pair.sampled.tokens, bundled.network
        argmax = [reference.greedy(model, [*pair.prompt, *y[:k]], 1, frozenset())[0] for k in range(len(y))]
        deviations = [k for k in range(len(y)) if y[k] != argmax[k]]
        assert len(deviations) == pivot.deviations
        nodes = [(deviations[0], argmax[deviations[0]]), *((k, y[k]) for k in deviations[:-1])]
        right = [
            reference.right_completions(model, prompter, pair, by_id[pair.problem], node, 2, LIMIT, **HOW)
            for node in nodes
        ]
        place = reference.halved([*right, 2 * pair.sampled.correct], upwards=pair.sampled.correct)
        k = deviations[place]
        assert pivot.position == k
        assert {pivot.desired, pivot.undesired} == {y[k], argmax[k]}
        assert (pivot.desired == y[k]) is pair.sampled.correct


def test_a_pivot_counts_from_a_gain_of_the_gap_on():
    pivot = Pivot((1, 2), 3, 4, samples=5, right_after_desired=4, right_after_undesired=3)
    assert pivot.gain == pytest.approx(0.2)
    assert pivot.counts(0.2) and not pivot.counts(0.21)
    assert not Pivot((1, 2), 3, 4, samples=5, right_after_undesired=1).counts(0.0)
    assert Pivot((1, 2), 3, 4).counts(1.0), "what was not sampled counts"


def test_pivots_that_do_not_count_are_left_out_and_told_where_none_is_left(pairs, by_id, confirmed):
    traces = Traces(tuple(pairs), by_id, TraceOptions())
    counting = check_found(confirmed, traces, PivotOptions(confirm=4, gap=0.9))
    assert 0 < len(counting) < len(confirmed)
    assert min(p.gain or 0.0 for p in counting) > 0.9
    weak = [p for p in confirmed if (p.gain or 0.0) < 0.9]
    with pytest.raises(NothingToLearnError, match=r"none of \d+ training pivots .* 4 sampled .*gap = 0.9 .* lower"):
        check_found(weak, traces, PivotOptions(confirm=4, gap=0.9))


def test_a_pivot_of_the_probability_method_says_how_many_completions_found_it(bundled, prompter, pairs, by_id):
    for pivot in searched(bundled, prompter, pairs, by_id, method="probability", confirm=2):
        looks = pivot.completions // 2
        assert pivot.completions == 2 * looks and 1 <= looks <= 1 + math.ceil(math.log2(pivot.deviations))


def test_pivots_of_which_none_is_to_train_on_are_counted_without_those_of_validation(confirmed):
    weak = [replace(p, split="train", samples=4, right_after_desired=1, right_after_undesired=0) for p in confirmed[:3]]
    strong = [replace(p, split="validation", samples=4, right_after_desired=4, right_after_undesired=0) for p in weak]
    with pytest.raises(NothingToLearnError, match=r"none of 3 training pivots .*at most by 0\.25"):
        check_found(weak + strong, Traces((), {}, TraceOptions()), PivotOptions(confirm=4, gap=0.9))


@pytest.mark.parametrize("limit", range(1, 70))
def test_as_many_completions_are_planned_as_halving_may_sample(limit):
    """Always to the right, which takes the most looks and ends where both sides are still to be sampled."""
    low, high, looks = -1, limit - 1, 1
    while high - low > 1:
        low, looks = (low + high) // 2, looks + 1
    sides = 1 if limit == 1 else 2
    assert PivotOptions(method="probability", confirm=5).sampled(limit) >= 5 * (looks + sides)


def test_the_probability_method_without_samples_is_refused_before_anything_slow(bundled, pairs, by_id, capsys):
    with pytest.raises(InputError, match=r"set pivots\.confirm, for example to 16"):
        cca.find_pivots(bundled, Traces(tuple(pairs), by_id, TraceOptions()), method="probability")
    assert cli.main(["run", "--dry-run", "--set", "pivots.method=probability"]) == 2
    assert "pivots.confirm is 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("confirm") / "run"
    settings = ["problems.templates=[16,43,57,58]", "problems.train=6", "problems.validation=2", "problems.test=1"]
    settings += ["problems.held_out=0", "evaluation.transfer=[]", "evaluation.retention=[]", "pivots.confirm=4"]
    settings += ["pivots.gap=0.9", "circuit.epochs=2", "circuit.learning_rate=0.1", "traces.samples=4"]
    with Run.start(path, load_config(None, settings)) as begun:
        begun.execute(("trace", "pivots"))
    return path


def test_a_run_learns_from_the_pivots_that_count_alone_and_keeps_the_others(run):
    begun = Run.load(run)
    found = [p for p in RunFolder.open(run).read("pivots.jsonl", Pivot) if p.method == "branching"]
    assert {p.samples for p in found} == {4}
    assert begun.pivots() == [p for p in found if p.counts(0.9)]
    assert 0 < len(begun.pivots()) < len(found)


def test_what_samples_say_of_a_pivot_is_shown_and_those_that_do_not_count_have_their_reason(run, capsys):
    found = Run.load(run).found_pivots()
    weak = {p.problem for p in found if not p.counts(0.9)}
    left_out = RunFolder.open(run).read("without_pivot.jsonl", WithoutPivot)
    assert {w.problem for w in left_out if w.reason == "not_confirmed"} == weak
    assert cli.main(["show", "pivots", str(run), "-n", "99"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": not confirmed (") == len(weak)
    for pivot in found:
        assert f"; sampled: {pivot.right_after_desired} of 4 right" in shown
    said = " ".join(shown.split())  # of a pivot that does not count neither model is ever asked
    assert said.count("its probability is known after cca evaluate") == 2 * (len(found) - len(weak))


def test_a_killed_search_goes_on_to_the_same_rates(run):
    file = run / "pivots.jsonl"
    whole = file.read_bytes()
    with Run.resume(run, redo="pivots") as begun:
        begun.execute(("pivots",))
    assert file.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    with Run.resume(run, redo="pivots"):
        pass
    file.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    with Run.resume(run) as begun:
        begun.execute(("pivots",))
    assert file.read_bytes() == whole
    assert json.loads(lines[1])["samples"] == 4
