"""How work goes on where memory runs out: under limits that are simulated."""

import gc
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from conftest import random_pivots
from test_generate import END, _many

from cca import cli
from cca.errors import InputError, TooLargeError
from cca.evaluation.choices import choices
from cca.evaluation.drift import drift, plain_texts
from cca.method.circuit import learn_gates
from cca.method.options import CircuitOptions, TraceOptions
from cca.method.pivots import search_pivots
from cca.method.traces import trace_pairs
from cca.method.update import full_gradient, held_out_margins
from cca.model import generate
from cca.model.cache import SlotLayer
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.generate import Row, generate_greedy, write
from cca.model.memory import Halving, attempted, free_bytes, is_out_of_memory
from cca.model.read import Text, read, texts
from cca.model.sampling import stream


@pytest.fixture(autouse=True, scope="module")
def _quick_collection():
    """After each failure garbage is looked for, which takes a second where all of torch is looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def limited(model, *, tokens=10**9, rows=10**9, after=0):
    """Passes of more tokens, or steps of more rows, run out of memory from the pass `after` on; gives the sizes of all
    that did not."""
    done: list[int] = []

    def hook(_module, _args, kwargs):
        ids = kwargs["input_ids"]
        most = rows if ids.shape[1] == 1 else tokens
        if len(done) >= after and ids.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        done.append(ids.numel())

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield done
    finally:
        handle.remove()


def test_the_system_says_what_is_free():
    free = free_bytes("cpu")
    assert free is None or 0 < free < 2**60


# ---- errors ----


def test_an_error_for_want_of_memory_is_told_from_others():
    with pytest.raises(RuntimeError) as allocator:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (allocator.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), TooLargeError("")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes cannot be multiplied"), InputError("bad"), ValueError("memory")):
        assert not is_out_of_memory(error)


def test_what_failed_work_held_is_let_go_before_anything_else_is_tried():
    held: list[weakref.ref] = []

    def work():
        large = torch.zeros(9)
        held.append(weakref.ref(large))
        error = torch.OutOfMemoryError("CUDA out of memory")  # which refers to this frame, as that does to it
        raise error

    gc.disable()
    try:
        assert not attempted(work)
    finally:
        gc.enable()
    assert held[0]() is None
    assert attempted(lambda: None)
    with pytest.raises(RuntimeError, match="another"):
        attempted(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_batch_that_is_too_large_is_done_in_halves_and_later_ones_are_not_tried_whole():
    tried: list[list[int]] = []
    done: list[int] = []

    def work(part):
        tried.append(list(part))
        if sum(part) > 10:
            raise MemoryError
        done.extend(part)

    passes = Halving[int](lambda item: item, lambda item: f"{item} is too much")
    passes.run([[1, 2, 3, 4, 5], [6, 7], [5, 5]], work)
    assert done == [1, 2, 3, 4, 5, 6, 7, 5, 5]
    assert tried == [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [6, 7], [6], [7], [5, 5]]
    tried.clear()
    passes.run([[6, 8], [1]], work)
    assert tried == [[6], [8], [1]]
    with pytest.raises(TooLargeError, match="11 is too much"):
        passes.run([[1, 11]], work)
    with pytest.raises(ZeroDivisionError):
        passes.run([[1]], lambda _: 1 / 0)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), TooLargeError("x")])
def test_a_command_that_runs_out_of_memory_names_the_remedy_without_a_traceback(error, monkeypatch, capsys):
    def out(_):
        raise error

    monkeypatch.setattr("cca.commands.show.run", out)
    assert cli.main(["show", "scores", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cca: ")
    assert said.count("\n") == 1


def test_other_errors_of_a_command_stay_what_they_are(monkeypatch):
    def wrong(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("cca.commands.show.run", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["show", "scores", "x"])


# ---- writing ----


def _rows(prompts, ended) -> list[Row]:
    """Greedy and sampled ones, of different lengths."""
    return [
        Row(
            text,
            (24, 9, 17)[n % 3],
            (n,),
            temperature=(0.0, 0.9)[n % 2],
            uniforms=stream(3, n).random(24),
            then=lambda tokens, n=n: ended.append((n, tuple(tokens))) or (),
        )
        for n, text in enumerate(texts(prompts))
    ]


@pytest.mark.parametrize("after", [0, 14], ids=["from the beginning", "when some have ended"])
@pytest.mark.parametrize("shared", [0, 30])
def test_rows_are_the_same_and_none_is_written_twice_where_slots_are_halved(tiny, shared, after):
    prompts = _many(30, shared)
    plain: list[tuple[int, tuple[int, ...]]] = []
    write(tiny, _rows(prompts, plain), slots=30, end_tokens=END)
    ended: list[tuple[int, tuple[int, ...]]] = []
    with limited(tiny, rows=8, after=after), pytest.warns(UserWarning, match="out of memory") as said:
        write(tiny, _rows(prompts, ended), slots=30, end_tokens=END)
    assert sorted(ended) == sorted(plain)
    texts_said = [str(w.message) for w in said]
    assert "7 sequences are written at once, not 15" in texts_said[-1]
    assert "traces.batch, evaluation.batch" in texts_said[-1]
    if after:
        assert len(ended) == len({n for n, _ in ended}), "those that had ended stayed"


def test_rows_of_one_text_that_was_cut_begin_anew_with_what_they_began_with(tiny):
    def cut() -> list[Row]:
        found = [Text(tuple(p), predict_from=0) for p in _many(6)]
        read(tiny, found)
        return [
            Row(text, 12, (n, k), length=n, first=text.predictions[n - 1])
            for k, text in enumerate(found)
            for n in range(1, len(text.ids) + 1, 5)
        ]

    plain, rows = cut(), cut()
    write(tiny, plain, slots=32, end_tokens=END)
    with limited(tiny, rows=16, after=9), warnings.catch_warnings(action="ignore"):
        write(tiny, rows, slots=32, end_tokens=END)
    assert [row.tokens for row in rows] == [row.tokens for row in plain]


@pytest.mark.parametrize("where", ["read", "room", "growth"])
def test_reading_and_making_room_may_run_out_of_memory_too(tiny, where, monkeypatch):
    prompts = sorted(_many(20), key=len)
    plain = generate_greedy(tiny, prompts, max_new_tokens=90, end_tokens=END, slots=16)
    owner, name = {"read": (generate, "read"), "room": (generate, "SlotLayer"), "growth": (SlotLayer, "grow")}[where]
    failed: list[int] = []
    kept = getattr(owner, name)

    def once(*args, **kwargs):
        if not failed:
            failed.append(1)
            raise MemoryError
        return kept(*args, **kwargs)

    monkeypatch.setattr(owner, name, once)
    with pytest.warns(UserWarning, match="8 sequences are written at once, not 16"):
        assert generate_greedy(tiny, prompts, max_new_tokens=90, end_tokens=END, slots=16) == plain
    assert failed


def test_where_the_fewest_rows_do_not_fit_it_is_said_what_to_do(tiny):
    with (
        limited(tiny, rows=7),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(TooLargeError, match=r"too little memory to write 8 sequences at once.*lower max_new_tokens"),
    ):
        generate_greedy(tiny, _many(20), max_new_tokens=9, end_tokens=END, slots=16)


def test_slots_are_fewer_where_memory_would_not_do_and_never_more_than_asked(tiny, monkeypatch):
    prompts = _many(40)
    plain = generate_greedy(tiny, prompts, max_new_tokens=20, end_tokens=END)
    a_row = 128 * 3 * 2 * 2 * 16 * 4 + 3 * 4 * tiny.config.vocab_size
    for free, asked, most in ((18 * a_row, 40, 16), (3 * a_row, 40, 8), (10**12, 24, 24), (None, 24, 24)):
        monkeypatch.setattr("cca.model.slots.free_bytes", lambda _, free=free: None if free is None else free / 0.8)
        with limited(tiny) as passes:
            assert generate_greedy(tiny, prompts, max_new_tokens=20, end_tokens=END, slots=asked) == plain
        assert max(n for n in passes if n % 8 == 0 and n <= 40) == most


def test_traces_and_pivots_are_the_same_under_a_limit(bundled, prompter, problems):
    some, by_id = problems[:4], {p.id: p for p in problems}

    def found():
        pairs = []
        options = TraceOptions(samples=3, max_new_tokens=60, batch=24)
        trace_pairs(bundled.engine, prompter, some, options, 0, pairs.append)
        pairs.sort(key=lambda pair: pair.problem)
        usable = [pair for pair in pairs if pair.sampled]
        return pairs, search_pivots(bundled.engine, prompter, usable, by_id, max_new_tokens=60, slots=24)

    plain = found()
    with limited(bundled.network, rows=8, tokens=300) as passes, warnings.catch_warnings(action="ignore"):
        assert found() == plain
    assert max(passes) <= 300
    assert plain[1], "there are pivots"


# ---- reading, and batches of pivots ----


def test_what_is_read_in_smaller_passes_is_the_same_to_the_last_bit_and_read_once(tiny):
    plain, halved = texts(_many(12, shared=30)), texts(_many(12, shared=30))
    read(tiny, plain)
    with limited(tiny, tokens=64) as passes:
        read(tiny, halved)
    assert len(passes) > 3
    own = sum(t.own_length() for t in plain)
    assert 30 + own <= sum(passes) < 30 + own + 8 * len(passes), "rounded up to a multiple of eight"
    for one, other in zip(plain, halved, strict=True):
        assert one.last is not None
        assert other.last is not None
        assert torch.equal(one.last, other.last)
        assert all(map(torch.equal, (*one.keys, *one.values), (*other.keys, *other.values)))
    with limited(tiny, tokens=20), pytest.raises(TooLargeError, match="too little memory to read 80 tokens"):
        read(tiny, texts([range(1, 81)]))


def test_gates_are_the_same_under_a_limit(tiny):
    pivots, parts = random_pivots(8, 60), find_components(tiny)
    options = CircuitOptions(learning_rate=0.05, batch=8, epochs=3, min_steps=0, patience=50.0)
    plain = learn_gates(tiny, parts, pivots, options)
    with limited(tiny, rows=3) as passes:
        halved = learn_gates(tiny, parts, pivots, options)
    steps = [n for n in passes if n <= 8]
    assert steps == [2] * 12
    torch.testing.assert_close(halved.history, plain.history, atol=1e-4, rtol=0)
    torch.testing.assert_close(halved.losses, plain.losses, atol=1e-5, rtol=1e-5)
    with (
        limited(tiny, rows=0),
        pytest.raises(TooLargeError, match=r"pivot of p-\d alone, whose prefix has .*cache_gib"),
    ):
        learn_gates(tiny, parts, pivots, options)


def test_the_gradient_and_the_margins_are_the_same_under_a_limit(tiny):
    pivots, parts = random_pivots(12, 60), find_components(tiny)
    delta = Delta.zeros(tiny, parts.rows(torch.ones(parts.size, dtype=torch.bool)))
    loss, plain = full_gradient(tiny, delta, pivots, 12)
    margins = held_out_margins(tiny, delta, pivots, 12)
    told: list[int] = []
    with limited(tiny, tokens=40) as passes:
        halved_loss, halved = full_gradient(tiny, delta, pivots, 12, progress=told.append)
        assert len(passes) > 3
        torch.testing.assert_close(held_out_margins(tiny, delta, pivots, 12), margins, atol=1e-5, rtol=1e-5)
    assert sum(told) == sum(len(p.prefix) for p in pivots), "nothing is computed twice"
    assert sum(passes) == 2 * sum(told)
    assert halved_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in plain.items():
        torch.testing.assert_close(halved[name], gradient, atol=1e-6, rtol=1e-4)
    with limited(tiny, tokens=4):
        with pytest.raises(TooLargeError, match=r"has \d+ tokens; set update.gradient_checkpointing to true"):
            full_gradient(tiny, delta, pivots, 12)
        with pytest.raises(TooLargeError, match=r"has \d+ tokens; set model.dtype"):
            held_out_margins(tiny, delta, pivots, 12)


def test_choices_and_drift_are_the_same_under_a_limit(tiny):
    pivots, parts = random_pivots(12, 60), find_components(tiny)
    delta = Delta.zeros(tiny, parts.rows(torch.arange(parts.size) % 5 == 0))
    for values in delta.parameters.values():
        values.data.normal_(std=0.05)
    pieces = plain_texts([n % 50 + 1 for n in range(0, 700, 7)], 20)
    made_of, apart = choices(tiny, pivots, model="base", batch=12), drift(tiny, delta, pieces, 12)
    assert apart.kl > 0
    with limited(tiny, tokens=40) as passes:
        again = choices(tiny, pivots, model="base", batch=12)
        for one, other in zip(made_of, again, strict=True):
            assert (other.problem, other.desired, other.undesired) == (
                one.problem,
                pytest.approx(one.desired, abs=1e-4),
                pytest.approx(one.undesired, abs=1e-4),
            )
        halved = drift(tiny, delta, pieces, 12)
    assert max(passes) <= 40
    assert (halved.kl, halved.perplexity_ratio) == (pytest.approx(apart.kl), pytest.approx(apart.perplexity_ratio))
    with limited(tiny, tokens=4):
        with pytest.raises(TooLargeError, match="alone, whose prefix has"):
            choices(tiny, pivots, model="base", batch=12)
        with pytest.raises(TooLargeError, match="the drift on a text of 20 tokens"):
            drift(tiny, delta, pieces, 12)
