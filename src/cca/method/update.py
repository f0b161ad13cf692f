"""Stage 3: change only the circuit's rows (paper section 3.3), or train another intervention on the same pivots.

Full-batch gradient descent of the pivot loss on float32 row deltas; the base weights stay frozen. The step with
the best validation accuracy is kept, and step 0, no change at all, counts.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from cca.controls.interventions import Intervention, Trainable
from cca.method.objective import Loss, losses, margins
from cca.model.delta import Delta
from cca.model.generate import last_logits
from cca.model.numerics import check_finite
from cca.model.recompute import recomputed
from cca.records import Metric, Pivot
from cca.show.progress import no_progress

P = TypeVar("P", bound=Intervention)
T = TypeVar("T", bound=Trainable)


class Update(NamedTuple, Generic[P]):
    """The kept intervention, the step it comes from and every measured step. `best_step` 0: no step helped."""

    intervention: P
    best_step: int
    metrics: list[Metric]
    stopped: str


class Validation(NamedTuple):
    """Greedy accuracy on `n` problems."""

    accuracy: float
    n: int


def last_margins(model: PreTrainedModel, pivots: Sequence[Pivot]) -> Tensor:
    """logit[desired] - logit[undesired] after each prefix, (P,) in the order given, in one right-padded batch."""
    logits = last_logits(model, [p.prefix for p in pivots])
    desired, undesired = torch.tensor([p.desired for p in pivots]), torch.tensor([p.undesired for p in pivots])
    return margins(logits, desired, undesired)


def by_length(pivots: Sequence[Pivot], size: int) -> list[list[Pivot]]:
    """Batches of at most `size` pivots with prefixes of like length, so that little is padding."""
    ordered = sorted(pivots, key=lambda p: (len(p.prefix), p.problem))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def full_gradient(
    model: PreTrainedModel,
    intervention: Trainable,
    pivots: Sequence[Pivot],
    batch_size: int,
    loss: Loss = "linear",
    recompute: Sequence[nn.Module] = (),
) -> tuple[float, dict[str, Tensor]]:
    """The mean pivot loss over all `pivots` and its gradient with respect to the intervention's parameters, in float32.

    recompute: layers whose activations are computed again in the backward pass.
    """
    values = [value.requires_grad_() for value in intervention.parameters.values()]
    total = 0.0
    gradients = [torch.zeros_like(v) for v in values]
    with intervention.attached(model), recomputed(recompute):
        for batch in by_length(pivots, batch_size):
            value = losses(last_margins(model, batch), loss).sum() / len(pivots)
            for kept, fresh in zip(gradients, torch.autograd.grad(value, values), strict=True):
                kept += fresh
            total += value.item()
    for value in values:
        value.requires_grad_(False)
    return total, dict(zip(intervention.parameters, gradients, strict=True))


def largest_rows(delta: Delta, gradients: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` rows of `delta` whose gradients have the largest norms: weight name -> sorted row numbers."""
    norms = torch.cat([gradients[name].norm(dim=1).cpu() for name in delta.weights])
    chosen = torch.zeros(len(norms), dtype=torch.bool)
    chosen[norms.topk(count).indices] = True
    parts = chosen.split([len(rows.index) for rows in delta.weights.values()])
    found = {name: rows.index.cpu()[part] for (name, rows), part in zip(delta.weights.items(), parts, strict=True)}
    return {name: index for name, index in found.items() if len(index)}


@torch.no_grad()
def held_out_margins(
    model: PreTrainedModel, intervention: Intervention, pivots: Sequence[Pivot], batch_size: int
) -> Tensor:
    """Margins (P,) of `pivots`, sorted by prefix length, under the intervention; empty where there are none."""
    with intervention.attached(model):
        found = [last_margins(model, batch) for batch in by_length(pivots, batch_size)]
    return torch.cat(found) if found else torch.empty(0)


def measured(step: int, loss: float | None, held_out: Tensor, score: Validation) -> Metric:
    """The metric of a step from the margins (P,) of held-out pivots and the validation."""
    mean = float(held_out.mean()) if len(held_out) else 0.0
    won = float((held_out > 0).float().mean()) if len(held_out) else 0.0
    return Metric(step, loss, mean, won, score.accuracy, score.n)


def train(
    model: PreTrainedModel,
    intervention: T,
    pivots: Sequence[Pivot],
    validation_pivots: Sequence[Pivot],
    validate: Callable[[T], Validation],
    *,
    loss: Loss,
    learning_rate: float,
    steps: int,
    validate_at: Collection[int],
    patience: int,
    batch_size: int,
    optimizer: Literal["descent", "adam"] = "descent",
    recompute: Sequence[nn.Module] = (),
    state_path: Path | None = None,
    progress: Callable[[int, int, Metric | None], None] = no_progress,
) -> Update[T]:
    """W_r <- W_r - learning_rate * gradient_r, `steps` times from what `intervention` holds, keeping the best validated step.

    validate: accuracy under a intervention; called at step 0 and at `validate_at`. Ties go to the earlier step. Stops
    when `patience` validations in a row were no better than the best. State goes to `state_path` after each step.
    optimizer: ``descent`` is the paper's; ``adam`` is for interventions whose parameters are not those of the model.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; the message says at which step and in which weight.
    """
    model.requires_grad_(False)
    best, metrics, step = intervention.copy(), [], 0
    parameters = list(intervention.parameters.values())
    rule = (
        torch.optim.Adam(parameters, learning_rate)
        if optimizer == "adam"
        else torch.optim.SGD(parameters, learning_rate)
    )
    if state_path is not None and state_path.exists():
        metrics, step = _load_state(state_path, model, intervention, best, rule)
    last_loss: float | None = None

    def measure() -> None:
        nonlocal best
        held_out = held_out_margins(model, intervention, validation_pivots, batch_size)
        metric = measured(step, last_loss, held_out, validate(intervention))
        if not metrics or metric.accuracy > max(m.accuracy for m in metrics):
            best = intervention.copy()
        metrics.append(metric)
        progress(step, steps, metric)

    if not metrics:
        measure()
    stopped = "steps"
    while step < steps:
        if _validations_since_best(metrics) >= patience:
            stopped = "patience"
            break
        last_loss, gradients = full_gradient(model, intervention, pivots, batch_size, loss, recompute)
        for name, gradient in gradients.items():
            what = f"step {step + 1}: with a loss of {last_loss:g} the gradient of {name} is"
            check_finite(gradient, what, model, lambda: held_out_margins(model, intervention, pivots, batch_size))
            intervention.parameters[name].grad = gradient
        rule.step()
        step += 1
        progress(step, steps, None)
        if step in validate_at or step == steps:
            measure()
        if state_path is not None:
            _save_state(state_path, intervention, best, rule, metrics, step)
    return Update(best, best_of(metrics).step, metrics, stopped)


def best_of(metrics: Sequence[Metric]) -> Metric:
    """The earliest of the steps with the highest validation accuracy."""
    return max(metrics, key=lambda m: (m.accuracy, -m.step))


def _validations_since_best(metrics: Sequence[Metric]) -> int:
    return len(metrics) - 1 - metrics.index(best_of(metrics))


def _save_state(
    path: Path,
    intervention: Trainable,
    best: Trainable,
    rule: torch.optim.Optimizer,
    metrics: Sequence[Metric],
    step: int,
) -> None:
    from cca.folder import replace_file

    tensors: dict[str, Tensor] = {}
    for name, value in intervention.parameters.items():
        tensors[f"now.{name}"], tensors[f"best.{name}"] = value.detach(), best.parameters[name].detach()
        for key, moment in rule.state.get(value, {}).items():
            if isinstance(moment, Tensor):
                tensors[f"{key}.{name}"] = moment
    metadata = {"step": str(step), "metrics": json.dumps([asdict(m) for m in metrics])}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


@torch.no_grad()
def _load_state(
    path: Path, model: PreTrainedModel, intervention: Trainable, best: Trainable, rule: torch.optim.Optimizer
) -> tuple[list[Metric], int]:
    """Put what `_save_state` wrote into `intervention`, `best` and `rule`."""
    from safetensors import safe_open

    tensors = load_file(path, device=str(model.device))
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    for name, value in intervention.parameters.items():
        value.copy_(tensors[f"now.{name}"])
        best.parameters[name].copy_(tensors[f"best.{name}"])
        moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
        if moments:
            rule.state[value] = {"step": tensors[f"step.{name}"].cpu(), **moments}
    return [Metric(**m) for m in json.loads(metadata["metrics"])], int(metadata["step"])
