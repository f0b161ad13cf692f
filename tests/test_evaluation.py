"""Base against updated model: drift and choices against plain computations, and the front door of the evaluation."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_pivots

from cca.errors import InputError
from cca.evaluation import drift as drift_module
from cca.evaluation.choices import choices
from cca.evaluation.drift import Text, drift, plain_texts, solution_texts
from cca.evaluation.evaluate import Evaluation, evaluate
from cca.evaluation.results import Drift, Interval, SetResult
from cca.evaluation.scores import answer
from cca.evaluation.stats import paired
from cca.evaluation.summarize import by_skill, comparisons
from cca.method.traces import by_length
from cca.model.delta import Delta
from cca.records import ProblemSet, Score, Which
from cca.run.run import Run
from cca.run.stages import diagnose
from cca.run.stages.evaluate import shown


@pytest.fixture
def changed(bundled) -> Delta:
    """A delta on about half of all components that changes some answers."""
    parts = bundled.components
    rows = parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) > 0.5)
    delta = Delta.zeros(bundled.network, rows)
    for part in delta.weights.values():
        part.values.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return delta


def _plain_drift(model, delta: Delta, texts) -> tuple[float, float]:
    """KL(base || updated) and the log-likelihoods token by token, one text at a time, with changed weights."""
    total, likelier, count = 0.0, 0.0, 0
    for context, written in texts:
        ids = torch.tensor([[*context, *written]])
        base = model(input_ids=ids).logits[0].log_softmax(-1)
        with delta.applied(model):
            updated = model(input_ids=ids).logits[0].log_softmax(-1)
        for i, token in enumerate(written):
            place = len(context) - 1 + i
            total += torch.nn.functional.kl_div(updated[place], base[place], log_target=True, reduction="sum").item()
            likelier += (updated[place, token] - base[place, token]).item()
            count += 1
    return total / count, math.exp(-likelier / count)


def test_answers_that_do_not_fit_the_model_are_refused_by_the_name_of_the_argument(bundled, problems):
    with pytest.raises(InputError, match=r", and max_new_tokens is 9999"):
        evaluate(bundled, problems, Delta({}), max_new_tokens=9999)


def test_drift_is_the_mean_divergence_and_perplexity_ratio_over_the_written_tokens(
    bundled, prompter, problems, changed, monkeypatch
):
    few = [Text(prompter.prompt(p), prompter.reference(p.solution)) for p in problems[::17]]
    kl, ratio = _plain_drift(bundled.network, changed, few)
    assert kl > 1e-5
    assert abs(ratio - 1) > 1e-4
    found = drift(bundled.network, changed, few, batch=4)
    assert (found.kl, found.perplexity_ratio) == pytest.approx((kl, ratio), rel=1e-3)
    assert found.tokens == sum(len(t.written) for t in few)
    monkeypatch.setattr(drift_module, "_LOGITS", 1)  # one problem at a time
    alone = drift(bundled.network, changed, few, batch=4)
    assert (alone.kl, alone.perplexity_ratio) == pytest.approx((kl, ratio), rel=1e-3)
    nothing = drift(bundled.network, Delta({}), few, batch=4)
    assert (nothing.kl, nothing.perplexity_ratio) == pytest.approx((0, 1), abs=1e-6)


def test_a_choice_is_the_log_probability_of_both_tokens_after_the_prefix_whatever_the_batch(tiny):
    pivots = random_pivots(7, tiny.config.vocab_size)
    one, many = (choices(tiny, pivots, model="base", batch=size) for size in (1, 4))
    for pivot, alone, together in zip(pivots, one, many, strict=True):
        plain = tiny(input_ids=torch.tensor([pivot.prefix])).logits[0, -1].log_softmax(-1)
        assert (alone.problem, alone.model) == (pivot.problem, "base")
        expected = (plain[pivot.desired].item(), plain[pivot.undesired].item())
        assert (alone.desired, alone.undesired) == pytest.approx(expected, abs=1e-4)
        assert (together.desired, together.undesired) == pytest.approx(expected, abs=1e-4)


def test_what_all_texts_begin_with_is_read_once_by_drift_and_choices_and_changes_neither(
    bundled, prompter, problems, changed
):
    start = tuple(range(200, 260))
    few = [Text((*start, n, *prompter.prompt(p)), prompter.reference(p.solution)) for n, p in enumerate(problems[::40])]
    pivots = [replace(p, prefix=(*start, *p.prefix)) for p in random_pivots(7, bundled.network.config.vocab_size)]
    seen: list[int] = []
    hook = bundled.network.get_input_embeddings().register_forward_hook(
        lambda _, args, __: seen.append(args[0].numel())
    )
    found = drift(bundled.network, changed, few, batch=len(few))
    made_of = choices(bundled.network, pivots, model="base", batch=7)
    hook.remove()
    alone = sum(t.tokens for t in few), sum(len(p.prefix) for p in pivots)
    assert seen == [alone[0] - 60 * (len(few) - 1)] * 2 + [alone[1] - 60 * 6]
    assert (found.kl, found.perplexity_ratio) == pytest.approx(_plain_drift(bundled.network, changed, few), rel=1e-3)
    for pivot, choice in zip(pivots, made_of, strict=True):
        plain = bundled.network(input_ids=torch.tensor([pivot.prefix])).logits[0, -1].log_softmax(-1)
        expected = (plain[pivot.desired].item(), plain[pivot.undesired].item())
        assert (choice.desired, choice.undesired) == pytest.approx(expected, abs=1e-4)


def test_plain_text_is_measured_but_for_the_first_token_of_each_piece():
    assert plain_texts(range(7), length=3) == [Text((0,), (1, 2)), Text((3,), (4, 5))]


def test_drift_is_measured_on_solutions_that_are_spread_over_all_templates(prompter, problems):
    chosen = solution_texts(prompter, problems, 8)
    assert [t.context for t in chosen] == [prompter.prompt(problems[i * len(problems) // 8]) for i in range(8)]
    without = [replace(p, solution="") for p in problems[:3]]
    assert solution_texts(prompter, [*without, problems[3]], 8) == solution_texts(prompter, problems[3:4], 8)


def test_evaluate_pairs_both_models_answers_to_the_problems_that_test_the_update(bundled, problems, changed):
    done = []
    found = evaluate(bundled, problems, changed, batch=4, seed=3, progress=lambda now, of: done.append((now, of)))
    tested = [p for p in problems if p.split not in ("train", "validation")]
    assert list(found.results) == ["target", "transfer: chain_sum"]
    assert {s.problem for s in found.scores} == {p.id for p in tested}
    assert len(found.scores) == 2 * len(tested)
    assert done[-1] == (len(tested), len(tested))
    for problem in tested:
        asked = bundled.engine, bundled.prompter, [problem]
        (base,) = answer(*asked, model="base", max_new_tokens=160, slots=8)
        with changed.active(bundled):
            (updated,) = answer(*asked, model="updated", max_new_tokens=160, slots=8)
        assert {base, updated} == {s for s in found.scores if s.problem == problem.id}
    target, test = found.target, [p for p in tested if p.split == "test"]
    right = {s.problem + s.model: s.correct for s in found.scores}
    base, updated = ([right[p.id + model] for p in test] for model in ("base", "updated"))
    expected = paired(base, updated, [p.template for p in test], 3)
    assert target is not None and target.drift is not None
    assert replace(target, drift=None) == expected
    texts = solution_texts(bundled.prompter, test, 100)
    assert target.drift.kl == pytest.approx(drift(bundled.network, changed, texts, 4).kl, rel=1e-4)


def test_evaluate_leaves_the_model_as_it_was(bundled, problems, changed):
    before = {name: p.clone() for name, p in bundled.network.named_parameters()}
    evaluate(bundled, problems[-2:], changed, max_new_tokens=4)
    assert all(torch.equal(p, before[name]) for name, p in bundled.network.named_parameters())


def test_problems_without_a_solution_are_compared_without_drift(bundled, problems):
    tests = [replace(p, solution="") for p in problems if p.split == "test"]
    found = evaluate(bundled, tests, Delta({}), max_new_tokens=4)
    assert found.target is not None and found.target.drift is None
    assert (found.target.difference, found.target.gained, found.target.lost) == (0, 0, 0)
    assert "0 of 8 changed (-" in repr(found)


@pytest.mark.parametrize(
    ("settings", "said"), [({}, "none of the 12 problems tests the update"), ({"batch": 0}, "EvaluationOptions: batch")]
)
def test_training_problems_are_no_test_and_impossible_settings_are_named(bundled, problems, settings, said):
    train = [p for p in problems if p.split == "train"][:12]
    with pytest.raises(InputError, match=said):
        evaluate(bundled, train, Delta({}), **settings)


def _result(base: float, updated: float, n: int) -> SetResult:
    return SetResult(n, base, updated, updated - base, Interval(0.054, 0.197), 9, 1, 0.02, 32, None)


def test_an_evaluation_says_in_one_line_what_it_found():
    target = {"target": _result(0.542, 0.664, 880)}
    shown = "Evaluation(target: 54.2% -> 66.4% of 880, +12.2 points (+5.4 to +19.7)"
    assert repr(Evaluation(target, ())) == shown + ")"
    assert repr(Evaluation({**target, "transfer: a": _result(0, 1, 2)}, ())) == shown + "; 1 other set)"
    assert Evaluation({"transfer: a": _result(0, 1, 2)}, ()).target is None
    assert repr(Evaluation({"transfer: a": _result(0, 1, 2)}, ())).startswith("Evaluation(transfer: a: 0.0%")


def test_sets_are_compared_each_by_itself_with_the_drift_that_was_measured():
    def score(model, split, skill, number, correct) -> Score:
        return Score(model, split, skill, f"{skill}-{number}", "t", "", correct, 1, "")

    scores = [
        score(model, split, skill, i, model == "updated" and skill is not None)
        for model in ("base", "updated")
        for split, skill in (("test", None), ("transfer", "sums"), ("retention", "turns"))
        for i in range(3)
    ]
    drifts = {ProblemSet("test", None): Drift(0.1, 1.2, 30)}
    found = comparisons(scores, drifts, seed=0)
    assert [name.name for name in found] == ["target", "transfer: sums", "retention: turns"]
    assert [result.difference for result in found.values()] == [0, 1, 1]
    assert found[ProblemSet("test", None)].drift == Drift(0.1, 1.2, 30)
    assert found[ProblemSet("transfer", "sums")].drift is None
    assert by_skill(found, "transfer") == {"sums": found[ProblemSet("transfer", "sums")]}


def test_the_current_figure_compares_the_models_on_the_same_problems():
    def score(model: Which, number: int, correct: bool) -> Score:
        return Score(model, "test", None, f"p-{number}", "0", "", correct, 1, "", False)

    base = [score("base", number, correct=number < 3) for number in range(4)]
    assert shown(base) == ("evaluated", "target 75.0% of 4")
    updated = [score("updated", number, correct=True) for number in (3, 0)]
    assert shown([*base, *updated]) == ("evaluated", "target 50.0% -> 100.0% of 2")


def test_the_diagnosis_answers_a_few_problems_alone_and_names_those_that_were_answered_otherwise(mended, monkeypatch):
    run, asked = Run.load(mended), list[int]()
    target = [p for p in run.problems if p.split == "test"]
    scores = run.folder.read("scores.jsonl", Score)
    monkeypatch.setattr(diagnose, "ALONE", 3)
    monkeypatch.setattr(diagnose, "answer", lambda *of, **how: asked.append(len(of[2])) or answer(*of, **how))
    assert diagnose._answered_alone(run, target, scores) == ([], 3)
    assert asked == [1, 1, 1], "what was answered among others is not answered again"
    other = by_length(target, run.prompter)[0].id
    scores = [replace(s, text=s.text + ".") if (s.model, s.problem) == ("base", other) else s for s in scores]
    assert diagnose._answered_alone(run, target, scores) == ([other], 3)
