"""Traces and pivots on the bundled model, against the plain methods."""

import gc
import json
import random
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from cca import cli
from cca.errors import InputError
from cca.evaluation.slip_truth import mark_on_slip, slip_position
from cca.method import search, traces
from cca.method.options import TraceOptions
from cca.method.pivots import prefix_pivot, search_pivots
from cca.method.traces import Traces, greedy_traces, trace_pairs, waves
from cca.model.generate import Row
from cca.model.read import Text
from cca.records import Split, Trace, TracePair
from cca.run.run import Run

LIMIT = 160


def _trace(bundled, prompter, problems, size, seed=0):
    pairs = []
    options = TraceOptions(max_new_tokens=LIMIT, batch=size)
    trace_pairs(bundled.engine, prompter, problems, options, seed, pairs.append)
    return {pair.problem: pair for pair in pairs}


@pytest.fixture(scope="module")
def traced(problems):
    return [p for p in problems if p.split == "train"]


@pytest.fixture(scope="module")
def pairs(bundled, prompter, traced):
    return _trace(bundled, prompter, traced, 64)


def test_a_sampled_trace_is_of_opposite_correctness_or_its_absence_has_a_reason(pairs):
    assert any(pair.sampled for pair in pairs.values())
    for pair in pairs.values():
        if pair.sampled:
            assert pair.sampled.correct is not pair.greedy.correct
            assert pair.reason is None
        else:
            assert (pair.reason, pair.drawn) == ("no_opposite", 10)


def test_traces_do_not_depend_on_batch_size_or_order(bundled, prompter, traced, pairs):
    shuffled = random.Random(1).sample(traced, len(traced) // 2)
    assert _trace(bundled, prompter, shuffled, 7) == {p.id: pairs[p.id] for p in shuffled}


def test_samples_that_are_drawn_ahead_of_time_change_no_trace(bundled, prompter, traced, pairs, monkeypatch):
    ahead: list[int] = []

    class Counted(traces._Tracing):
        def ahead_of_time(self):
            rows = super().ahead_of_time()
            ahead.append(len(rows))
            assert len(self.begun) <= self.ends[min(self.wave + 1, len(self.ends) - 1)], "a wave ahead at most"
            return rows

    monkeypatch.setattr(traces, "_Tracing", Counted)
    few = traced[:4]
    plain = {p.id: pairs[p.id] for p in few}
    assert _trace(bundled, prompter, few, 1) == plain
    assert not any(ahead)
    assert _trace(bundled, prompter, few, 64) == plain
    assert any(ahead)


def test_the_memory_of_problems_that_are_done_is_free(bundled, prompter, traced):
    held: list[int] = []

    def look(*_: object) -> None:
        held.append(sum(bool(t.keys) for t in gc.get_objects() if type(t) is Text))

    few = traced[:8]
    trace_pairs(bundled.engine, prompter, few, TraceOptions(max_new_tokens=LIMIT, batch=8), 0, look)
    greedy_traces(bundled.engine, prompter, few, LIMIT, slots=8, done=look)
    one, other = held[: len(few)], held[len(few) :]
    start = int(bool(prompter.start))
    assert one[-1] <= start
    assert other[-1] <= start
    assert max(held) > 1


def test_samples_of_top_k_traces_draw_from_the_likeliest_tokens_alone_and_greedy_traces_stay(
    bundled, prompter, traced, pairs
):
    few, found = traced[:12], []
    options = TraceOptions(max_new_tokens=LIMIT, batch=5, top_k=2, temperature_if_correct=3.0, temperature_if_wrong=3.0)
    trace_pairs(bundled.engine, prompter, few, options, 0, found.append)
    assert any(pair.sampled for pair in found)
    for pair in found:
        assert pair.greedy == pairs[pair.problem].greedy
        if y := pair.sampled and pair.sampled.tokens:
            logits = bundled.network(input_ids=torch.tensor([[*pair.prompt, *y]])).logits[0, len(pair.prompt) - 1 : -1]
            second = logits.topk(2).values[:, -1]
            drawn = logits.gather(1, torch.tensor(y)[:, None])[:, 0]
            assert bool((drawn >= second - 1e-4).all())


def _answered(template: str, split: Split, right: int, of: int) -> list[TracePair]:
    """Pairs of a template, all with both traces, of which `right` greedy ones are correct."""
    trace = [Trace((1,), "", "1", correct) for correct in (True, False)]
    return [
        TracePair(f"{template}-{split}-{n}", split, template, (1,), trace[n >= right], trace[n < right], 1, None)
        for n in range(of)
    ]


@pytest.mark.parametrize(
    ("share", "solved"),
    [(1.0, {"all"}), (0.81, {"all"}), (0.8, {"all", "4 of 5"}), (0.5, {"all", "4 of 5", "3 of 5"}), (0, set())],
)
def test_templates_that_the_model_solves_in_the_share_skip_solved_or_more_are_left_out(share, solved):
    validated = _answered("3 of 5", "validation", 9, 9) + _answered("only validated", "validation", 3, 3)
    pairs = [*_answered("all", "train", 5, 5), *_answered("4 of 5", "train", 4, 5), *_answered("3 of 5", "train", 3, 5)]
    pairs += _answered("none", "train", 0, 5)
    found = Traces((*pairs, *validated), {}, TraceOptions(skip_solved=share))
    assert found.solved == solved
    assert {pair.template for pair in found.usable} == {pair.template for pair in found} - solved


@given(st.integers(1, 300), st.data())
def test_a_template_at_the_very_share_is_left_out(of, data):
    right = data.draw(st.integers(0, of))
    hundredths = data.draw(st.integers(1, 100))
    share = float(f"{hundredths / 100:.2f}")
    found = Traces(tuple(_answered("t", "train", right, of)), {}, TraceOptions(skip_solved=share))
    assert bool(found.solved) == (100 * right >= hundredths * of)


def test_traces_depend_on_the_seed(bundled, prompter, traced, pairs):
    few = traced[:12]
    assert _trace(bundled, prompter, few, 64, seed=1) != {p.id: pairs[p.id] for p in few}


def test_greedy_traces_equal_plain_greedy_decoding(bundled, prompter, traced, pairs):
    for problem in traced[::8]:
        plain = reference.greedy(bundled.network, prompter.prompt(problem), LIMIT, prompter.end_tokens)
        assert pairs[problem.id].greedy.tokens == tuple(plain)


def test_waves_cover_every_sample_once():
    for samples in (1, 2, 5, 10, 13):
        assert [i for wave in waves(samples) for i in wave] == list(range(samples))


def test_branch_search_returns_the_pivots_of_the_token_by_token_method(bundled, prompter, problems, pairs):
    usable = [pair for pair in pairs.values() if pair.sampled][:34]
    assert len(usable) >= 30, "too few traces to compare; trace more problems"
    by_id = {p.id: p for p in problems}
    fast = search_pivots(bundled.engine, prompter, usable, by_id, max_new_tokens=LIMIT, slots=64)
    for pair, pivot in zip(usable, fast, strict=True):
        plain, _ = reference.branching_pivot(bundled.network, prompter, pair, by_id[pair.problem], LIMIT, group=64)
        found = (pivot.position, pivot.prefix, pivot.desired, pivot.undesired, pivot.greedy_correct)
        assert found == (plain.position, plain.prefix, plain.desired, plain.undesired, plain.greedy_correct)


def test_a_completion_is_written_from_the_next_deviation_on(bundled, prompter, problems, pairs, monkeypatch):
    begun: list[Row] = []
    monkeypatch.setattr(search, "Row", lambda *args, **how: begun.append(Row(*args, **how)) or begun[-1])
    usable = [pair for pair in pairs.values() if pair.sampled]
    by_id = {p.id: p for p in problems}
    search_pivots(bundled.engine, prompter, usable, by_id, max_new_tokens=LIMIT, slots=64)
    assert begun
    for row in begun[:20]:
        pair = usable[row.order[0]]
        assert pair.sampled is not None and row.length is not None
        y, k = pair.sampled.tokens, row.length - len(pair.prompt)
        assert row.limit == LIMIT - k
        assert [row.first] == reference.greedy(bundled.network, [*pair.prompt, *y[:k]], 1, frozenset()) != [y[k]]


def test_a_pivot_keeps_how_the_model_goes_on_greedily_with_either_token(bundled, prompter, problems, pairs):
    usable = [pair for pair in pairs.values() if pair.sampled]
    by_id = {p.id: p for p in problems}
    found = search_pivots(bundled.engine, prompter, usable, by_id, max_new_tokens=LIMIT, slots=64)
    found.sort(key=lambda pivot: -pivot.completions)
    assert found[0].completions > 0, "some must come from a completion and not from a trace"
    for pivot in found[:16]:
        pair = pairs[pivot.problem]
        assert pair.sampled is not None
        start = pair.sampled.tokens[: pivot.position]
        heads = [(*start, pivot.desired), (*start, pivot.undesired)]
        plain = reference.completions(bundled.network, prompter, pair, heads, LIMIT)
        assert [(*start, *pivot.after_desired), (*start, *pivot.after_undesired)] == [tuple(p) for p in plain]
        graded = [prompter.trace(by_id[pair.problem], tokens).correct for tokens in plain]
        assert graded == [True, False]


def test_a_prefix_pivot_keeps_the_rest_of_both_traces(pairs):
    for pair in [pair for pair in pairs.values() if pair.sampled][:10]:
        pivot = prefix_pivot(pair)
        right, wrong = (pair.greedy, pair.sampled) if pair.greedy.correct else (pair.sampled, pair.greedy)
        assert (right.tokens[pivot.position :], wrong.tokens[pivot.position :]) == (
            pivot.after_desired,
            pivot.after_undesired,
        )


def test_pivots_do_not_depend_on_the_batch(bundled, prompter, problems, pairs):
    usable = [pair for pair in pairs.values() if pair.sampled]
    by_id = {p.id: p for p in problems}
    how: dict[str, Any] = {"max_new_tokens": LIMIT, "slots": 64}
    together = search_pivots(bundled.engine, prompter, usable, by_id, **how)
    apart = [search_pivots(bundled.engine, prompter, [p], by_id, **how)[0] for p in usable[:10]]
    assert together[:10] == apart


def _pair(greedy, sampled, greedy_correct):
    def trace(tokens, correct):
        return Trace(tokens, "", "", correct)

    return TracePair(
        "p", "train", "0", (9, 9), trace(greedy, greedy_correct), trace(sampled, not greedy_correct), 1, None
    )


def test_the_prefix_pivot_is_the_first_difference_and_desires_the_correct_trace():
    right_greedy = prefix_pivot(_pair((1, 2, 3), (1, 5, 3), True))
    assert (right_greedy.prefix, right_greedy.desired, right_greedy.undesired) == ((9, 9, 1), 2, 5)
    wrong_greedy = prefix_pivot(_pair((1, 2, 3), (1, 5, 3), False))
    assert (wrong_greedy.desired, wrong_greedy.undesired) == (5, 2)


def test_a_pair_without_a_sampled_trace_has_no_pivot():
    with pytest.raises(InputError, match="no_opposite"):
        prefix_pivot(TracePair("p", "train", "0", (9,), Trace((1,), "", "", True), None, 10, "no_opposite"))


def test_the_slip_of_a_trace_is_the_first_token_that_only_the_slipped_solution_has(prompter, problems):
    problem = next(p for p in problems if p.template == "43")
    right = prompter.reference(problem.solution)
    from cca.problems.slips import wrong_sign

    slipped_text = wrong_sign(problem.solution)
    assert slipped_text is not None
    slipped = prompter.reference(slipped_text)
    position = slip_position(prompter, problem, slipped, "wrong_sign")
    assert position is not None
    assert prompter.text([right[position]]).strip() == "+"
    assert prompter.text([slipped[position]]).strip() == "-"
    assert slip_position(prompter, problem, right, "wrong_sign") is None

    prompt = prompter.prompt(problem)
    pair = TracePair(
        problem.id, "train", "43", prompt, Trace(right, "", "", True), Trace(slipped, "", "", False), 1, None
    )
    pivot = prefix_pivot(pair)
    assert mark_on_slip(prompter, pair, problem, pivot, {"43": "wrong_sign"}).on_slip is True
    assert mark_on_slip(prompter, pair, problem, pivot, {}).on_slip is None


@pytest.fixture
def warned(tmp_path, capsys, monkeypatch):
    """What is said of problems with these (answer, solution) before the model is loaded."""

    def stop(run):
        raise InputError("the model would be loaded now")

    monkeypatch.setattr(Run, "model", property(stop))

    def run(grader: str, *answers: tuple[str, str]) -> str:
        rows = [{"question": f"What is it, {i}?", "answer": a, "solution": s} for i, (a, s) in enumerate(answers)]
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in rows))
        settings = [f"problems.source={file}", f"problems.grader={grader}", "problems.train=3", "problems.validation=1"]
        settings += ["problems.test=2", "problems.held_out=0", "evaluation.transfer=[]", "evaluation.retention=[]"]
        sets = [part for setting in settings for part in ("--set", setting)]
        assert cli.main(["run", "--out", str(file.with_suffix("")), *sets]) == 2
        before, loading, _ = capsys.readouterr().err.partition("the model would be loaded now")
        assert loading
        return before

    return run


READ = [("5", "#### 5"), ("$1,200", "so\n#### 1200"), ("12 km/h", ""), ("½", "#### 1/2")]


def test_gold_answers_that_the_grader_cannot_read_are_warned_of_before_the_model_is_loaded(warned):
    said = warned("number", *READ, ("\\sqrt{3}", "#### \\sqrt{3}"), ("50 or 60", ""))
    assert "cannot read the gold answers of 2 of 6 problems, so no answer to them is right" in said
    assert "problems.grader to math-verify or exact" in said and ("'\\\\sqrt{3}'" in said or "'50 or 60'" in said)
    assert "own solutions" not in said


def test_own_solutions_that_the_grader_takes_for_wrong_are_warned_of_apart(warned):
    said = warned("number", *READ, ("7", "3 + 4 = 8\n#### 8"), ("five", "#### five"))
    assert "cannot read the gold answers of 1 of 6 problems" in said and "gold 'five'" in said
    assert "own solutions of 1 of 6 problems for wrong" in said and "gold '7'" in said


@pytest.mark.parametrize("grader", ["exact", "math-verify"])
def test_a_grader_that_reads_all_gold_answers_is_not_warned_of(warned, grader):
    assert "warning: the grader" not in warned(grader, *READ, ("\\sqrt{3}", "#### \\sqrt{3}"), ("(1,2)", ""))
