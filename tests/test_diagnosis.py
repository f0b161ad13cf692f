"""Each known failure mode is seen where it is, and not where it is not."""

import re
from dataclasses import replace

import pytest
import torch

from cca.evaluation import diagnosis
from cca.evaluation.pivot_kinds import PIVOT_KINDS, Between
from cca.evaluation.results import Interval, SetResult
from cca.method.density import missed, next_penalty
from cca.records import Metric, Pivot, Score, Trace, TracePair, Trial, Which, WithoutPivot

NUMBERS, LETTERS = ["72", "$1,200", "one half"], ["B", "yes", "no"]


def turns(answers: bool = False, **counts: int) -> list[Between]:
    """So many pivots of each kind; `first_token` stands for the one of two words."""
    return [
        Between(kind, f" {kind} {i // 3}", " can", answers and kind == "first token")
        for kind in PIVOT_KINDS
        for i in range(counts.get(kind.replace(" ", "_"), 0))
    ]


def test_pivots_are_counted_by_kind_with_the_commonest_of_the_largest():
    found = diagnosis.pivots_by_kind(turns(word=7, first_token=4, digit=9, operator=4), NUMBERS)
    assert found.fine
    assert found.message.startswith("24 pivots: 9 digit, 7 word, 4 first token, 4 operator, 0 punctuation, 0 end; ")
    assert found.message.endswith("of the kind digit, for example ' digit 0' not ' can'; ' digit 1' not ' can'; "
                                  "' digit 2' not ' can'")  # fmt: skip
    assert found.figures["counts"] == {
        "digit": 9, "word": 7, "first token": 4, "operator": 4, "punctuation": 0, "end": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "golds", "advice"),
    [
        ({"punctuation": 5, "digit": 15}, NUMBERS, []),
        ({"punctuation": 6, "digit": 15}, NUMBERS, ["pivots.method"]),
        ({"first_token": 5, "digit": 15}, NUMBERS, []),
        ({"first_token": 6, "digit": 15}, NUMBERS, ["prompt.prefill"]),
        ({"first_token": 6, "digit": 15, "answers": True}, NUMBERS, []),
        ({"first_token": 20, "answers": True}, LETTERS, []),
        ({"word": 18, "end": 2}, NUMBERS, []),
        ({"word": 19, "operator": 1}, NUMBERS, ["pivots.confirm=8"]),
        ({"word": 19, "operator": 1}, LETTERS, []),
        ({"word": 19, "first_token": 1, "answers": True}, NUMBERS, ["pivots.confirm=8"]),
        (
            {"word": 14, "first_token": 10, "punctuation": 6, "digit": 1},
            NUMBERS,
            ["prompt.prefill", "pivots.confirm=8"],
        ),
        ({"word": 14, "first_token": 10, "punctuation": 6, "digit": 1}, LETTERS, ["prompt.prefill"]),
        ({"punctuation": 3}, NUMBERS, ["pivots.method"]),
    ],
)
def test_pivots_of_style_are_a_warning_whose_advice_is_that_of_their_kind(counts, golds, advice):
    found = diagnosis.pivots_by_kind(turns(**counts), golds)
    told = [name for name in ("prompt.prefill", "pivots.method", "pivots.confirm=8") if name in found.advice]
    assert told == advice
    assert found.fine is (not advice)
    assert ("--kind" in found.advice) is bool(advice)


def _pairs(count: int, right: int) -> list[TracePair]:
    traces = [Trace((1,), "", "", i < right) for i in range(count)]
    return [TracePair(f"p-{i}", "train", "0", (1,), t, None, 1, None) for i, t in enumerate(traces)]


@pytest.mark.parametrize(("found", "fine"), [(2, False), (30, True)])
def test_a_low_yield_of_pivots_is_named_with_its_reasons(found, fine):
    left_out = [WithoutPivot(f"p-{i}", "train", "0", "no_opposite") for i in range(100 - found)]
    result = diagnosis.pivot_yield(_pairs(100, 98), left_out, found)
    assert result.fine is fine
    assert f"{100 - found} no opposite" in result.message
    assert "98% of the greedy traces are right" in result.message


def test_a_yield_that_is_low_for_solved_templates_advises_about_them():
    left_out = [WithoutPivot(f"p-{i}", "train", "0", "template_solved" if i < 60 else "no_opposite") for i in range(98)]
    assert "traces.skip_solved=0" in diagnosis.pivot_yield(_pairs(100, 98), left_out, 2).advice
    assert "traces.samples" in diagnosis.pivot_yield(_pairs(100, 98), left_out[30:], 2).advice


def test_a_circuit_is_too_dense_over_two_percent_or_off_its_target():
    assert diagnosis.density(0.019, 0.05, None).fine
    assert not diagnosis.density(0.021, 0.05, None).fine
    assert diagnosis.density(0.0215, 0.05, 0.02).fine
    assert not diagnosis.density(0.016, 0.05, 0.02).fine


def test_gates_stuck_near_the_threshold_are_counted():
    decided = torch.tensor([1.0] * 10 + [0.0] * 90)
    assert diagnosis.undecided_gates(decided).fine
    stuck = torch.cat([decided, torch.full((5,), 0.52)])
    assert not diagnosis.undecided_gates(stuck).fine
    assert diagnosis.undecided_gates(stuck).figures == {"undecided": 5, "circuit": 15}


def metrics(*accuracies: float, losses=(1.0, 0.8, 0.6, 0.4)) -> list[Metric]:
    return [Metric(i, losses[i - 1] if i else None, 0, 0, a, 10) for i, a in enumerate(accuracies)]


def course(accuracies: tuple[float, ...], margins: tuple[float, ...], n: int = 100, steps: int = 10):
    found = [Metric(2 * i, None, m, 0, a, n) for i, (a, m) in enumerate(zip(accuracies, margins, strict=True))]
    kept = max(found, key=lambda m: (m.accuracy, -m.step))
    return diagnosis.validation_course(found, kept, steps, held_out=9)


RISING = (3.0, 3.2, 3.4, 3.6)
COURSES = {
    "flat": ((0.5, 0.5, 0.51, 0.5), (3.0, 3.0, 3.01, 3.018), "hardly anything moved", "raise update.learning_rate"),
    "flat, fewer problems": ((0.5, 0.5, 0.5, 0.5), (0.0,) * 4, "hardly anything moved", "raise update.learning_rate"),
    "fell": ((0.5, 0.45, 0.4, 0.3), RISING, "no step helped .* fell by up to 20.0", "lower update.learning_rate"),
    "margin alone": ((0.5, 0.5, 0.5, 0.5), RISING, "though the held-out margin moved", "cca show pivots"),
    "peak at once": ((0.5, 0.7, 0.6, 0.5), RISING, "best at the first step .* 2 of 6", "lower update.learning_rate"),
    "peak within": ((0.5, 0.6, 0.7, 0.6), RISING, "best at step 4 of 6", ""),
}


@pytest.mark.parametrize("name", COURSES)
def test_how_validation_went_is_told_with_the_advice_that_fits(name):
    accuracies, margins, said, advice = COURSES[name]
    found = course(accuracies, margins)
    assert re.search(said, found.message)
    assert advice in found.advice
    assert found.fine is (not advice)
    other = {"raise update.learning_rate", "lower update.learning_rate"} - {advice}
    assert not any(text in found.advice for text in other)


def test_validation_that_rises_to_the_last_step_asks_for_more_steps_unless_patience_ended_it():
    rising = (0.5, 0.6, 0.65, 0.7)
    found = course(rising, RISING, steps=6)
    assert "best at step 6 of 6, the last" in found.message
    assert "raise update.steps" in found.advice
    assert course(rising, RISING, steps=20).fine


@pytest.mark.parametrize(("pivots", "validation", "said"), [(24, 30, "24 pivots"), (25, 29, "29 validation")])
def test_few_pivots_and_few_validation_problems_are_said(pivots, validation, said):
    found = diagnosis.sample_sizes(pivots, validation)
    assert not found.fine
    assert said in found.advice
    assert diagnosis.sample_sizes(25, 30).fine


@pytest.mark.parametrize(
    ("base", "advice"), [(0.0, "no latent skill"), (0.01, "check prompt and grader"), (1.0, "harder"), (0.5, "")]
)
def test_a_base_model_that_solves_nothing_or_everything_is_said(base, advice):
    found = diagnosis.room(SetResult(100, base, base, 0.0, Interval(-0.1, 0.1), 0, 0, 1.0, 9, None))
    assert found.fine is (not advice)
    assert advice in found.advice


def answer(
    answer: str = "5", correct: bool = False, cut: bool = False, model: Which = "base", tokens: int = 9
) -> Score:
    return Score(model, "test", None, "p", "t", answer, correct, tokens, "", cut)


def test_no_answer_and_cut_are_told_apart_from_wrong():
    assert answer(correct=True, cut=True).verdict == "right"
    assert [answer().verdict, answer(cut=True).verdict, answer("").verdict] == ["wrong", "cut", "no answer"]
    assert answer("", cut=True).verdict == "cut", "an unfinished text need not have an answer yet"
    assert diagnosis.no_answer([answer()] * 99 + [answer("")], "exact").fine
    found = diagnosis.no_answer([answer()] * 9 + [answer("", cut=True)] + [answer("")], "exact")
    assert not found.fine
    assert "in 9.1% of the answers" in found.message


@pytest.mark.parametrize(("traces", "answers", "fine"), [(0, 0, True), (30, 0, False), (0, 10, False)])
def test_a_noteworthy_share_of_cut_texts_is_a_warning_that_names_the_limit(traces, answers, fine):
    pairs = _pairs(100, 50)
    pairs = [replace(pair, greedy=replace(pair.greedy, cut=i < traces)) for i, pair in enumerate(pairs)]
    found = diagnosis.unfinished(pairs, [answer(cut=i < answers) for i in range(100)], 60)
    assert found.fine is fine
    told = f"{answers}.0% of the base and 0.0% of the updated model's answers to the target"
    assert f"{traces}.0% of the traces and {told}" in found.message
    assert ("raise traces.max_new_tokens" in found.advice) is not fine


def test_a_held_out_margin_that_does_not_move_says_that_there_is_no_latent_skill():
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0))
    still = diagnosis.margins_move(torch.zeros(50), noise - noise.mean())
    assert not still.fine
    assert "no latent skill" in still.advice
    assert "too short" in still.advice
    fell = diagnosis.margins_move(torch.zeros(50), noise - noise.mean() - 1)
    assert "it fell" in fell.advice
    unsure = diagnosis.margins_move(torch.zeros(50), 9 * (noise - noise.mean()) + 0.5)
    assert "uncertain" in unsure.advice
    moved = diagnosis.margins_move(torch.zeros(50), noise - noise.mean() + 1)
    assert moved.fine
    assert moved.figures["change"] == pytest.approx(1, abs=1e-5)
    assert diagnosis.margins_move(torch.zeros(1), torch.zeros(1)).fine


def test_where_no_step_was_kept_the_margins_are_those_of_the_steps_that_were_tried():
    tried = [
        Metric(step, None, margin, preferred, 0.5, 10)
        for step, margin, preferred in ((0, 3.7, 0.5), (2, 3.8, 0.7), (4, 3.6, 0.6))
    ]
    assert diagnosis.margins_tried(tried, 1).fine
    found = diagnosis.margins_tried(tried, 122)
    assert not found.fine
    assert "from 3.700 to between 3.600 and 3.800 logits, preference accuracy 50% -> at most 70%" in found.message


def test_a_loss_that_falls_while_accuracy_falls_is_a_warning():
    assert diagnosis.loss_against_accuracy(metrics(0.5, 0.6, 0.55), "linear").fine
    found = {loss: diagnosis.loss_against_accuracy(metrics(0.5, 0.6, 0.3), loss) for loss in ("linear", "logistic")}
    assert not any(f.fine for f in found.values())
    assert "choose update.loss=logistic" in found["linear"].advice
    assert "choose update.loss=logistic" not in found["logistic"].advice


def test_answers_that_depend_on_the_batch_are_named():
    assert diagnosis.batch_size_matters([], 8).fine
    found = diagnosis.batch_size_matters(["4-1"], 8)
    assert not found.fine
    assert found.figures["changed"] == ["4-1"]


@pytest.mark.parametrize(
    ("traces", "answers", "raised"),
    [
        (30, 0, "traces.max_new_tokens"),
        (0, 30, "evaluation.max_new_tokens"),
        (30, 30, "traces.max_new_tokens and evaluation.max_new_tokens"),
    ],
)
def test_advice_about_cut_texts_is_about_the_limit_that_cut_them(traces, answers, raised):
    pairs = [replace(p, greedy=replace(p.greedy, cut=i < traces)) for i, p in enumerate(_pairs(100, 50))]
    cut = diagnosis.unfinished(pairs, [answer(cut=i < answers) for i in range(100)], 60, 30)
    assert f"{traces}.0% of the traces were cut at traces.max_new_tokens = 60" in cut.message
    told = f"{answers}.0% of the base and 0.0% of the updated model's answers to the target at "
    assert told + "evaluation.max_new_tokens = 30" in cut.message
    assert cut.advice.startswith(f"raise {raised}:")
    waits = diagnosis.after_cut(diagnosis.sample_sizes(3, 3), cut)
    assert waits.advice.startswith(f"first raise {raised}:")


def test_answers_that_the_limit_ends_in_the_updated_model_alone_are_not_averaged_away():
    answers = [answer(), *(answer(model="updated", cut=i < 30) for i in range(100)), *[answer()] * 99]
    cut = diagnosis.unfinished(_pairs(4, 0), answers, 40)
    assert "0.0% of the base and 30.0% of the updated model's" in cut.message
    assert diagnosis.after_cut(diagnosis.sample_sizes(3, 3), cut).advice.startswith("first raise")


@pytest.mark.parametrize(("after", "fine"), [(100, True), (119, True), (81, True), (138, False), (70, False)])
def test_an_update_that_changes_how_long_answers_are_is_said_to_change_how_they_are_written(after, fine):
    answers = [answer(tokens=90), answer(tokens=110), answer(model="updated", tokens=after)]
    found = diagnosis.answer_lengths(answers)
    assert found.fine is fine
    assert f"have 100 tokens on average, and {after} after the update ({after - 100:+d}%)" in found.message
    assert ("may be style" in found.advice) is not fine


def test_where_most_texts_are_cut_other_advice_waits_for_that():
    pairs = [replace(pair, greedy=replace(pair.greedy, cut=True)) for pair in _pairs(4, 0)]
    cut = diagnosis.unfinished(pairs, [answer(cut=True)], 40)
    waits = diagnosis.after_cut(diagnosis.sample_sizes(3, 3), cut)
    assert waits.advice.startswith("first raise traces.max_new_tokens")
    few = diagnosis.unfinished(_pairs(4, 0), [answer()], 40)
    assert diagnosis.after_cut(diagnosis.sample_sizes(3, 3), few) == diagnosis.sample_sizes(3, 3)
    assert diagnosis.after_cut(diagnosis.sample_sizes(99, 99), cut).fine


# ---- the search for a lambda ----


def search(density, start: float, target: float) -> list[Trial]:
    trials: list[Trial] = []
    while (penalty := next_penalty(trials, start, target)) is not None:
        trials.append(Trial(penalty, density(penalty)))
    return trials


@pytest.mark.parametrize("start", [0.0001, 0.03, 5.0])
@pytest.mark.parametrize("target", [0.4, 0.016, 0.001])
def test_the_search_ends_within_a_tenth_of_the_target_density(start, target):
    trials = search(lambda penalty: 0.0008 / penalty, start, target)
    assert abs(trials[-1].density - target) <= 0.1 * target or len(trials) == 12
    assert len(trials) <= 12
    if start == 0.03:
        assert abs(trials[-1].density - target) <= 0.1 * target


def test_the_search_gives_up_where_the_density_jumps_over_the_target():
    trials = search(lambda penalty: 0.2 if penalty < 0.05 else 0.0, 0.03, 0.016)
    below, above = max(t.penalty for t in trials if t.density), min(t.penalty for t in trials if not t.density)
    assert below < 0.05 <= above < 1.01 * below
    assert len(trials) < 12


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_the_search_ends_where_the_density_does_not_move_and_says_so(density):
    trials = search(lambda _: density, 0.05, 0.016)
    assert len(trials) == 3
    assert max(t.penalty for t in trials) / min(t.penalty for t in trials) == pytest.approx(20)
    assert "it does not move between lambda" in missed(trials, 0.016)


def test_a_penalty_that_leaves_nothing_is_lowered_until_something_is_left():
    trials = search(lambda penalty: 0.0 if penalty > 0.2 else 0.002 / penalty, 100.0, 0.016)
    assert abs(trials[-1].density - 0.016) <= 0.1 * 0.016
    assert len(trials) < 10


def test_a_density_that_moves_after_a_plateau_is_found():
    trials = search(lambda penalty: 1.0 if penalty < 0.4 else 0.008 / penalty, 0.03, 0.016)
    assert abs(trials[-1].density - 0.016) <= 0.1 * 0.016


def test_without_a_target_one_lambda_is_tried():
    assert [t.penalty for t in search(lambda _: 0.5, 0.05, None)] == [0.05]  # pyright: ignore[reportArgumentType]


def test_words_that_samples_confirm_are_no_chance():
    of_words = turns(word=20, digit=1)
    assert not diagnosis.pivots_by_kind(of_words, NUMBERS).fine
    assert diagnosis.pivots_by_kind(of_words, NUMBERS, confirmed=True).fine


def test_pivots_of_which_samples_confirm_few_are_a_warning_and_those_of_the_other_way_say_how_many_are_chance():
    def pivots(*differences: int) -> list[Pivot]:
        return [Pivot((1, 2), 3, 4, samples=8, right_after_desired=4 + d, right_after_undesired=4) for d in differences]

    apart = [2] * 10 + [4] * 9 + [1] * 7 + [0] * 8 + [-1] * 3
    few = diagnosis.confirmed(pivots(*apart, -2, -3, -4), 8, 0.25)
    assert not few.fine and few.message.startswith("at 19 of 40 pivots") and "8 sampled completions" in few.message
    assert "At 3 it is lower by as much: about as many of the 19 are chance" in few.message
    assert "prompt.prefill" in few.advice
    assert diagnosis.confirmed(pivots(*apart, 2), 8, 0.25).fine
