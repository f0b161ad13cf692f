"""Every supported family, float32: gates, cached steps, deltas and pivots against the plain methods.

CCA_TEST_DEVICE=cuda runs this file on a GPU.
"""

import pytest
import reference
import torch
from conftest import last_delta, random_pivots
from families import DEVICE, FAMILIES, MIXTURES, VOCABULARY, family_config, family_model, some_rows, tokens

from cca.method.objective import pivot_loss
from cca.method.prefixes import CachedPrefixes
from cca.method.update import full_gradient
from cca.model.components import Component, Components, find_components
from cca.model.delta import Delta, row_view
from cca.model.gates import gated
from cca.model.generate import generate_greedy
from cca.model.verify import verify_components
from cca.model.weights import empty_model


def random_gates(size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1)).to(DEVICE)


# ---- where components are ----


def test_the_components_are_where_the_model_computes_with_them(model, parts):
    verify_components(model, parts)


def test_the_components_are_known_without_weights(case, parts):
    bare = find_components(empty_model(family_config(*case), "m"))
    assert list(bare) == list(parts)
    everything = torch.ones(parts.size, dtype=torch.bool)
    for (name, rows), (bare_name, bare_rows) in zip(
        parts.rows(everything).items(), bare.rows(everything).items(), strict=True
    ):
        assert name == bare_name
        assert torch.equal(rows, bare_rows)


def test_no_row_has_two_owners(parts):
    for name in parts.rows(torch.ones(parts.size, dtype=torch.bool)):
        owned = [o.rows.flatten() for layer in parts.layers for o in layer.owned() if o.weight == name]
        rows = torch.cat(owned)
        assert len(rows.unique()) == len(rows)


# ---- gates ----


def test_neutral_gates_change_no_logit(case, model, parts):
    ids = tokens(3, 11)
    plain = model(input_ids=ids).logits
    with gated(model, parts, torch.full((parts.size,), 0.5, device=DEVICE)):
        neutral = model(input_ids=ids).logits
    # a mixture's tokens are summed expert by expert, in another order than by the stock function
    assert (neutral - plain).abs().max() <= (1e-5 if case[0] in MIXTURES else 0)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_gates_act_at_the_last_position_only(case, model, parts):
    ids = tokens(2, 9)
    plain = model(input_ids=ids).logits
    with gated(model, parts, random_gates(parts.size)):
        changed = model(input_ids=ids).logits
    torch.testing.assert_close(changed[:, :-1], plain[:, :-1], atol=1e-5 if case[0] in MIXTURES else 0, rtol=0)
    assert not torch.allclose(changed[:, -1], plain[:, -1], atol=1e-2)


def _zero(model, chosen: Component) -> None:
    """Make a component's output zero by its rows; behind a normalisation over all heads, by that one's weights."""
    parts = find_components(model)
    selected = torch.tensor([c == chosen for c in parts])
    attention = parts.layers[chosen.layer].attention
    norm = {"query": "q_norm", "key": "k_norm"}.get(chosen.kind)
    across = getattr(attention, norm, None) if norm else None
    for name, rows in parts.rows(selected).items():
        if across is not None and len(across.weight) > len(rows):
            across.weight[rows] = 0
            continue
        row_view(model, name)[rows] = 0
        bias = getattr(model.get_submodule(name.rpartition(".")[0]), "bias", None)
        if bias is not None:
            bias[rows] = 0


def test_a_zero_gate_equals_zeroing_the_components_rows_for_the_last_token(case, model, parts):
    pivots = random_pivots(3, VOCABULARY)
    prefixes = CachedPrefixes(model, pivots, budget_gib=1.0)
    plain = prefixes.take(range(3)).logits(model)
    count = parts.layers[1].sizes
    effects = []
    for kind, number in (("query", count[0] - 1), ("key", count[1] - 1), ("value", 0), ("neuron", count[3] - 1)):
        chosen = Component(1, kind, number)
        gates = torch.tensor([0.0 if c == chosen else 0.5 for c in parts], device=DEVICE)
        with gated(model, parts, gates):
            removed = prefixes.take(range(3)).logits(model)
        zeroed = family_model(*case).to(DEVICE)
        with torch.no_grad():
            _zero(zeroed, chosen)
        torch.testing.assert_close(removed, prefixes.take(range(3)).logits(zeroed), atol=1e-5, rtol=1e-5)
        effects.append((removed - plain).abs().max().item())
    assert min(effects[:3]) > 1e-4, "each removal must do something"


@pytest.mark.parametrize("family", FAMILIES)
def test_gate_gradients_match_finite_differences(family):
    model = family_model(family).double().to(DEVICE)
    parts = find_components(model)
    ids = tokens(2, 9)
    weights = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(3)).double().to(DEVICE)

    def value(gates: torch.Tensor) -> torch.Tensor:
        with gated(model, parts, gates):
            return (model(input_ids=ids).logits[:, -1] * weights).sum()

    gates = (0.3 + 0.4 * random_gates(parts.size)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(value(gates), gates)
    for kind in ("query", "key", "value", "neuron"):
        of_kind = torch.tensor([c.kind == kind for c in parts], device=DEVICE)
        direction = torch.where(of_kind, gradient / gradient[of_kind].norm(), 0.0)
        step = 1e-3
        with torch.no_grad():
            slope = (value(gates + step * direction) - value(gates - step * direction)) / (2 * step)
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-3)
        assert abs(slope.item()) > 1e-3


# ---- the cached step of stage 2 ----


def _cached_step(model, parts: Components, pivots, **options) -> tuple[torch.Tensor, torch.Tensor]:
    gates = random_gates(parts.size).requires_grad_()
    step = CachedPrefixes(model, pivots, budget_gib=1.0, **options).take(range(len(pivots)))
    with gated(model, parts, gates):
        desired, undesired = torch.tensor([p.desired for p in pivots]), torch.tensor([p.undesired for p in pivots])
        loss = pivot_loss(step.logits(model), desired, undesired)
    return loss, torch.autograd.grad(loss, gates)[0]


def _full_pass(model, parts: Components, pivots) -> tuple[torch.Tensor, torch.Tensor]:
    gates = random_gates(parts.size).requires_grad_()
    with reference.projections_gated(model, parts, gates):
        loss = reference.pivot_loss(model, pivots)
    return loss, torch.autograd.grad(loss, gates)[0]


@pytest.mark.parametrize("padding", ["padded", "unpadded"])
@pytest.mark.parametrize("attention", ["stock", "eager"])
def test_the_cached_gated_step_equals_full_prefix_passes_in_value_and_gradient(model, parts, padding, attention):
    """Prefixes are longer than the sliding window (6) of the families that have one."""
    pivots = random_pivots(6, VOCABULARY, seed=5) if padding == "padded" else random_pivots(1, VOCABULARY, seed=9)
    assert max(len(p.prefix) for p in pivots) > 12
    stock = model.config._attn_implementation
    if attention == "eager":
        model.set_attn_implementation("eager")
    try:
        fast, fast_gradient = _cached_step(model, parts, pivots)
        plain, plain_gradient = _full_pass(model, parts, pivots)
    finally:
        model.set_attn_implementation(stock)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast_gradient, plain_gradient, atol=1e-5, rtol=1e-4)
    for kind in ("query", "key", "value", "neuron"):
        of_kind = torch.tensor([c.kind == kind for c in parts])
        assert plain_gradient[of_kind].abs().max() > 1e-4, f"the comparison must be of something: {kind}"


def test_a_step_from_a_constant_cache_is_the_same_step(model, parts):
    pivots = random_pivots(4, VOCABULARY)
    for ours, plain in zip(
        _cached_step(model, parts, pivots, constant=True), _cached_step(model, parts, pivots), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def _plain_flash(query, key, value, mask, *, query_length, softmax_scale, attn_implementation, **options):
    """What flash attention computes, written out: (B, T, H, D) in and out, a mask of padding (B, T) or none."""
    assert attn_implementation == "flash_attention_2", "it must see the name by which it was chosen"
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT * softmax_scale
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    behind = torch.arange(key.shape[2])[None, :] - (torch.arange(query_length)[:, None] + key.shape[2] - query_length)
    seen = behind <= 0
    if options.get("sliding_window"):
        seen &= behind > -options["sliding_window"]
    if mask is not None:
        seen = seen & mask[:, None, None, :].bool()
    return (scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3", "phi3"])
def test_the_cached_gated_step_is_the_same_through_flash_attention(family, monkeypatch):
    """transformers' own flash attention function and masks, with its kernel, which needs a GPU, written out."""
    from transformers.integrations import flash_attention

    pivots = random_pivots(6, VOCABULARY, seed=5)
    model = family_model(family, "gqa")
    parts = find_components(model)
    plain, plain_gradient = _full_pass(model, parts, pivots)
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", _plain_flash)
    model.config._attn_implementation = "flash_attention_2"
    fast, fast_gradient = _cached_step(model, parts, pivots)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast_gradient, plain_gradient, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3", "phi3"])
def test_writing_is_the_same_through_flash_attention(family, monkeypatch):
    from transformers.integrations import flash_attention

    model = family_model(family, "gqa")
    prompts = [list(p.prefix) for p in random_pivots(6, VOCABULARY, seed=6)] * 2
    plain = generate_greedy(model, prompts, max_new_tokens=12, end_tokens=frozenset(), slots=5)
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", _plain_flash)
    model.config._attn_implementation = "flash_attention_2"
    assert generate_greedy(model, prompts, max_new_tokens=12, end_tokens=frozenset(), slots=5) == plain


# ---- row deltas ----


def test_a_trained_delta_equals_updating_the_weight_rows_directly(case, model, parts):
    pivots, rows = random_pivots(6, VOCABULARY), some_rows(parts)
    delta = last_delta(model, rows, pivots)
    direct = family_model(*case).to(DEVICE)
    reference.descend_weights(direct, rows, pivots, lr=0.02, steps=3)
    moved = 0.0
    for name, parameter in direct.named_parameters():
        before = model.get_parameter(name)
        if name not in rows:
            assert torch.equal(parameter, before)
            continue
        new, old = row_view(direct, name), row_view(model, name)
        kept = torch.ones(len(new), dtype=torch.bool)
        kept[rows[name]] = False
        assert torch.equal(new[kept], old[kept]), "unselected rows stay bit-identical"
        change = new[rows[name]] - old[rows[name]]
        torch.testing.assert_close(delta.weights[name].values, change, atol=1e-6, rtol=1e-3)
        moved = max(moved, change.abs().max().item())
    assert moved > 1e-3


def _random_delta(model, parts: Components, size: float = 0.05) -> Delta:
    delta = Delta.zeros(model, some_rows(parts))
    for rows in delta.weights.values():
        rows.values.copy_(torch.randn(rows.values.shape, generator=torch.Generator().manual_seed(0)) * size)
    return delta


def test_attached_applied_and_merged_deltas_compute_the_same_and_leave_nothing_behind(case, model, parts):
    before = {name: p.clone() for name, p in model.named_parameters()}
    delta, ids = _random_delta(model, parts), tokens(2, 9)
    plain = model(input_ids=ids).logits
    with delta.attached(model):
        attached = model(input_ids=ids).logits
    with delta.applied(model):
        applied = model(input_ids=ids).logits
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) is (name not in delta.weights)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "revert is bit-exact"
    assert torch.equal(model(input_ids=ids).logits, plain)
    merged = family_model(*case).to(DEVICE)
    rounding = delta.merge(merged)
    assert torch.equal(merged(input_ids=ids).logits, applied)
    assert rounding.unchanged == 0
    assert rounding.error < 1e-5
    torch.testing.assert_close(attached, applied, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attached, plain, atol=1e-3)


def test_gates_work_on_top_of_an_attached_delta(case, model, parts):
    delta, ids, gates = _random_delta(model, parts), tokens(2, 9), random_gates(parts.size)
    with delta.attached(model), gated(model, parts, gates):
        both = model(input_ids=ids).logits
    merged = family_model(*case).to(DEVICE)
    delta.merge(merged)
    with gated(merged, find_components(merged), gates):
        torch.testing.assert_close(both, merged(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradient(model, parts):
    delta, pivots = _random_delta(model, parts), random_pivots(5, VOCABULARY)
    loss, kept = full_gradient(model, delta, pivots, 3)
    again_loss, again = full_gradient(model, delta, pivots, 3, recompute=[layer.module for layer in parts.layers])
    assert loss == again_loss
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-7, rtol=1e-5)
    assert not any("forward" in layer.module.__dict__ for layer in parts.layers)
