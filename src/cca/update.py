"""Stage 3: change only the circuit's rows (paper section 3.3).

Full-batch gradient descent of the pivot loss on float32 row deltas; the base weights stay frozen. The step with
the best validation accuracy is kept, and step 0, no change at all, counts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from cca.delta import Delta
from cca.engines.transformers import logits_at, right_padded
from cca.numerics import check_finite
from cca.objective import Loss, losses, margins
from cca.progress import no_progress
from cca.recompute import recomputed
from cca.records import Metric, Pivot


class Update(NamedTuple):
    """The kept delta, the step it comes from and every measured step. `best_step` 0: no step helped."""

    delta: Delta
    best_step: int
    metrics: list[Metric]
    stopped: str


class Validation(NamedTuple):
    """Greedy accuracy on `n` problems."""

    accuracy: float
    n: int


def last_margins(model: PreTrainedModel, pivots: Sequence[Pivot]) -> Tensor:
    """logit[desired] - logit[undesired] after each prefix, (P,) in the order given, in one right-padded batch."""
    last = torch.tensor([[len(p.prefix) - 1] for p in pivots])
    logits = logits_at(model, right_padded([p.prefix for p in pivots]), last, use_cache=False).logits[:, 0]
    desired, undesired = torch.tensor([p.desired for p in pivots]), torch.tensor([p.undesired for p in pivots])
    return margins(logits, desired, undesired)


def by_length(pivots: Sequence[Pivot], size: int) -> list[list[Pivot]]:
    """Batches of at most `size` pivots with prefixes of like length, so that little is padding."""
    ordered = sorted(pivots, key=lambda p: (len(p.prefix), p.problem))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def full_gradient(
    model: PreTrainedModel,
    delta: Delta,
    pivots: Sequence[Pivot],
    batch_size: int,
    loss: Loss = "linear",
    recompute: Sequence[nn.Module] = (),
) -> tuple[float, dict[str, Tensor]]:
    """The mean pivot loss over all `pivots` and its gradient with respect to each weight's delta rows, in float32.

    recompute: layers whose activations are computed again in the backward pass.
    """
    values = [rows.values.requires_grad_() for rows in delta.weights.values()]
    total = 0.0
    gradients = [torch.zeros_like(v) for v in values]
    with delta.attached(model), recomputed(recompute):
        for batch in by_length(pivots, batch_size):
            value = losses(last_margins(model, batch), loss).sum() / len(pivots)
            for kept, fresh in zip(gradients, torch.autograd.grad(value, values), strict=True):
                kept += fresh
            total += value.item()
    for value in values:
        value.requires_grad_(False)
    return total, dict(zip(delta.weights, gradients, strict=True))


@torch.no_grad()
def held_out_margins(model: PreTrainedModel, delta: Delta, pivots: Sequence[Pivot], batch_size: int) -> Tensor:
    """Margins (P,) of `pivots`, sorted by prefix length, under the delta; empty where there are none."""
    with delta.attached(model):
        found = [last_margins(model, batch) for batch in by_length(pivots, batch_size)]
    return torch.cat(found) if found else torch.empty(0)


def train_delta(
    model: PreTrainedModel,
    rows: Mapping[str, Tensor],
    pivots: Sequence[Pivot],
    validation_pivots: Sequence[Pivot],
    validate: Callable[[Delta], Validation],
    *,
    loss: Loss,
    learning_rate: float,
    steps: int,
    validate_at: Collection[int],
    patience: int,
    batch_size: int,
    recompute: Sequence[nn.Module] = (),
    state_path: Path | None = None,
    progress: Callable[[int, int, Metric | None], None] = no_progress,
) -> Update:
    """W_r <- W_r - learning_rate * gradient_r for the given rows, `steps` times, keeping the best validated step.

    validate: accuracy under a delta; called at step 0 and at `validate_at`. Ties go to the earlier step. Stops
    when `patience` validations in a row were no better than the best. State goes to `state_path` after each step.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; the message says at which step and in which weight.
    """
    model.requires_grad_(False)
    delta = Delta.zeros(model, rows)
    best, metrics, step = delta.copy(), [], 0
    if state_path is not None and state_path.exists():
        delta, best, metrics, step = _load_state(state_path, model)
    last_loss: float | None = None

    def measure() -> None:
        nonlocal best
        held_out = held_out_margins(model, delta, validation_pivots, batch_size)
        score = validate(delta)
        mean = float(held_out.mean()) if len(held_out) else 0.0
        won = float((held_out > 0).float().mean()) if len(held_out) else 0.0
        metric = Metric(step, last_loss, mean, won, score.accuracy, score.n)
        if not metrics or metric.accuracy > max(m.accuracy for m in metrics):
            best = delta.copy()
        metrics.append(metric)
        progress(step, steps, metric)

    if not metrics:
        measure()
    stopped = "steps"
    while step < steps:
        if _validations_since_best(metrics) >= patience:
            stopped = "patience"
            break
        last_loss, gradients = full_gradient(model, delta, pivots, batch_size, loss, recompute)
        for name, gradient in gradients.items():
            what = f"step {step + 1}: with a loss of {last_loss:g} the gradient of {name} is"
            check_finite(gradient, what, model, lambda: held_out_margins(model, delta, pivots, batch_size))
            delta.weights[name].values.sub_(gradient, alpha=learning_rate)
        step += 1
        progress(step, steps, None)
        if step in validate_at or step == steps:
            measure()
        if state_path is not None:
            _save_state(state_path, delta, best, metrics, step)
    return Update(best, best_of(metrics).step, metrics, stopped)


def best_of(metrics: Sequence[Metric]) -> Metric:
    """The earliest of the steps with the highest validation accuracy."""
    return max(metrics, key=lambda m: (m.accuracy, -m.step))


def _validations_since_best(metrics: Sequence[Metric]) -> int:
    return len(metrics) - 1 - metrics.index(best_of(metrics))


def _save_state(path: Path, delta: Delta, best: Delta, metrics: Sequence[Metric], step: int) -> None:
    import json

    from cca.store import replace_file

    tensors: dict[str, Tensor] = {}
    for name, rows in delta.weights.items():
        tensors[f"{name}.rows"] = rows.index
        tensors[f"{name}.now"] = rows.values
        tensors[f"{name}.best"] = best.weights[name].values
    metadata = {"step": str(step), "metrics": json.dumps([asdict(m) for m in metrics])}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _load_state(path: Path, model: PreTrainedModel) -> tuple[Delta, Delta, list[Metric], int]:
    import json

    from safetensors import safe_open

    from cca.delta import Rows

    with safe_open(path, "pt", device=str(model.device)) as file:
        metadata = file.metadata() or {}
        names = [key.removesuffix(".rows") for key in file.keys() if key.endswith(".rows")]  # noqa: SIM118
        index = {name: file.get_tensor(f"{name}.rows") for name in names}
        now = Delta({name: Rows(index[name], file.get_tensor(f"{name}.now")) for name in names})
        best = Delta({name: Rows(index[name], file.get_tensor(f"{name}.best")) for name in names})
    metrics = [Metric(**m) for m in json.loads(metadata["metrics"])]
    return now, best, metrics, int(metadata["step"])
