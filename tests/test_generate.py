import itertools
import random

import numpy as np
import pytest
import reference
import torch
from conftest import tiny_qwen2
from hypothesis import given, settings
from hypothesis import strategies as st

from cca.model.attention import attend
from cca.model.generate import Row, Watch, _Writing, generate_greedy, write
from cca.model.read import Text, common_start, passing, read, texts
from cca.model.sampling import BLOCK, argmax, pick, stream

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
    yield
    torch.set_num_threads(before)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_to_the_last_bit_the_logits_of_a_row_do_not_depend_on_how_long_the_rows_beside_it_are(dtype, monkeypatch):
    """Seven queries a key head, of 64 numbers, over 100 to 400 keys: sums of so many are split in other places."""
    model = tiny_qwen2(num_attention_heads=7, num_key_value_heads=1, head_dim=64, max_position_embeddings=1024).to(
        dtype
    )
    draw = random.Random(0)
    prompts = [[draw.randrange(1, 40) for _ in range(length)] for length in (96, 104, 120, 190, 200, 250, 366, 380)]
    seen: dict[tuple[int, int], torch.Tensor] = {}
    chosen = _Writing._chosen

    def look(self, logits):
        for row, values in zip(self.at_work, logits, strict=True):
            seen[row.order[0], len(row.tokens)] = values.clone()
        return chosen(self, logits)

    monkeypatch.setattr(_Writing, "_chosen", look)
    for slots, order in ((8, range(8)), (3, range(8)), (1, range(8)), (5, (6, 1, 7, 0, 5, 3, 2, 4))):
        before, seen = seen, {}
        rows = [Row(Text(tuple(prompts[n])), 12 + n, (n,)) for n in order]
        write(model, rows, slots=slots, end_tokens=frozenset())
        assert len(seen) == sum(11 + n for n in range(8))
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


# ---- sampling ----


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).expand(20_000, -1)
    uniforms = torch.from_numpy(stream(0, "test").random(20_000))
    shares = torch.bincount(pick(logits, 1.0, uniforms), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.015, rtol=0)


def test_sampling_from_a_large_vocabulary_follows_the_distribution():
    vocabulary = 2 * BLOCK + 100
    chances = torch.full((vocabulary,), 0.3 / vocabulary)
    for token, chance in ((7, 0.1), (BLOCK - 1, 0.2), (BLOCK, 0.15), (vocabulary - 1, 0.25)):
        chances[token] += chance
    uniforms = torch.from_numpy(stream(0, "test").random(6_000))
    found = pick((chances.log() * 1.5).expand(6_000, -1), 1.5, uniforms)
    counts = torch.bincount(found, minlength=vocabulary)
    for token in (7, BLOCK - 1, BLOCK, vocabulary - 1):
        assert abs(counts[token] / 6_000 - chances[token]) < 0.02
    rest = counts.clone()
    rest[[7, BLOCK - 1, BLOCK, vocabulary - 1]] = 0
    assert abs(rest.sum() / 6_000 - 0.3) < 0.025
    assert rest.max() <= 4, "the rest is spread over all tokens"
    assert int((rest[:BLOCK] > 0).sum()) > 500
    assert int((rest[2 * BLOCK :] > 0).sum()) > 5, "those of the last, shorter block among them"


NUMBERS = torch.from_numpy(stream(0, "test").random(4_000))


@pytest.mark.parametrize(
    ("logits", "k", "left"),
    [
        ([3.0, 1.0, 2.0, 0.0], 2, [0, 2]),
        ([1.0, 3.0, 1.0, 2.0, 1.0], 3, [0, 1, 2, 3, 4]),
        ([2.0, 1.0, 2.0], 1, [0, 2]),
        ([0.0, 5.0, 1.0], 1, [1]),
        ([1.0] * 6, 2, range(6)),
        ([1.0, 2.0, 1.5], 3, range(3)),
        ([1.0, 2.0, 1.5], 50, range(3)),
        ([-torch.inf, 1.0, -torch.inf, 2.0], 3, [1, 3]),
        ([-torch.inf, 1.0, 0.5, 2.0], 2, [1, 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sample_is_one_of_the_k_likeliest_and_of_those_that_equal_the_last_of_them(logits, k, left, dtype):
    row = torch.tensor(logits, dtype=dtype)
    found = torch.bincount(pick(row.expand(4_000, -1), 1.3, NUMBERS, k), minlength=len(row)) / 4_000
    expected = reference.chances(row, 1.3, k)
    assert expected.nonzero()[:, 0].tolist() == found.nonzero()[:, 0].tolist() == list(left)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_the_k_likeliest_are_found_in_all_blocks_of_a_large_vocabulary():
    vocabulary = 2 * BLOCK + 100
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    high = [7, BLOCK - 1, BLOCK, BLOCK + 5, vocabulary - 1]
    logits[high] = torch.tensor([5.0, 5.5, 6.0, 5.0, 6.5])
    found = torch.bincount(pick(logits.expand(4_000, -1), 1.3, NUMBERS, 4), minlength=vocabulary) / 4_000
    assert found.nonzero()[:, 0].tolist() == high, "two are as likely as the fourth"
    torch.testing.assert_close(found, reference.chances(logits, 1.3, 4), atol=0.03, rtol=0)


@given(
    vocabulary=st.sampled_from([1, 2, 9, 60, BLOCK, BLOCK + 1, 2 * BLOCK + 17]),
    k=st.integers(1, 70) | st.just(10**6),
    levels=st.integers(1, 400),
    hidden=st.sampled_from([0.0, 0.5, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_no_sample_is_a_token_that_transformers_would_not_draw_and_none_depends_on_other_rows(
    vocabulary, k, levels, hidden, dtype, seed
):
    """With few levels many are equal, and a part of them is impossible."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randint(0, levels, (5, vocabulary), generator=generator) / 7).to(dtype)
    impossible = torch.rand(5, vocabulary, generator=generator) < hidden
    impossible[:, seed % vocabulary] = False
    logits = logits.masked_fill(impossible, -torch.inf)
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    together = pick(logits, 0.8, uniforms, k).tolist()
    for n, token in enumerate(together):
        assert reference.chances(logits[n], 0.8, k)[token] > 0
        assert pick(logits[n : n + 1], 0.8, uniforms[n : n + 1], k).tolist() == [token]
    if k >= vocabulary:
        assert together == pick(logits, 0.8, uniforms).tolist()
    if k == 1:
        assert logits.gather(1, torch.tensor(together)[:, None])[:, 0].tolist() == logits.amax(-1).tolist()
    assert pick(logits, 0.0, uniforms, k).tolist() == argmax(logits).tolist()


@pytest.mark.parametrize("vocabulary", [1, 50, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17])
def test_the_argmax_is_the_first_of_the_highest(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 5, (40, vocabulary), generator=generator).bfloat16()  # with many equal ones
    assert argmax(logits).tolist() == np.argmax(logits.float().numpy(), axis=1).tolist()


def test_streams_differ_by_key_and_repeat():
    assert stream(0, "p", 1).random() == stream(0, "p", 1).random()
    assert len({stream(0, "p", 1).random(), stream(0, "p", 2).random(), stream(1, "p", 1).random()}) == 3


def test_multi_head_and_multi_query_models_decode_alike():
    for key_heads in (1, 4):
        model = tiny_qwen2(num_key_value_heads=key_heads)
        fast = generate_greedy(model, PROMPTS, max_new_tokens=8, end_tokens=END)
        assert fast == [reference.greedy(model, p, 8, END) for p in PROMPTS]
