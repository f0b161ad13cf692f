"""What is drawn: the distribution, the k likeliest, the argmax, and streams of random numbers."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cca.model.sampling import BLOCK, argmax, pick, stream


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
