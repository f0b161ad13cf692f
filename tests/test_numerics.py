"""16-bit base weights: what stays float32, what rounding leaves of a merge, and where a stage stops that overflows."""

import pytest
import torch
from conftest import CIRCUIT, last_delta, random_pivots
from families import VOCABULARY, family_model

from cca.evaluation.drift import Text, drift
from cca.method.circuit import learn_gates
from cca.method.objective import margins, pivot_loss
from cca.method.prefixes import CachedPrefixes
from cca.model.components import find_components
from cca.model.delta import Delta, row_view
from cca.model.gates import gated
from cca.model.generate import generate_greedy
from cca.model.numerics import check_finite
from cca.model.read import read, texts
from cca.model.verify import verify_components

SIXTEEN = [torch.bfloat16, torch.float16]
FAMILIES = ["llama", "gemma2", "gpt2", "qwen3_moe"]


def _delta(model, size: float) -> Delta:
    parts = find_components(model)
    rows = parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(2)) > 0.7)
    delta = Delta.zeros(model, rows)
    for changed in delta.weights.values():
        changed.values.normal_(std=size, generator=torch.Generator().manual_seed(0))
    return delta


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_losses_and_deltas_are_float32_on_sixteen_bit_weights(family, dtype):
    model = family_model(family).to(dtype)
    parts, pivots = find_components(model), random_pivots(6, VOCABULARY)
    circuit = learn_gates(model, parts, pivots, CIRCUIT)
    assert circuit.gates.dtype == torch.float32
    steps = (circuit.history[-1] - circuit.history[0]).abs()
    assert ((steps > 0) & (steps < 0.3)).any()
    rows = parts.rows(circuit.gates > 0.5)
    delta = last_delta(model, rows, pivots, learning_rate=1e-4, steps=2, batch=3)
    sizes = torch.cat([changed.values.abs().flatten() for changed in delta.weights.values()])
    assert sizes.dtype == torch.float32
    assert 0 < sizes[sizes > 0].median() < 1e-3, "a step of 1e-4 x gradient is kept"
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_gradient_of_the_gates_is_that_of_float32_but_for_rounding(family, dtype):
    pivots = random_pivots(6, VOCABULARY)
    gradients = []
    for model in (family_model(family), family_model(family).to(dtype)):
        parts = find_components(model)
        gates = torch.full((parts.size,), 0.6, requires_grad=True)
        step = CachedPrefixes(model, pivots, 1.0).take(range(6))
        with gated(model, parts, gates):
            logits = step.logits(model)
        loss = pivot_loss(
            logits, *(torch.tensor([getattr(p, side) for p in pivots]) for side in ("desired", "undesired"))
        )
        assert loss.dtype == torch.float32
        gradients += torch.autograd.grad(loss, gates)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


def test_margins_of_sixteen_bit_logits_are_taken_in_float32():
    logits = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    margin = margins(logits, torch.tensor([1]), torch.tensor([0]))
    assert margin.dtype == torch.float32
    assert margin.item() == 0.0078125


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_merge_into_sixteen_bits_says_how_much_of_it_survived(family):
    large, small = _delta(family_model(family), 0.3), _delta(family_model(family), 1e-5)
    model = family_model(family).to(torch.bfloat16)
    before = {name: row_view(model, name).clone() for name in small.weights}
    lost = small.merge(model)
    assert lost.unchanged > 0.8
    assert lost.error > 0.5
    same = torch.cat([(row_view(model, n)[r.index] == before[n][r.index]).flatten() for n, r in small.weights.items()])
    assert same.float().mean().item() == pytest.approx(lost.unchanged, abs=1e-6), "the report is what happened"
    kept = large.merge(family_model(family).to(torch.bfloat16))
    assert kept.unchanged < 0.05
    assert kept.error < 0.02


def test_a_small_delta_acts_on_sixteen_bit_weights_that_a_merge_would_not_change():
    model = family_model("llama").to(torch.bfloat16)
    delta, ids = _delta(model, 2e-4), torch.tensor([[3, 4, 5, 6]])
    plain = model(input_ids=ids).logits
    before = {name: p.clone() for name, p in model.named_parameters()}
    with delta.active(model):
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        active = model(input_ids=ids).logits
    assert not torch.equal(active, plain)


def test_a_delta_on_float32_weights_is_active_in_the_weights_themselves():
    model = family_model("llama")
    delta = _delta(model, 0.1)
    name = next(iter(delta.weights))
    before = model.get_parameter(name).clone()
    with delta.active(model):
        assert not torch.equal(model.get_parameter(name), before)
    assert torch.equal(model.get_parameter(name), before)


@pytest.fixture
def overflowing():
    """float16 weights of which one layer's activations leave the type's range."""
    model = family_model("llama").to(torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    return model


def test_every_stage_stops_at_a_value_that_is_not_finite_and_says_after_which_module(overflowing):
    model, pivots = overflowing, random_pivots(4, VOCABULARY)
    parts = find_components(model)
    where = r"not finite, first after model\.layers\.1\.mlp\.down_proj \(Linear, float16\); .*bfloat16"
    with pytest.raises(FloatingPointError, match=where):
        verify_components(model, parts)
    with pytest.raises(FloatingPointError, match=where):
        read(model, texts([p.prefix for p in pivots]))
    with pytest.raises(FloatingPointError, match=where):
        learn_gates(model, parts, pivots, CIRCUIT)


def test_decoding_stops_where_only_a_new_token_overflows(overflowing):
    model = family_model("llama")
    model.lm_head.weight.data[:, 0] = 0
    first = generate_greedy(model, [[3, 4]], max_new_tokens=1, end_tokens=frozenset())[0][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[first] = float("nan")
    with pytest.raises(
        FloatingPointError, match="logits after 1 new tokens are not finite; look at the model's weights"
    ):
        generate_greedy(model, [[3, 4]], max_new_tokens=4, end_tokens=frozenset())


def test_drift_that_is_not_finite_stops_the_evaluation(prompter, problems, bundled):
    model = family_model("llama", vocab_size=bundled.network.config.vocab_size, max_position_embeddings=512)
    delta = _delta(model, float("inf"))
    with pytest.raises(FloatingPointError, match="drift is not finite"):
        drift(model, delta, [Text(prompter.prompt(p), prompter.reference(p.solution)) for p in problems[:2]], 2)


def test_finite_values_pass():
    check_finite(torch.tensor([1.0, -65504.0]), "these are", torch.nn.Linear(1, 1))
