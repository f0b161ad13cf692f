import math

import pytest
import torch
from conftest import random_pivots

from cca.evaluation import scores as evaluation
from cca.evaluation.scores import Text, choices, drift, plain_texts
from cca.model.components import find_components
from cca.model.delta import Delta


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


def test_drift_is_the_mean_divergence_and_perplexity_ratio_over_the_written_tokens(
    bundled, prompter, problems, monkeypatch
):
    parts = find_components(bundled.network)
    rows = parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) > 0.5)
    delta = Delta.zeros(bundled.network, rows)
    for changed in delta.weights.values():
        changed.values.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    few = [Text(prompter.prompt(p), prompter.reference(p.solution)) for p in problems[::17]]
    kl, ratio = _plain_drift(bundled.network, delta, few)
    assert kl > 1e-5
    assert abs(ratio - 1) > 1e-4
    found = drift(bundled.network, delta, few, batch=4)
    assert (found.kl, found.perplexity_ratio) == pytest.approx((kl, ratio), rel=1e-3)
    assert found.tokens == sum(len(t.written) for t in few)
    monkeypatch.setattr(evaluation, "_LOGITS", 1)  # one problem at a time
    assert drift(bundled.network, delta, few, batch=4)[:2] == pytest.approx((kl, ratio), rel=1e-3)
    nothing = drift(bundled.network, Delta.zeros(bundled.network, rows), few, batch=4)
    assert nothing[:2] == pytest.approx((0, 1), abs=1e-6)


def test_a_choice_is_the_log_probability_of_both_tokens_after_the_prefix_whatever_the_batch(tiny):
    pivots = random_pivots(7, tiny.config.vocab_size)
    one, many = (choices(tiny, pivots, arm="base", batch=size) for size in (1, 4))
    for pivot, alone, together in zip(pivots, one, many, strict=True):
        plain = tiny(input_ids=torch.tensor([pivot.prefix])).logits[0, -1].log_softmax(-1)
        assert (alone.problem, alone.arm) == (pivot.problem, "base")
        expected = (plain[pivot.desired].item(), plain[pivot.undesired].item())
        assert (alone.desired, alone.undesired) == pytest.approx(expected, abs=1e-4)
        assert (together.desired, together.undesired) == pytest.approx(expected, abs=1e-4)


def test_plain_text_is_measured_but_for_the_first_token_of_each_piece():
    assert plain_texts(range(7), length=3) == [Text((0,), (1, 2)), Text((3,), (4, 5))]
