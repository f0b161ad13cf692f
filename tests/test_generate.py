import itertools
import random

import pytest
import reference
import torch
from conftest import KEEPS_THE_ORDER, tiny_qwen2

from cca.model.attention import attend, attend_after
from cca.model.generate import Row, Watch, _Writing, generate_greedy, write
from cca.model.read import Text, common_start, passing, read, texts
from cca.model.sampling import pick, stream

PROMPTS = [[5, 9, 3, 8], [7, 2], [4, 4, 4, 4, 4, 4, 9], [11]]
END = frozenset({0})


def test_greedy_decoding_equals_reading_everything_again_for_each_token(tiny):
    fast = generate_greedy(tiny, PROMPTS, max_new_tokens=24, end_tokens=END)
    assert fast == [reference.greedy(tiny, p, 24, END) for p in PROMPTS]


def test_rows_that_end_early_leave_without_disturbing_the_others(tiny):
    free = generate_greedy(tiny, PROMPTS, max_new_tokens=24, end_tokens=END)
    # make tokens that some rows write early into end tokens
    ends = frozenset({free[0][2], free[2][5]})
    stopped = generate_greedy(tiny, PROMPTS, max_new_tokens=24, end_tokens=ends)
    for whole, cut in zip(free, stopped, strict=True):
        stop = next((i + 1 for i, t in enumerate(whole) if t in ends), len(whole))
        assert cut == whole[:stop]


def test_a_text_cut_anywhere_continues_like_the_shorter_sequence(tiny):
    found = [Text(tuple(p), predict_from=0) for p in PROMPTS]
    read(tiny, found)
    cut = [2, 1, 5, 1]
    rows = [Row(t, 10, length=n, first=t.predictions[n - 1]) for t, n in zip(found, cut, strict=True)]
    write(tiny, rows, slots=8, end_tokens=END)
    assert [r.tokens for r in rows] == [
        reference.greedy(tiny, p[:n], 10, END) for p, n in zip(PROMPTS, cut, strict=True)
    ]


def test_the_common_start_of_sequences_is_what_all_of_them_begin_with():
    start = list(range(100))
    several = [[*start, 7, 8], [*start, 7, 9], [*start, 5]]
    assert common_start(several, 200) == 100
    assert common_start(several, 80) == 80
    assert common_start([*several, start[:70]], 200) == 70
    assert common_start([*several, [*start[:9], 3]], 200) == 0, "too short to be worth a pass of its own"
    assert common_start(several[:1], 200) == 0


def test_what_is_read_equals_single_passes(tiny):
    plain, predicting = texts(PROMPTS), [Text(tuple(p), n) for p, n in zip(PROMPTS, [1, 0, 3, 0], strict=True)]
    read(tiny, [*plain, *predicting])
    for prompt, text, other in zip(PROMPTS, plain, predicting, strict=True):
        alone = tiny(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(text.last, alone[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.last, alone[-1], atol=1e-5, rtol=1e-5)
        assert other.predictions == alone[other.predict_from :].argmax(-1).tolist()


# ---- rows do not depend on one another ----


def _many(count: int, shared: int = 0) -> list[list[int]]:
    draw = random.Random(0)
    start = [draw.randrange(1, 40) for _ in range(shared)]
    return [[*start, *(draw.randrange(1, 40) for _ in range(draw.randrange(1, 50)))] for _ in range(count)]


def _written(model, prompts, numbers, slots, temperature, limits=(24, 9, 17), top_k=(0,)) -> dict[int, list[int]]:
    """The rows `numbers`, in that order."""
    rows = {
        n: Row(
            Text(tuple(prompts[n])),
            limits[n % len(limits)],
            (place,),
            temperature=temperature[n % len(temperature)],
            top_k=top_k[n % len(top_k)],
            uniforms=stream(3, n).random(max(limits)),
        )
        for place, n in enumerate(numbers)
    }
    write(model, rows.values(), slots=slots, end_tokens=END)
    return {n: row.tokens for n, row in rows.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_row_is_the_same_to_the_last_token_whatever_the_slots_the_order_and_the_rows_beside_it(dtype, key_heads):
    model, prompts = tiny_qwen2(num_key_value_heads=key_heads).to(dtype), _many(21)
    together = _written(model, prompts, range(21), 64, (0.0, 0.9))
    shuffled = random.Random(1).sample(range(21), 21)
    for slots, numbers in ((3, range(21)), (7, shuffled), (16, shuffled[::-1]), (64, shuffled[:5]), (1, shuffled[:4])):
        assert _written(model, prompts, numbers, slots, (0.0, 0.9)) == {n: together[n] for n in numbers}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_different_top_k_are_written_side_by_side_as_each_would_be_alone(dtype):
    model, prompts, ks = tiny_qwen2().to(dtype), _many(20), (0, 1, 3, 7)
    together = _written(model, prompts, range(20), 64, (0.0, 0.9, 1.4), top_k=ks)
    for slots, numbers in ((7, random.Random(1).sample(range(20), 20)), (1, (3, 6, 9, 10))):
        assert _written(model, prompts, numbers, slots, (0.0, 0.9, 1.4), top_k=ks) == {n: together[n] for n in numbers}
    greedy = _written(model, prompts, range(20), 64, (0.0,))
    assert {n: together[n] for n in range(0, 20, 3)} == {n: greedy[n] for n in range(0, 20, 3)}, "rows that do not draw"
    free = _written(model, prompts, range(20), 64, (0.0, 0.9, 1.4))
    assert {n for n in together if together[n] != free[n]} <= {n for n in range(20) if n % 3 and n % 4}
    assert any(together[n] != free[n] for n in range(20))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the setting is of MKL's products")
@pytest.mark.parametrize(("inputs", "outputs"), [(896, 896), (896, 128), (896, 4864), (4864, 896), (1536, 576)])
def test_products_of_a_real_models_size_do_not_depend_on_rows_and_threads_under_the_commands_setting(
    inputs, outputs, threads
):
    draw = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(n, inputs, generator=draw) for n in (outputs, 300))
    torch.set_num_threads(1)
    together = torch.nn.functional.linear(rows, weight)
    torch.set_num_threads(threads)
    of_a_pass = (8, 16, 64, 104, 256, 296)  # always a multiple of 8
    for count in (*of_a_pass, 1, 2, 13, 100, 300) if KEEPS_THE_ORDER else of_a_pass:
        few = torch.nn.functional.linear(rows[:count], weight)
        assert torch.equal(few, together[:count]), (threads, count)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_to_the_last_bit_attention_of_one_query_does_not_depend_on_the_rows_beside_it(dtype):
    draw = torch.Generator().manual_seed(0)
    for (key_heads, size), groups in itertools.product(((1, 64), (3, 64), (2, 256), (8, 80), (1, 32)), (1, 2, 3, 4, 7)):
        for columns, softcap in itertools.product((128, 384), (None, 30.0)):
            query = torch.randn(16, key_heads * groups, 1, size, generator=draw).to(dtype) * 2
            key, value = torch.randn(2, 16, key_heads, columns, size, generator=draw).to(dtype) * 2
            lengths = torch.randint(columns - 127, columns + 1, (16,), generator=draw)
            mask = (torch.arange(columns) < lengths[:, None])[:, None, None]
            together = attend(query, key, value, mask, None, softcap)
            for rows in (slice(0, 8), slice(3, 8), slice(11, 14), slice(0, 1), slice(15, 16)):
                few = attend(query[rows], key[rows], value[rows], mask[rows], None, softcap)
                assert torch.equal(few, together[rows]), (key_heads, size, groups, columns, softcap, rows)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_after_a_start_that_rows_share_is_that_over_both_and_does_not_depend_on_the_rows_beside(dtype):
    if dtype == torch.float16 and not KEEPS_THE_ORDER:
        pytest.skip("in float16 a row's bits depend on those beside it on this CPU, as docs/method.md says")
    draw = torch.Generator().manual_seed(0)
    atol, rtol = (5e-5, 1e-4) if dtype == torch.float32 else (0.1, 0.05)
    for (key_heads, size), groups in itertools.product(((1, 64), (3, 64), (2, 256), (1, 32)), (1, 2, 3, 7)):
        for begun, softcap, window in ((17, None, 0), (130, None, 90), (130, 30.0, 90), (600, None, 0)):
            heads, columns, rows = key_heads * groups, 128, 40
            query = torch.randn(rows, heads, 1, size, generator=draw).to(dtype) * 2
            start = torch.randn(2, key_heads, begun, size, generator=draw).to(dtype) * 2
            own = torch.randn(2, rows, key_heads, columns, size, generator=draw).to(dtype) * 2
            at = torch.arange(begun + columns)
            last = begun + torch.randint(0, columns, (rows, 1), generator=draw)
            seen = ((at <= last) & (at > (last - window if window else -1)))[:, None, None]
            if window:
                assert not seen[..., :begun].any(-1).all(), "some see nothing of the start"
            key, value = (torch.cat([a.expand(rows, -1, -1, -1), b], 2) for a, b in zip(start, own, strict=True))
            plain = attend(query.float(), key.float(), value.float(), seen, None, softcap)

            def some(of: slice, softcap=softcap, begun=begun, query=query, start=start, own=own, seen=seen):
                key, value, before, mask = own[0][of], own[1][of], seen[of, ..., :begun], seen[of, ..., begun:]
                return attend_after((start[0], start[1]), query[of], key, value, before, mask, None, softcap)

            together = some(slice(0, rows))
            torch.testing.assert_close(together.float(), plain, atol=atol, rtol=rtol)
            for of in (slice(0, 8), slice(3, 8), slice(11, 30), slice(0, 1), slice(39, 40)):
                assert torch.equal(some(of), together[of]), (key_heads, size, groups, begun, softcap, of)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shared", [0, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_to_the_last_bit_the_logits_of_a_row_do_not_depend_on_how_long_the_rows_beside_it_are(
    dtype, shared, monkeypatch
):
    """Seven queries a key head, of 64 numbers, over 100 to 400 keys: sums of so many are split in other places."""
    model = tiny_qwen2(num_attention_heads=7, num_key_value_heads=1, head_dim=64, max_position_embeddings=1024).to(
        dtype
    )
    draw = random.Random(0)
    prompts = [[draw.randrange(1, 40) for _ in range(length)] for length in (96, 104, 120, 190, 200, 250, 366, 380)]
    starts = [prompts[7][:shared], prompts[6][:shared]]  # each of three prompts, besides two that have none
    prompts = [starts[n % 3] + prompt if n % 3 < 2 else prompt for n, prompt in enumerate(prompts)]
    seen: dict[tuple[int, int], torch.Tensor] = {}
    chosen = _Writing._chosen

    def look(self, logits):
        for row, values in zip(self.at_work, logits, strict=True):
            seen[row.order[0], len(row.tokens)] = values.clone()
        return chosen(self, logits)

    monkeypatch.setattr(_Writing, "_chosen", look)
    new = 12 if not shared else 4
    for slots, order in ((8, range(8)), (3, range(8)), (1, range(8)), (5, (6, 1, 7, 0, 5, 3, 2, 4))):
        before, seen = seen, {}
        read_once = [Text(tuple(start)) if shared else None for start in starts] + [None]
        rows = [Row(Text(tuple(prompts[n]), start=read_once[n % 3]), new + n, (n,)) for n in order]
        write(model, rows, slots=slots, end_tokens=frozenset())
        assert len(seen) == sum(new - 1 + n for n in range(8))
        assert not before or all(torch.equal(values, before[key]) for key, values in seen.items())


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_read_is_the_same_to_the_last_bit_whatever_is_read_beside_it(dtype, shared):
    model, prompts = tiny_qwen2().to(dtype), _many(21, shared)
    together = texts(prompts)
    read(model, together)
    for few in (prompts[:1], prompts[3:4], prompts[5:12]):
        here = texts(few, prompts[0][:shared])
        read(model, here)
        for text, ids in zip(here, few, strict=True):
            other = together[prompts.index(ids)]
            assert text.last is not None
            assert other.last is not None
            assert torch.equal(text.last, other.last)
            for mine, theirs in zip((*text.keys, *text.values), (*other.keys, *other.values), strict=True):
                assert torch.equal(mine, theirs)


def test_what_all_rows_begin_with_stands_in_no_slot(tiny, monkeypatch):
    prompts = _many(9, shared=150)
    made: list[_Writing] = []
    fill = _Writing._fill
    monkeypatch.setattr(_Writing, "_fill", lambda self: (fill(self), made.append(self))[0])
    generate_greedy(tiny, prompts, max_new_tokens=20, end_tokens=END)
    assert made[0].layers[0].key_buffer.shape[2] == 128
    generate_greedy(tiny, prompts[:1], max_new_tokens=20, end_tokens=END)
    assert made[-1].layers[0].key_buffer.shape[2] == 256, "of one row it is its own"


def test_an_attention_that_is_more_than_softmax_looks_at_what_all_rows_begin_with_too(tiny, monkeypatch):
    prompts = _many(5, shared=40)
    plain = [reference.greedy(tiny, p, 12, END) for p in prompts]
    monkeypatch.setattr("cca.model.slots.is_softmax", lambda *_: False)
    assert generate_greedy(tiny, prompts, max_new_tokens=12, end_tokens=END) == plain


def test_what_was_read_of_rows_that_are_done_is_let_go(tiny):
    together = texts(_many(21))
    read(tiny, together)
    keys, last = together[0].keys[0], together[0].last
    assert last is not None
    assert keys.untyped_storage().nbytes() == keys.nbytes, "no view, which would hold what was read beside it"
    assert last.untyped_storage().nbytes() == last.nbytes
    together[0].forget()
    assert not together[0].keys
    assert together[0].is_read
    assert together[0].last is not None
    assert together[0].last.untyped_storage().nbytes() == 0


def test_with_gradients_keys_and_values_are_not_kept_beside_what_autograd_keeps(tiny):
    with torch.enable_grad(), passing(tiny, _many(3), [0]) as found:
        assert found.logits.shape[0] == 1
        assert not any(side.numel() for side in (*found.keys, *found.values))


def test_a_pass_has_no_more_logits_than_it_may(tiny, monkeypatch):
    monkeypatch.setattr("cca.model.read._LOGITS", 64 * tiny.config.vocab_size)
    wide = [Text(tuple(p), predict_from=0) for p in _many(9)]
    passes: list[int] = []
    read(tiny, wide, passes.append)
    assert len(passes) > 2
    assert max(passes) <= 64


def test_a_row_in_a_slot_equals_the_plain_loop(tiny):
    """Read everything again for each token, draw with the row's own numbers."""
    prompts, limit = _many(9), 16
    together = _written(tiny, prompts, range(9), 4, (0.9,), (limit,))
    for n, prompt in enumerate(prompts):
        plain: list[int] = []
        for uniform in stream(3, n).random(limit):
            logits = tiny(input_ids=torch.tensor([[*prompt, *plain]])).logits[:, -1]
            plain.append(int(pick(logits, 0.9, torch.tensor([uniform]))))
            if plain[-1] in END:
                break
        assert together[n] == plain


def test_a_slot_is_taken_by_the_next_row_as_soon_as_it_is_free(tiny):
    prompts, passes = _many(12), []
    hook = tiny.lm_head.register_forward_hook(lambda _, __, out: passes.append(len(out)))
    limits = [4, 30] * 6
    rows = [Row(Text(tuple(p)), n, (i,)) for i, (p, n) in enumerate(zip(prompts, limits, strict=True))]
    write(tiny, rows, slots=8, end_tokens=frozenset())
    hook.remove()
    assert [len(row.tokens) for row in rows] == limits
    assert len([n for n in passes if n > 1]) < 4 + 30 + 30, "in two batches there would be so many passes"


def test_rows_that_come_of_rows_are_written_in_their_order_and_dropped_ones_are_not(tiny):
    begun: list[str] = []

    def row(name: str, order: int, then=None, limit: int = 3) -> Row:
        def ended(tokens: list[int]):
            begun.append(name)
            return then() if then else ()

        return Row(Text((5, 9, 3)), limit, (order,), then=ended)

    late, unwanted = row("late", 9), row("unwanted", 8)

    def more():
        unwanted.drop()
        return [row("child", 1)]

    write(tiny, [late, unwanted, row("first", 0, more)], slots=1, end_tokens=frozenset())
    assert begun == ["first", "child", "late"]


def test_a_row_that_is_dropped_while_it_is_written_leaves_its_slot(tiny):
    long = Row(Text((5, 9, 3)), 40, (1,), then=lambda _: pytest.fail("nobody waits for it"))

    def ended(_: list[int]):
        long.drop()
        return ()

    write(tiny, [Row(Text((7, 2)), 4, (0,), then=ended), long], slots=2, end_tokens=frozenset())
    assert len(long.tokens) < 6


def test_free_slots_ask_for_more_until_there_is_no_more(tiny):
    asked: list[int] = []
    left = iter([Row(Text((5, n)), 3) for n in range(2, 9)])

    def more(free: int):
        asked.append(free)
        return itertools.islice(left, 2)

    counted: list[int] = []
    write(tiny, (), slots=3, end_tokens=frozenset(), idle=more, watch=Watch(counted.append))
    assert asked[:2] == [3, 1]
    assert next(left, None) is None
    assert sum(counted) == 7 * 2 + 7 * 2, "tokens read, and written after the first"


def test_a_watch_sees_the_rows_at_work_and_those_that_ended_after_each_pass(tiny):
    def passed(tokens: int) -> None:
        seen.append((tokens, [len(row.tokens) for row in watch.at_work], dict(watch.ended), dict(watch.lengths)))

    def another(_: list[int]):
        return [Row(Text((5, 4)), 2, (0, 1), then=lambda _: watch.over(0) or ())]

    watch, seen = Watch(passed), []
    write(tiny, [Row(Text((5, 2, 3)), 3, (0,), then=another)], slots=2, end_tokens=frozenset(), watch=watch)
    assert seen == [
        (3, [], {}, {}),
        (1, [2], {}, {}),
        (1, [], {0: 1}, {3: 1}),
        (2, [], {0: 1}, {3: 1}),
        (1, [], {}, {3: 1, 2: 1}),
    ]
    assert watch.sizes == {2: 1}


def test_multi_head_and_multi_query_models_decode_alike():
    for key_heads in (1, 4):
        model = tiny_qwen2(num_key_value_heads=key_heads)
        fast = generate_greedy(model, PROMPTS, max_new_tokens=8, end_tokens=END)
        assert fast == [reference.greedy(model, p, 8, END) for p in PROMPTS]
