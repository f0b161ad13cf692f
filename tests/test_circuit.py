import pytest
import reference
import torch
from conftest import random_pivots, tiny_qwen2
from jaxtyping import TypeCheckError

from cca.controls.circuits import random_circuit
from cca.method.circuit import Circuit, learn_gates, read_prefixes
from cca.method.objective import margins, pivot_loss
from cca.method.options import CircuitOptions
from cca.method.prefixes import CachedPrefixes
from cca.model.components import find_components
from cca.model.gates import gated
from cca.records import KINDS

VOCABULARY = 60
OPTIONS = CircuitOptions(penalty=0.01, learning_rate=0.05, batch=4, epochs=6, min_steps=0, patience=50.0, cache_gib=1.0)


@pytest.fixture(params=[1, 2, 4], ids=["mqa", "gqa", "mha"])
def model(request):
    return tiny_qwen2(vocab_size=VOCABULARY, num_key_value_heads=request.param)


def random_gates(size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


def test_neutral_gates_change_no_logit(model):
    ids = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    parts = find_components(model)
    plain = model(input_ids=ids).logits
    with gated(model, parts, torch.full((parts.size,), 0.5)):
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_gates_act_at_the_last_position_only(model):
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    parts = find_components(model)
    plain = model(input_ids=ids).logits
    with gated(model, parts, random_gates(parts.size)):
        changed = model(input_ids=ids).logits
    assert torch.equal(changed[:, :-1], plain[:, :-1])
    assert not torch.allclose(changed[:, -1], plain[:, -1])


def test_the_context_restores_the_model_after_an_error(model):
    parts = find_components(model)
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), gated(model, parts, random_gates(parts.size)):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == before
    assert not model.model.layers[0].mlp.down_proj._forward_pre_hooks


def test_the_cached_gated_step_equals_the_full_prefix_gated_forward_in_value_and_gradient(model):
    pivots = random_pivots(6, VOCABULARY)
    parts = find_components(model)
    desired = torch.tensor([p.desired for p in pivots])
    undesired = torch.tensor([p.undesired for p in pivots])

    fast_gates = random_gates(parts.size).requires_grad_()
    step = CachedPrefixes(model, pivots, budget_gib=1.0).take(range(6))
    with gated(model, parts, fast_gates):
        fast = pivot_loss(step.logits(model), desired, undesired)
    (fast_gradient,) = torch.autograd.grad(fast, fast_gates)

    plain_gates = random_gates(parts.size).requires_grad_()
    with reference.projections_gated(model, parts, plain_gates):
        plain = reference.pivot_loss(model, pivots)
    (plain_gradient,) = torch.autograd.grad(plain, plain_gates)

    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast_gradient, plain_gradient, atol=1e-5, rtol=1e-4)
    assert plain_gradient.abs().max() > 1e-3, "the comparison must be of something"


def test_the_cached_gated_step_is_the_same_where_attention_is_the_models_own(model):
    pivots = random_pivots(6, VOCABULARY)
    parts = find_components(model)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        gates = random_gates(parts.size).requires_grad_()
        one_token = CachedPrefixes(model, pivots, budget_gib=1.0).take(range(6))
        with gated(model, parts, gates):
            logits = one_token.logits(model)
        return logits, torch.autograd.grad(logits.logsumexp(-1).sum(), gates)[0]

    ours = step()
    model.set_attn_implementation("eager")
    eager = step()
    torch.testing.assert_close(ours[0], eager[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], eager[1], atol=1e-5, rtol=1e-4)


def test_prefixes_over_the_memory_budget_give_the_same_logits(model):
    pivots = random_pivots(5, VOCABULARY)
    kept = CachedPrefixes(model, pivots, budget_gib=1.0)
    again = CachedPrefixes(model, pivots, budget_gib=1e-9)
    assert kept.stored is not None
    assert again.stored is None
    torch.testing.assert_close(kept.take([3, 1]).logits(model), again.take([3, 1]).logits(model))


def test_the_loss_is_undesired_minus_desired_of_each_pivots_own_row():
    logits = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    desired, undesired = torch.tensor([2, 0]), torch.tensor([0, 1])
    assert margins(logits, desired, undesired).tolist() == [3.0, -8.0]
    assert pivot_loss(logits, desired, undesired).item() == 2.5


def test_tensors_of_the_wrong_shape_are_found_under_test(tiny):
    logits, tokens = torch.zeros(3, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(TypeCheckError, match="desired"):
        margins(logits, tokens, tokens)
    with pytest.raises(TypeCheckError, match="logits"):
        margins(logits[None], tokens, tokens)
    parts = find_components(tiny)
    with pytest.raises(TypeCheckError, match="selected"):
        parts.rows(torch.ones(parts.size))  # not a mask


def test_a_high_penalty_empties_the_circuit_and_none_leaves_components(tiny):
    pivots = random_pivots(8, VOCABULARY)
    parts = find_components(tiny)
    empty = learn_gates(tiny, parts, pivots, OPTIONS.changed({"penalty": 100.0, "epochs": 20}))
    assert not empty.selected.any()
    free = learn_gates(tiny, parts, pivots, OPTIONS.changed({"penalty": 0.0, "epochs": 20}))
    assert free.losses[-1] < free.losses[0]
    assert 0 < free.density < 1


def test_it_stops_once_the_rounded_circuit_no_longer_changes(tiny):
    parts = find_components(tiny)
    options = OPTIONS.changed({"penalty": 100.0, "epochs": 40, "patience": 1.0})
    circuit = learn_gates(tiny, parts, random_pivots(8, VOCABULARY), options)
    assert circuit.stopped == "unchanged"
    assert len(circuit.history) < 40


def test_a_resumed_circuit_is_bit_identical(tiny, tmp_path):
    pivots, parts = random_pivots(8, VOCABULARY), find_components(tiny)
    whole = learn_gates(tiny, parts, pivots, OPTIONS)

    def interrupt(epoch: int, density: float, loss: float) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    for _ in range(2):  # the state of epoch 3 is not written, so it is done again
        with pytest.raises(KeyboardInterrupt):
            learn_gates(tiny, parts, pivots, OPTIONS, state_path=state, progress=interrupt)
    resumed = learn_gates(tiny, parts, pivots, OPTIONS, state_path=state)
    assert torch.equal(resumed.gates, whole.gates)
    assert torch.equal(resumed.history, whole.history)
    assert torch.equal(resumed.losses, whole.losses)


def test_each_step_tells_its_tokens_and_a_training_that_goes_on_where_it_begins(tiny, tmp_path):
    pivots, parts, state = random_pivots(8, VOCABULARY), find_components(tiny), tmp_path / "state.safetensors"
    told: list[tuple[int, float]] = []
    work = lambda tokens, epochs: told.append((tokens, epochs))
    few, more = OPTIONS.changed({"epochs": 1, "batch": 3}), OPTIONS.changed({"epochs": 2, "batch": 3})
    learn_gates(tiny, parts, pivots, few, state_path=state, work=work)
    assert [tokens for tokens, _ in told] == [3, 3, 2]
    assert [epochs for _, epochs in told] == pytest.approx([1 / 3, 2 / 3, 1])
    told.clear()
    learn_gates(tiny, parts, pivots, more, state_path=state, work=work)
    assert told[0] == (0, 1.0)
    assert [epochs for _, epochs in told[1:]] == pytest.approx([4 / 3, 5 / 3, 2])


def test_prefixes_that_are_not_kept_count_in_every_step(tiny):
    pivots = random_pivots(3, VOCABULARY)
    told: list[int] = []
    options = OPTIONS.changed({"epochs": 1, "cache_gib": 1e-9})
    learn_gates(tiny, find_components(tiny), pivots, options, work=lambda tokens, _: told.append(tokens))
    assert told == [sum(len(p.prefix) for p in pivots)]


def test_prefixes_that_are_read_once_serve_every_lambda(tiny):
    pivots, parts = random_pivots(8, VOCABULARY), find_components(tiny)
    read: list[int] = []
    prefixes = read_prefixes(tiny, pivots, OPTIONS, read.append)
    assert sum(read) == sum(len(p.prefix) - 1 for p in pivots)
    passes: list[int] = []
    hook = tiny.register_forward_hook(lambda *_: passes.append(1))
    for penalty in (0.01, 0.5):
        options = OPTIONS.changed({"penalty": penalty, "epochs": 2})
        passes.clear()
        again = learn_gates(tiny, parts, pivots, options, prefixes=prefixes)
        assert len(passes) == 2 * 2  # a pass a step, and none to read
        with_its_own = learn_gates(tiny, parts, pivots, options)
        assert torch.equal(again.history, with_its_own.history)
    hook.remove()


def test_a_circuit_survives_saving(tmp_path):
    circuit = Circuit(
        torch.tensor([0.2, 0.9]), torch.zeros(3, 2), torch.ones(4), torch.tensor([[1, 1, 0, 0]]), "epochs"
    )
    circuit.save(tmp_path / "c.safetensors")
    loaded = Circuit.load(tmp_path / "c.safetensors")
    assert loaded.selected.tolist() == [False, True]
    assert (loaded.stopped, loaded.density, loaded.sizes.tolist()) == ("epochs", 0.5, [[1, 1, 0, 0]])


def test_a_random_circuit_has_the_same_counts_per_kind(tiny):
    parts = find_components(tiny)
    selected = random_gates(parts.size) > 0.8
    control = random_circuit(parts, selected, seed=0)
    assert parts.counts(control) == parts.counts(selected)
    assert not torch.equal(control, selected)


def test_rows_of_components_are_the_rows_of_their_projections(tiny):
    parts = find_components(tiny)
    wanted = {(1, "query", 2), (0, "key", 1), (2, "value", 0), (2, "neuron", 95)}
    selected = torch.tensor([tuple(c) in wanted for c in parts])
    rows = {name: r.tolist() for name, r in parts.rows(selected).items()}
    assert rows == {
        "model.layers.1.self_attn.q_proj.weight": list(range(32, 48)),
        "model.layers.0.self_attn.k_proj.weight": list(range(16, 32)),
        "model.layers.2.self_attn.v_proj.weight": list(range(16)),
        "model.layers.2.mlp.up_proj.weight": [95],
    }
    assert parts.counts(selected) == dict.fromkeys(KINDS, 1)


def test_a_zero_gate_equals_zeroing_the_components_rows_for_values_and_neurons(tiny):
    """With one position, the last, a value head or neuron that is gated away is one whose rows are zero."""
    parts = find_components(tiny)
    gates = torch.full((parts.size,), 0.5)
    chosen = [i for i, c in enumerate(parts) if tuple(c) in {(1, "value", 1), (0, "neuron", 7)}]
    gates[chosen] = 0.0
    ids = torch.tensor([[17]])
    with gated(tiny, parts, gates):
        removed = tiny(input_ids=ids).logits
    with torch.no_grad():
        tiny.model.layers[1].self_attn.v_proj.weight[16:32] = 0
        tiny.model.layers[1].self_attn.v_proj.bias[16:32] = 0
        tiny.model.layers[0].mlp.up_proj.weight[7] = 0
    torch.testing.assert_close(removed, tiny(input_ids=ids).logits)
