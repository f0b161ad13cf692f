import numpy as np
import reference
import torch
from conftest import tiny_qwen2

from cca.model.generate import decode, generate_greedy, pick, stream
from cca.model.read import common_start, prefill

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


def test_a_prefill_cut_anywhere_continues_like_the_shorter_sequence(tiny):
    read = prefill(tiny, PROMPTS, predict_from=[0] * 4)
    assert read.predictions is not None
    cut = [2, 1, 5, 1]
    cache, mask = read.take(range(4), cut, room=10)
    first = read.predictions[torch.arange(4), torch.tensor(cut) - 1]
    tokens = decode(tiny, cache, mask, first, limits=[10] * 4, end_tokens=END)
    assert tokens == [reference.greedy(tiny, p[:n], 10, END) for p, n in zip(PROMPTS, cut, strict=True)]


def test_the_common_start_of_sequences_is_what_all_of_them_begin_with():
    start = list(range(100))
    several = [[*start, 7, 8], [*start, 7, 9], [*start, 5]]
    assert common_start(several, 200) == 100
    assert common_start(several, 80) == 80
    assert common_start([*several, start[:70]], 200) == 70
    assert common_start([*several, [*start[:9], 3]], 200) == 0, "too short to be worth a pass of its own"
    assert common_start(several[:1], 200) == 0


def test_prefill_logits_equal_single_passes(tiny):
    read, predicting = prefill(tiny, PROMPTS), prefill(tiny, PROMPTS, predict_from=[1, 0, 3, 0])
    assert predicting.predictions is not None
    for row, (prompt, first) in enumerate(zip(PROMPTS, [1, 0, 3, 0], strict=True)):
        alone = tiny(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(read.logits[row], alone[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(predicting.logits[row], alone[-1], atol=1e-5, rtol=1e-5)
        assert predicting.predictions[row, : len(prompt) - first].tolist() == alone[first:].argmax(-1).tolist()


def _sampled(model, prompts, names, limit=16):
    read = prefill(model, prompts)
    cache, mask = read.take(range(len(prompts)), read.lengths.tolist(), room=limit)
    uniforms = np.stack([stream(3, name).random(limit) for name in names])
    first = pick(read.logits, 0.9, torch.from_numpy(uniforms[:, 0]))
    limits = [limit] * len(prompts)
    return decode(model, cache, mask, first, limits=limits, end_tokens=END, temperature=0.9, uniforms=uniforms)


def test_sampling_does_not_depend_on_batch_or_order(tiny):
    together = _sampled(tiny, PROMPTS, "abcd")
    reverse = _sampled(tiny, PROMPTS[::-1], "dcba")[::-1]
    alone = [_sampled(tiny, [p], name)[0] for p, name in zip(PROMPTS, "abcd", strict=True)]
    assert together == reverse == alone


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).expand(20_000, -1)
    uniforms = torch.from_numpy(stream(0, "test").random(20_000))
    shares = torch.bincount(pick(logits, 1.0, uniforms), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.015, rtol=0)


def test_streams_differ_by_key_and_repeat():
    assert stream(0, "p", 1).random() == stream(0, "p", 1).random()
    assert len({stream(0, "p", 1).random(), stream(0, "p", 2).random(), stream(1, "p", 1).random()}) == 3


def test_multi_head_and_multi_query_models_decode_alike():
    for key_heads in (1, 4):
        model = tiny_qwen2(num_key_value_heads=key_heads)
        fast = generate_greedy(model, PROMPTS, max_new_tokens=8, end_tokens=END)
        assert fast == [reference.greedy(model, p, 8, END) for p in PROMPTS]
