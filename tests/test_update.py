import pytest
import reference
import torch
from conftest import random_pivots, tiny_qwen2

from cca.errors import InputError
from cca.method.objective import last_margins, losses
from cca.method.options import UpdateOptions
from cca.method.update import Validation, full_gradient, held_out_margins, train
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.records import best_of

VOCABULARY = 60


@pytest.fixture
def model():
    return tiny_qwen2(vocab_size=VOCABULARY)


@pytest.fixture
def rows(model):
    parts = find_components(model)
    return parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(2)) > 0.8)


def options(**changes) -> UpdateOptions:
    """Validation at steps 2 and 4 and after the last."""
    shown = {"validate_every": 100, "validate_at": (2, 4), "patience": 9}
    return UpdateOptions(**{"loss": "linear", "learning_rate": 0.02, "steps": 6, "batch": 3, **shown, **changes})


def rising(delta: Delta) -> Validation:
    """An accuracy that grows with the delta."""
    return Validation(sum(float(r.values.abs().sum()) for r in delta.weights.values()), 10)


@pytest.mark.parametrize("loss", ["linear", "logistic"])
def test_a_trained_delta_equals_updating_the_weight_rows_directly(model, rows, loss):
    pivots = random_pivots(7, VOCABULARY)
    settings = options(steps=3, validate_at=(), loss=loss)
    trained = train(model, Delta.zeros(model, rows), pivots, [], rising, settings).intervention
    before = {name: p.clone() for name, p in model.named_parameters()}
    reference.descend_weights(model, rows, pivots, lr=0.02, steps=3, loss=loss)
    for name, parameter in model.named_parameters():
        if name in rows:
            moved = parameter[rows[name]] - before[name][rows[name]]
            torch.testing.assert_close(trained.weights[name].values, moved, atol=1e-6, rtol=1e-4)
            assert moved.abs().max() > 1e-4
        else:
            assert torch.equal(parameter, before[name])


def test_unselected_rows_stay_bit_identical_and_revert_is_bit_exact(model, rows):
    before = {name: p.clone() for name, p in model.named_parameters()}
    delta = train(model, Delta.zeros(model, rows), random_pivots(7, VOCABULARY), [], rising, options()).intervention
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "training must not touch the base"
    with delta.applied(model):
        for name, parameter in model.named_parameters():
            keep = torch.ones(len(parameter), dtype=torch.bool)
            if name in rows:
                keep[rows[name]] = False
                assert not torch.equal(parameter, before[name])
            assert torch.equal(parameter[keep], before[name][keep])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_revert_is_bit_exact_after_an_error(model, rows):
    before = {name: p.clone() for name, p in model.named_parameters()}
    delta = Delta.zeros(model, rows)
    for changed in delta.weights.values():
        changed.values.normal_()
    with pytest.raises(RuntimeError, match="inside"), delta.applied(model):
        raise RuntimeError("inside")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_attached_delta_computes_what_the_applied_delta_computes(model, rows):
    delta = Delta.zeros(model, rows)
    for changed in delta.weights.values():
        changed.values.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 4, 5, 6]])
    with delta.attached(model):
        attached = model(input_ids=ids).logits
    with delta.applied(model):
        applied = model(input_ids=ids).logits
    torch.testing.assert_close(attached, applied, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attached, model(input_ids=ids).logits, atol=1e-3)


def test_the_gradient_does_not_depend_on_batch_size(model, rows):
    pivots = random_pivots(9, VOCABULARY)
    loss_1, one = full_gradient(model, Delta.zeros(model, rows), pivots, 9)
    loss_2, many = full_gradient(model, Delta.zeros(model, rows), pivots[::-1], 2)
    assert loss_1 == pytest.approx(loss_2, abs=1e-5)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, many[name], atol=1e-6, rtol=1e-4)


def test_margins_of_padded_batches_equal_single_passes(model):
    pivots = random_pivots(5, VOCABULARY)
    alone = torch.cat([held_out_margins(model, Delta({}), [p], 1) for p in pivots])
    with last_margins(model, pivots) as together:
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert held_out_margins(model, Delta({}), [], 4).shape == (0,)


def test_the_logistic_loss_lets_go_of_won_pivots_and_the_linear_loss_does_not():
    margin = torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
    (linear,) = torch.autograd.grad(losses(margin, "linear").sum(), margin)
    (logistic,) = torch.autograd.grad(losses(margin, "logistic").sum(), margin)
    assert linear.tolist() == [-1, -1, -1]
    assert logistic.tolist() == pytest.approx([-1, -0.5, 0], abs=1e-3)


def test_the_margin_on_the_training_pivots_improves(model, rows):
    pivots = random_pivots(7, VOCABULARY)
    result = train(model, Delta.zeros(model, rows), pivots, pivots, rising, options())
    assert result.metrics[-1].margin > result.metrics[0].margin


def test_no_step_helped_is_an_outcome(model, rows):
    falling = lambda delta: Validation(1.0 - rising(delta).accuracy, 10)
    result = train(model, Delta.zeros(model, rows), random_pivots(4, VOCABULARY), [], falling, options())
    assert result.best_step == 0
    assert all(not r.values.any() for r in result.intervention.weights.values())


def test_ties_go_to_the_earlier_step_and_patience_ends_the_training(model, rows):
    flat = lambda _: Validation(0.5, 10)
    settings = options(steps=50, validate_every=1, patience=3)
    result = train(model, Delta.zeros(model, rows), random_pivots(4, VOCABULARY), [], flat, settings)
    assert (result.best_step, result.stopped, result.metrics[-1].step) == (0, "patience", 3)


def test_the_best_validated_step_is_kept_not_the_last(model, rows):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    peak = lambda _: Validation(next(scores), 10)
    pivots = random_pivots(4, VOCABULARY)
    result = train(model, Delta.zeros(model, rows), pivots, [], peak, options())
    assert result.best_step == best_of(result.metrics).step == 2
    two_steps = train(model, Delta.zeros(model, rows), pivots, [], rising, options(steps=2, validate_at=()))
    for name, kept in result.intervention.weights.items():
        assert torch.equal(kept.values, two_steps.intervention.weights[name].values)


@pytest.mark.parametrize("loss", ["linear", "logistic"])
def test_an_automatic_learning_rate_would_lower_a_loss_as_steep_all_the_way_by_a_half_in_the_first_step(
    model, rows, loss
):
    pivots, start = random_pivots(7, VOCABULARY), Delta.zeros(model, rows)
    before, gradient = full_gradient(model, start, pivots, 3, loss)
    result = train(model, start, pivots, [], rising, options(learning_rate="auto", loss=loss))
    assert result.rate is not None
    assert result.rate == pytest.approx(0.5 / sum(float(g.square().sum()) for g in gradient.values()))
    given = train(model, start, pivots, [], rising, options(learning_rate=result.rate, loss=loss))
    assert given.metrics == result.metrics, "it is the rate of all steps"
    assert given.rate is None
    for name, changed in start.weights.items():
        changed.values.copy_(-gradient[name] * result.rate / 100)
    after, _ = full_gradient(model, start, pivots, 3, loss)
    assert (before - after) * 100 == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("method", ["lora-pivots", "lora", "finetune"])
def test_an_automatic_learning_rate_is_refused_where_adam_trains(method):
    with pytest.raises(InputError, match=f"auto is for gradient descent, and {method} has Adam; give a number"):
        UpdateOptions(method=method, learning_rate="auto")


@pytest.mark.parametrize("rate", [0.02, "auto"])
def test_a_resumed_update_is_bit_identical(model, rows, tmp_path, rate):
    pivots, settings = random_pivots(6, VOCABULARY), options(learning_rate=rate)
    whole = train(model, Delta.zeros(model, rows), pivots, pivots, rising, settings)

    def interrupt(step, total, metric) -> None:
        if step == 3:
            raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(model, Delta.zeros(model, rows), pivots, pivots, rising, settings, state_path=state, progress=interrupt)
    resumed = train(model, Delta.zeros(model, rows), pivots, pivots, rising, settings, state_path=state)
    assert (resumed.metrics, resumed.rate) == (whole.metrics, whole.rate)
    for name, kept in resumed.intervention.weights.items():
        assert torch.equal(kept.values, whole.intervention.weights[name].values)


def test_each_batch_tells_its_tokens_and_a_training_that_goes_on_where_it_begins(model, rows, tmp_path):
    pivots, state = random_pivots(6, VOCABULARY), tmp_path / "state.safetensors"
    whole = sum(len(p.prefix) for p in pivots)
    told: list[tuple[int, float]] = []
    work = lambda tokens, steps: told.append((tokens, steps))
    delta, two, three = Delta.zeros(model, rows), options(steps=2, batch=3), options(steps=3, batch=3)
    train(model, delta, pivots, [], rising, two, state_path=state, work=work)
    assert sum(tokens for tokens, _ in told) == 2 * whole
    half = told[0][0] / whole
    assert [steps for _, steps in told] == pytest.approx([half, 1, 1 + half, 2])
    told.clear()
    train(model, delta, pivots, pivots[:2], rising, three, state_path=state, work=work)
    assert told[0] == (0, 2.0)
    assert [steps for _, steps in told[1:]] == pytest.approx([2 + half, 3, 3])  # the last are the held-out pivots
    assert told[-1][0] == sum(len(p.prefix) for p in pivots[:2])


def test_a_delta_survives_saving_and_counts_its_numbers(model, rows, tmp_path):
    delta = Delta.zeros(model, rows)
    for changed in delta.weights.values():
        changed.values.normal_()
    delta.save(tmp_path / "d.safetensors")
    loaded = Delta.load(tmp_path / "d.safetensors")
    assert loaded.row_count == delta.row_count == sum(len(r) for r in rows.values())
    assert loaded.parameter_count == 64 * delta.row_count
    for name, changed in delta.weights.items():
        assert torch.equal(loaded.weights[name].index, changed.index)
        assert torch.equal(loaded.weights[name].values, changed.values)


def test_a_gradient_that_is_not_finite_stops_with_its_weight_and_step(model, rows):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"step 1.* gradient of model\.layers.* not finite, first after model\.norm"
    ):
        train(model, Delta.zeros(model, rows), random_pivots(3, VOCABULARY), [], rising, options())
