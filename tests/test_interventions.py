"""The controls: each intervention does what it says, nothing where it is zero, and leaves the model as it was."""

import pytest
import torch
from conftest import random_pivots, tiny_qwen2
from families import family_model

from cca.controls.circuits import largest_rows
from cca.controls.load import load_intervention
from cca.controls.lora import LowRank
from cca.controls.vectors import OutputBias, Steering
from cca.controls.weights import WeightChange
from cca.errors import InputError
from cca.method.objective import last_margins
from cca.method.options import UpdateOptions
from cca.method.update import Validation, full_gradient, train
from cca.model.components import find_components
from cca.model.delta import Delta

VOCABULARY = 96
IDS = torch.arange(1, 11).reshape(2, 5)


@pytest.fixture
def model():
    return tiny_qwen2(vocab_size=VOCABULARY)


def everything(model) -> dict[str, torch.Tensor]:
    parts = find_components(model)
    return parts.rows(torch.ones(parts.size, dtype=torch.bool))


def interventions(model) -> dict:
    layers = find_components(model).layers
    width = model.config.hidden_size
    lora = LowRank.fresh(model, everything(model), 2, 2.0, seed=0)
    return {
        "bias": OutputBias.zeros(torch.tensor([3, 7, 90])),
        "steering": Steering.zeros(layers[-1].name, width, torch.device("cpu")),
        "lora": lora,
        "rows": Delta.zeros(model, {name: rows[:3] for name, rows in everything(model).items()}),
    }


KINDS = ("bias", "steering", "lora", "rows")


def shaken(intervention):
    generator = torch.Generator().manual_seed(1)
    for value in intervention.parameters.values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return intervention


@torch.no_grad()
def logits(model, intervention=None) -> torch.Tensor:
    if intervention is None:
        return model(IDS).logits
    with intervention.active(model):
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_intervention_changes_no_logit_and_a_shaken_one_does(model, kind):
    before = logits(model)
    intervention = interventions(model)[kind]
    assert torch.equal(logits(model, intervention), before)
    assert not torch.allclose(logits(model, shaken(intervention)), before)
    assert torch.equal(logits(model), before), "outside of the context the model is as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_survives_saving(model, kind, tmp_path):
    intervention = shaken(interventions(model)[kind])
    intervention.save(tmp_path / "p.safetensors")
    loaded = load_intervention(tmp_path / "p.safetensors")
    assert type(loaded) is type(intervention)
    assert (loaded.row_count, loaded.parameter_count) == (intervention.row_count, intervention.parameter_count)
    assert torch.equal(logits(model, loaded), logits(model, intervention))


@pytest.mark.parametrize("kind", KINDS)
def test_every_intervention_learns_the_training_pivots_and_is_resumed_to_the_same_bits(model, kind, tmp_path):
    pivots = random_pivots(6, VOCABULARY)
    rising = iter(range(1000))

    def trained(**more):
        intervention = interventions(model)[kind]
        return train(
            model,
            intervention,
            pivots,
            pivots,
            lambda _: Validation(next(rising) / 1000, 9),
            UpdateOptions(learning_rate=0.05 if kind == "lora" else 0.5, steps=6, patience=9, batch=3),
            optimizer="adam" if kind == "lora" else "descent",
            **more,
        )

    whole = trained()
    assert whole.metrics[-1].margin > whole.metrics[0].margin + 1e-3

    def interrupt(step, _, metric) -> None:
        if step == 3:
            raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(state_path=state, progress=interrupt)
    resumed = trained(state_path=state)
    for name, value in whole.intervention.parameters.items():
        assert torch.equal(resumed.intervention.parameters[name], value)


def test_a_bias_adds_to_its_tokens_alone(model):
    intervention = OutputBias(torch.tensor([3, 7]), torch.tensor([1.0, -2.0]))
    change = logits(model, intervention) - logits(model)
    expected = torch.zeros(VOCABULARY)
    expected[3], expected[7] = 1, -2
    torch.testing.assert_close(change, expected.expand_as(change), atol=1e-6, rtol=0)


def test_a_steering_vector_is_added_to_what_the_last_layer_gives(model):
    intervention = shaken(interventions(model)["steering"])
    hidden: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    logits(model)
    logits(model, intervention)
    hook.remove()
    torch.testing.assert_close(hidden[1] - hidden[0], intervention.values.expand_as(hidden[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "phi3"])
def test_low_rank_matrices_equal_the_weights_plus_their_product(family):
    model = family_model(family, vocab_size=VOCABULARY)
    intervention = shaken(LowRank.fresh(model, everything(model), 2, 0.5, seed=0))
    dense = {}
    for name in intervention.down:
        change = 0.5 * intervention.up[name] @ intervention.down[name]
        weight = model.get_parameter(name)
        dense[name] = change if weight.shape == change.shape else change.T
    torch.testing.assert_close(logits(model, intervention), logits(model, WeightChange(dense)), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for a name that is about to go
def test_low_rank_matrices_equal_peft_s(model):
    peft = pytest.importorskip("peft")
    before = logits(model)
    intervention = shaken(LowRank.fresh(model, everything(model), 2, 8.0, seed=0))
    mine = logits(model, intervention)
    targets = sorted({name.split(".")[-2] for name in intervention.down})
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=16, target_modules=targets))
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            own = name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight"
            parameter.data.copy_(intervention.down[own] if "lora_A" in name else intervention.up[own])
    torch.testing.assert_close(theirs(IDS).logits, mine, atol=1e-5, rtol=1e-5)
    theirs.unload()
    assert torch.equal(logits(model), before)


def test_low_rank_matrices_of_experts_are_refused_by_name():
    model = family_model("mixtral", vocab_size=VOCABULARY)
    with pytest.raises(InputError, match=r"experts.gate_up_proj .* experts"):
        LowRank.fresh(model, everything(model), 2, 1.0, seed=0)


def test_a_change_of_whole_weights_is_put_on_and_taken_off_bit_by_bit(model, tmp_path):
    before = {n: p.clone() for n, p in model.named_parameters()}
    change = WeightChange({n: torch.full_like(p, 0.01) for n, p in model.named_parameters()})
    change.save(tmp_path / "w.safetensors")
    with load_intervention(tmp_path / "w.safetensors").active(model):
        assert all(torch.equal(p, before[n] + 0.01) for n, p in model.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_intervention_that_an_error_interrupts_is_taken_off(model):
    before = logits(model)
    for intervention in map(shaken, interventions(model).values()):
        with pytest.raises(ZeroDivisionError), intervention.attached(model):
            raise ZeroDivisionError
        assert torch.equal(logits(model), before)


def test_the_rows_of_the_largest_gradient_are_chosen_over_all_weights(model):
    pivots = random_pivots(5, VOCABULARY)
    every = Delta.zeros(model, everything(model))
    _, gradients = full_gradient(model, every, pivots, 5)
    chosen = largest_rows(every, gradients, 11)
    assert sum(len(rows) for rows in chosen.values()) == 11
    norms = {
        (n, int(r)): float(g)
        for n, rows in every.weights.items()
        for r, g in zip(rows.index, gradients[n].norm(dim=1), strict=True)
    }
    best = sorted(norms, key=lambda key: -norms[key])[:11]
    assert {(n, int(r)) for n, rows in chosen.items() for r in rows} == set(best)


def test_two_deltas_add_up_on_the_rows_of_either(model):
    names = list(everything(model))
    first = shaken(Delta.zeros(model, {names[0]: torch.tensor([1, 4]), names[1]: torch.tensor([0])}))
    second = shaken(Delta.zeros(model, {names[0]: torch.tensor([4, 2]), names[2]: torch.tensor([3])}))
    total = first.plus(second)
    assert total.row_count == 5
    with first.applied(model):
        both = logits(model, second)
    torch.testing.assert_close(logits(model, total), both, atol=1e-5, rtol=1e-5)
    with last_margins(model, random_pivots(2, VOCABULARY)) as margins:
        assert margins.shape == (2,)
