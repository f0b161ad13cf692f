"""Every supported family: what stands beside a row, and in which order, changes no trace, pivot, circuit or delta.

CCA_TEST_DEVICE=cuda runs this file on a GPU.
"""

import reference
import torch
from conftest import CIRCUIT, last_delta, random_pivots
from families import DEVICE, END, MIXTURES, VOCABULARY, family_model, some_rows, tokens

from cca.method.circuit import learn_gates
from cca.method.options import TraceOptions
from cca.method.pivots import search_pivots
from cca.method.traces import trace_pairs
from cca.method.update import full_gradient
from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.generate import generate_greedy
from cca.model.padded import Ragged
from cca.model.read import Text, read, texts
from cca.records import Problem, Trace, TracePair


class ParityPrompter:
    """A grader without a language: an answer is right where its tokens sum to an even number."""

    end_tokens = END
    start = ()

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return tuple(int(t) for t in problem.question.split())

    def stopped(self, tokens) -> bool:
        return False

    def stop_rule(self, head=()) -> None:
        return None

    def trace(self, problem: Problem, tokens) -> Trace:
        return Trace(tuple(tokens), "", str(sum(tokens)), sum(tokens) % 2 == 0)


LIMIT = 10


def _problems(count: int) -> list[Problem]:
    prompts = [p.prefix for p in random_pivots(count, VOCABULARY, seed=3, longest=14)]
    return [Problem(f"p-{i}", "0", i, "train", " ".join(map(str, p)), "", "") for i, p in enumerate(prompts)]


def _traced(model, problems):
    options = TraceOptions(samples=4, temperature_if_correct=1.5, temperature_if_wrong=1.5, max_new_tokens=LIMIT)
    pairs: list[TracePair] = []
    trace_pairs(Transformers(model), ParityPrompter(), problems, options, 0, pairs.append)  # pyright: ignore[reportArgumentType]
    return sorted(pairs, key=lambda pair: pair.problem)


def _pivots(model, pairs, problems):
    by_id = {p.id: p for p in problems}
    return search_pivots(Transformers(model), ParityPrompter(), pairs, by_id, max_new_tokens=LIMIT, slots=64)  # pyright: ignore[reportArgumentType]


def test_decoding_in_batches_equals_reading_everything_again_for_each_token(model):
    prompts = [p.prefix for p in random_pivots(5, VOCABULARY)]
    assert generate_greedy(model, prompts, max_new_tokens=12, end_tokens=END) == [
        reference.greedy(model, p, 12, END) for p in prompts
    ]


def test_in_bfloat16_a_row_does_not_depend_on_the_slots_and_the_gradient_is_that_of_float32(case, model, parts):
    short = family_model(*case).bfloat16().to(DEVICE)
    prompts = [p.prefix for p in random_pivots(11, VOCABULARY)]
    few = generate_greedy(short, prompts[:3], max_new_tokens=12, end_tokens=END, slots=2 if DEVICE == "cpu" else 64)
    assert few == generate_greedy(short, prompts, max_new_tokens=12, end_tokens=END, slots=64)[:3]
    pivots, rows = random_pivots(7, VOCABULARY), some_rows(parts)
    plain, rounded = (full_gradient(of, Delta.zeros(of, rows), pivots, 3)[1] for of in (model, short))
    for name, gradient in plain.items():
        assert rounded[name].dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0) > 0.9, name


def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(model):
    start = tuple(tokens(70).tolist())
    prompts = [(*start, *p.prefix) for p in random_pivots(4, VOCABULARY, seed=2)]
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    together, alone = texts(prompts), [Text(prompt) for prompt in prompts]
    for text in (*together, *alone):
        text.predict_from = len(start)
    read(model, together)
    hook.remove()
    assert seen[0] >= 70
    assert sum(seen) < 70 + 4 * 21, "not 4 x 70 and more"
    read(model, alone)
    for ours, plain in zip(together, alone, strict=True):
        assert ours.last is not None
        assert ours.predictions == plain.predictions
        torch.testing.assert_close(ours.last, plain.last, atol=1e-4, rtol=1e-4)
        for mine, its in zip(*(Ragged.of([text]).take([0], 0)[0].layers for text in (ours, plain)), strict=True):
            torch.testing.assert_close(mine.keys, its.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(mine.values, its.values, atol=1e-4, rtol=1e-4)
    assert generate_greedy(model, prompts, max_new_tokens=6, end_tokens=END) == [
        reference.greedy(model, p, 6, END) for p in prompts
    ]


def test_batch_size_padding_and_order_change_no_trace_and_no_pivot(case):
    """In float64: of a thousand float32 logits of a random model one or two tie within the rounding of a batch."""
    model = family_model(*case).double().to(DEVICE)
    if case[0] in MIXTURES:
        model.set_experts_implementation("eager")  # the default has no float64
    problems = _problems(8)
    pairs = _traced(model, problems)
    assert _traced(model, problems[::-1]) == pairs
    assert [_traced(model, [p])[0] for p in problems[:4]] == pairs[:4]
    usable = [pair for pair in pairs if pair.sampled]
    assert len(usable) >= 4
    together = _pivots(model, usable, problems)
    assert _pivots(model, usable[::-1], problems)[::-1] == together
    assert [_pivots(model, [pair], problems)[0] for pair in usable[:4]] == together[:4]
    by_id = {p.id: p for p in problems}
    for pair, pivot in zip(usable, together, strict=True):
        plain, _ = reference.branching_pivot(model, ParityPrompter(), pair, by_id[pair.problem], LIMIT)  # pyright: ignore[reportArgumentType]
        assert (pivot.position, pivot.prefix) == (plain.position, plain.prefix)
        assert (pivot.desired, pivot.undesired) == (plain.desired, plain.undesired)


def test_batch_size_padding_and_order_change_no_circuit_and_no_delta(model, parts):
    pivots, rows = random_pivots(6, VOCABULARY), some_rows(parts)
    options = CIRCUIT.changed({"batch": 6, "epochs": 12})
    kept = learn_gates(model, parts, pivots, options)
    reread = learn_gates(model, parts, pivots[::-1], options.changed({"cache_gib": 1e-9}))
    torch.testing.assert_close(reread.gates, kept.gates, atol=1e-4, rtol=0)
    sure = (kept.gates - 0.5).abs() > 1e-3
    assert torch.equal(reread.selected[sure], kept.selected[sure])
    assert 0 < kept.density < 1
    together, apart = last_delta(model, rows, pivots), last_delta(model, rows, pivots[::-1], batch=1)
    for name, changed in together.weights.items():
        torch.testing.assert_close(apart.weights[name].values, changed.values, atol=1e-6, rtol=1e-3)
