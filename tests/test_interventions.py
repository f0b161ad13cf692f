"""The controls: each intervention does what it says, nothing where it is zero, and leaves the model as it was."""

import shutil
from dataclasses import replace

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
from cca.run.run import Run
from cca.run.stages import update

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


def _dropped(model, name: str, adapters: LowRank, passes: int = 1) -> list[torch.Tensor]:
    """By pass, the factor (N, E) on each number that goes into the adapter of a weight as wide as it is high."""
    found: list[torch.Tensor] = []
    module = model.get_submodule(name.removesuffix(".weight"))
    with torch.no_grad(), adapters.attached(model):
        for _ in range(passes):
            given: list[torch.Tensor] = []
            hook = module.register_forward_hook(lambda _, args, out: given.extend((args[0][0], out[0])))  # noqa: B023
            model(IDS[:1])
            hook.remove()
            x, out = given
            found.append((out - x @ model.get_parameter(name).T) / x)
    return found


@pytest.fixture
def square():
    """A model of whose first layer the adapter of the query projection gives back what it gets."""
    model = tiny_qwen2(vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=4)
    name, width = "model.layers.0.self_attn.q_proj.weight", model.config.hidden_size
    model.get_parameter(name.replace("weight", "bias")).data.zero_()
    return model, name, LowRank({name: torch.eye(width)}, {name: torch.eye(width)}, 1.0)


def test_dropout_leaves_out_a_share_of_the_adapters_input_and_scales_the_rest(square):
    model, name, adapters = square
    factors = torch.stack([_dropped(model, name, adapters.dropping(0.25, 0, step))[0] for step in range(40)])
    assert bool((factors.abs().lt(1e-3) | (factors - 1 / 0.75).abs().lt(1e-3)).all())
    assert abs(float(factors.lt(0.5).float().mean()) - 0.25) < 0.02
    torch.testing.assert_close(factors.mean((0, 1)), torch.ones(factors.shape[2]), atol=0.25, rtol=0)


def test_what_dropout_leaves_out_depends_on_seed_step_pass_and_place_alone(square):
    model, name, adapters = square
    left_out = lambda seed, step: [f.lt(0.5) for f in _dropped(model, name, adapters.dropping(0.5, seed, step), 2)]
    torch.manual_seed(1)
    first, second = left_out(0, 1)
    before = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert [torch.equal(a, b) for a, b in zip(left_out(0, 1), (first, second), strict=True)] == [True, True]
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before), "the process's own random state is as it was"
    others = [second, left_out(1, 1)[0], left_out(0, 2)[0]]
    assert not any(torch.equal(first, other) for other in others)
    assert len({tuple(row.tolist()) for row in first}) == len(first), "each token has its own"


def test_outside_of_a_training_step_nothing_is_left_out(model):
    adapters = shaken(interventions(model)["lora"])
    dropping = adapters.dropping(0.5, 0, 1)
    assert torch.equal(logits(model, dropping), logits(model, adapters))
    with torch.no_grad(), dropping.attached(model):
        assert not torch.equal(model(IDS).logits, logits(model, adapters))
    assert not model._forward_pre_hooks
    assert torch.equal(logits(model), model(IDS).logits)


@pytest.mark.parametrize("start", [0, 20])
def test_layers_that_are_computed_again_leave_out_the_same(model, start):
    """With a start that all prefixes share, which a pass computes once, and without."""
    pivots = [replace(p, prefix=(*range(1, start + 1), *p.prefix)) for p in random_pivots(7, VOCABULARY)]
    dropping, layers = shaken(interventions(model)["lora"]).dropping(0.5, 3, 2), list(model.model.layers)
    once, plain = full_gradient(model, dropping, pivots, 3)
    again, repeated = full_gradient(model, dropping, pivots, 3, recompute=layers)
    assert once == pytest.approx(again, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(repeated[name], gradient, atol=1e-6, rtol=1e-4)
    other, _ = full_gradient(model, dropping, pivots, 3)
    assert other == once
    without, _ = full_gradient(model, interventions(model)["lora"], pivots, 3)
    assert abs(without - once) > 1e-4


def test_lora_with_dropout_that_is_killed_and_goes_on_gives_the_same_adapters(model, tmp_path):
    pivots, state, rising = random_pivots(6, VOCABULARY), tmp_path / "state.safetensors", iter(range(1000))

    def trained(share: float, **more):
        torch.manual_seed(len(more))  # another process has another state
        options = UpdateOptions(learning_rate=0.05, steps=5, patience=9, batch=2, validate_every=2)
        start = interventions(model)["lora"]
        validate = lambda _: Validation(next(rising) / 1000, 9)
        in_step = lambda adapters, step: adapters.dropping(share, 7, step)
        how = {"optimizer": "adam", "in_step": in_step if share else None, **more}
        return train(model, start, pivots, pivots, validate, options, **how).intervention

    def interrupt(step, *_) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole, without = trained(0.4), trained(0.0)
    assert type(whole) is LowRank
    with pytest.raises(KeyboardInterrupt):
        trained(0.4, state_path=state, progress=interrupt)
    resumed = trained(0.4, state_path=state)
    for name, value in whole.parameters.items():
        assert torch.equal(resumed.parameters[name], value)
    assert any(not torch.equal(without.parameters[name], value) for name, value in whole.parameters.items())


def test_a_run_trains_lora_on_pivots_with_the_dropout_that_is_set(mended, tmp_path):
    found, rising = [], iter(range(100))
    for share in (0.0, 0.5, 0.5):
        folder = shutil.copytree(mended, tmp_path / f"run-{len(found)}")
        changes = ('update.arm="lora-pivots"', "update.learning_rate=0.003", "update.steps=1", "update.patience=9")
        with Run.resume(folder, redo="update", changes=(*changes, f"update.lora_dropout={share}")) as run:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(update, "_validator", lambda *_: lambda _: Validation(next(rising) / 100, 9))
                run.execute(("update",))
            adapters = load_intervention(run.folder.file("delta.safetensors"))
            assert type(adapters) is LowRank
            found.append(adapters.parameters)
    without, one, two = found
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], without[name]) for name in one)


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
