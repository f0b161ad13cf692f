"""Stage 3: change only the circuit's rows (paper section 3.3), or train another intervention on the same pivots.

Full-batch gradient descent of the pivot loss on float32 row deltas; the base weights stay frozen. The step with
the best validation accuracy is kept, and step 0, no change at all, counts.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from cca.errors import InputError
from cca.io import Saved, save_tensors
from cca.method.circuit import Circuit
from cca.method.course import Course, Training
from cca.method.objective import Loss, last_margins, losses, too_long, training_pivots
from cca.method.options import TraceOptions, UpdateOptions
from cca.method.processes import ALONE, Processes
from cca.method.resume import check_shape, load_state, of_a_state
from cca.method.traces import by_length, cut_off, greedy_traces
from cca.model.checks import check_prompts
from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.generate import Watch
from cca.model.intervention import Intervention, Trainable
from cca.model.memory import Halving
from cca.model.numerics import check_finite
from cca.model.open import Model, opened
from cca.model.read import by_budget, common_start
from cca.model.recompute import is_offloaded, recomputed
from cca.model.state import frozen
from cca.records import Metric, Pivot, Problem, check_problems

T = TypeVar("T", bound=Trainable)
Progress = Callable[[int, int, Metric | None], None]
"""Told of each step: its number, of how many, and what was measured after it, if anything."""
_FIRST_DROP = 0.5
"""By how much the first step lowers the loss at a learning rate of ``auto``, to first order."""
Work = Callable[[int, float], None]
"""Told after each batch how many tokens it read, and how many steps are done, the part of this one included; before
the first step of a training that goes on, of 0 tokens."""


class Validation(NamedTuple):
    """Greedy accuracy on `n` problems; cut: the share of their answers that the limit of tokens ended."""

    accuracy: float
    n: int
    cut: float = 0.0


def update(
    model: Model,
    circuit: Circuit,
    pivots: Sequence[Pivot],
    options: UpdateOptions | None = None,
    *,
    validate: Sequence[Problem] | None = None,
    max_new_tokens: int = TraceOptions().max_new_tokens,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    **changes: Any,
) -> Delta:
    """Train the rows of the circuit's components on `pivots` (paper section 3.3).

    Args:
        model: stays as it is; put the delta on with ``delta.active(model)``.
        circuit: whose rows change.
        pivots: found by `cca.find_pivots`, or one's own. Those of validation problems are measured, never trained on.
        options: how rows are trained; by default `UpdateOptions()`.
        validate: problems of which those for validation choose the step, by greedy accuracy. Without, the last step is
            kept, and nothing says whether it helped.
        max_new_tokens: of a validation answer.
        processes: that call this alike, to share the work; each gets the same delta.
        progress: see `Progress`.
        **changes: fields of `UpdateOptions` that differ from `options`.

    Returns:
        The delta of the best validated step; all zeros where no step helped.

    Raises:
        InputError: there is no pivot to train on, the circuit is empty or of another model, or there is no problem to
            validate on.
        FloatingPointError: the loss or a gradient is not finite.
    """
    opened(model)
    options = UpdateOptions.of(options, changes)
    if options.method != "circuit":
        raise InputError(f"cca.update trains a circuit; method {options.method!r} is for runs and cca compare")
    if not isinstance(circuit, Circuit):
        raise InputError(f"a {type(circuit).__name__} is no circuit; give what cca.learn_circuit returned")
    if circuit.sizes.tolist() != [list(layer.sizes) for layer in model.components.layers]:
        raise InputError(
            f"the circuit is of a model with other components ({len(circuit.gates):,} in {len(circuit.sizes)} layers) "
            f"than {model.name} ({model.components.size:,} in {len(model.components.layers)}); learn it on this model"
        )
    if not circuit.selected.any():
        raise InputError("the circuit is empty, so there is no row to change; learn it with a lower penalty (lambda)")
    check: Callable[[Intervention], Validation] | None = None
    if validate is not None:
        check_problems(validate)
        held = [p for p in validate if p.split == "validation"]
        if not held:
            raise InputError(f"none of the {len(validate)} problems in validate is for validation; give some that are")
        prompts = [model.prompter.prompt(p) for p in held]
        check_prompts(prompts, max_new_tokens, model.network.config, model.name, "max_new_tokens")
        check = validator(model, held, max_new_tokens, processes=processes)
    training = train(
        model.network,
        Delta.zeros(model, model.components.rows(circuit.selected)),
        training_pivots(model.network, pivots),
        [p for p in pivots if p.split == "validation"],
        check,
        options,
        recompute=read_twice(model, options),
        processes=processes,
        progress=progress,
    )
    if said := cut_in_validation(training.metrics, max_new_tokens, "max_new_tokens"):
        warnings.warn(said, stacklevel=2)
    return training.intervention


def validator(
    model: Model,
    problems: Sequence[Problem],
    max_new_tokens: int,
    batch: int = 128,
    watch: Watch | None = None,
    processes: Processes = ALONE,
) -> Callable[[Intervention], Validation]:
    """What measures greedy accuracy on `problems` under an intervention.

    watch: sees the answers being written. processes: that call this alike; each answers its part of the problems.
    """
    ordered = own_problems(by_length(problems, model.prompter), model, processes)

    def validate(intervention: Intervention) -> Validation:
        with model.engine.changed(intervention):
            answers = greedy_traces(model.engine, model.prompter, ordered, max_new_tokens, slots=batch, watch=watch)
        counts = torch.tensor([sum(a.correct for a in answers), sum(a.cut for a in answers)])
        counts = counts.to(model.network.device)
        processes.sum(counts)
        correct, cut = counts.tolist()
        return Validation(correct / len(problems), len(problems), cut / len(problems))

    return validate


def own_problems(problems: Sequence[Problem], model: Model, processes: Processes) -> list[Problem]:
    """Those that this process answers: its part, or, where an engine writes that the first one leads, all or none."""
    if isinstance(model.engine, Transformers):
        return processes.part(problems)
    return list(problems) if processes.first else []


def cut_in_validation(metrics: Sequence[Metric], limit: int, setting: str) -> str | None:
    """What to say where the limit of tokens ended a noteworthy share of a step's validation answers: what such a step
    gains by longer answers does not show, so that another may be kept. None where it did not."""
    most = max(metrics, key=lambda m: m.cut or 0.0, default=None)
    return most and cut_off(most.cut or 0.0, limit, f"the validation answers of step {most.step}", setting)


def read_twice(model: Model, options: UpdateOptions) -> list[nn.Module]:
    """The layers whose activations are computed again in the backward pass, where that is wanted."""
    # an offloaded network's backward pass would hold every layer's weights
    again = options.gradient_checkpointing or is_offloaded(model.network)
    return [layer.module for layer in model.components.layers] if again else []


def shortest_first(pivots: Sequence[Pivot]) -> list[Pivot]:
    """`pivots` in the order in which batches have them."""
    return sorted(pivots, key=lambda p: (len(p.prefix), p.problem))


def batches(network: PreTrainedModel, pivots: Sequence[Pivot], size: int) -> Iterator[list[Pivot]]:
    """Batches of at most `size` pivots, and of about as many tokens as a pass should have."""
    ordered = shortest_first(pivots)
    shared = common_start([p.prefix for p in ordered], len(ordered[0].prefix) - 1) if ordered else 0
    return by_budget(ordered, lambda p: len(p.prefix) - shared, network, size, shared)


@contextmanager
def _with_gradients(values: Sequence[Tensor]) -> Iterator[None]:
    """Within the context `values` take gradients; afterwards as before."""
    before = [value.requires_grad for value in values]
    try:
        for value in values:
            value.requires_grad_()
        yield
    finally:
        for value, wanted in zip(values, before, strict=True):
            value.requires_grad_(wanted)


def _too_long(pivot: Pivot) -> str:
    return too_long(pivot, "update.gradient_checkpointing to true, ")


def full_gradient(
    network: PreTrainedModel,
    intervention: Trainable,
    pivots: Sequence[Pivot],
    batch_size: int,
    loss: Loss = "linear",
    recompute: Sequence[nn.Module] = (),
    progress: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> tuple[float, dict[str, Tensor]]:
    """The mean pivot loss over all `pivots` and its gradient with respect to the intervention's parameters, in float32.

    recompute: layers whose activations are computed again in the backward pass. progress: told after each batch how
    many tokens its prefixes have. A batch that runs out of memory is done again as two halves. processes: that call
    this alike; each passes over its part of the pivots.
    """
    values = list(intervention.parameters.values())
    total = 0.0
    gradients = [torch.zeros_like(v) for v in values]

    def add(batch: Sequence[Pivot]) -> None:
        nonlocal total
        with last_margins(network, batch) as margins:
            value = losses(margins, loss).sum() / len(pivots)
            found = torch.autograd.grad(value, values)
        for kept, fresh in zip(gradients, found, strict=True):
            kept += fresh
        total += value.item()
        if progress:
            progress(sum(len(p.prefix) for p in batch))

    with intervention.attached(network), recomputed(recompute), _with_gradients(values), torch.enable_grad():
        passes = Halving[Pivot](lambda p: len(p.prefix), too_long if recompute else _too_long)
        passes.run(batches(network, processes.part(shortest_first(pivots)), batch_size), add)
    loss_of_all = torch.tensor(total, dtype=torch.float64, device=network.device)
    processes.sum(loss_of_all, *gradients)
    return loss_of_all.item(), dict(zip(intervention.parameters, gradients, strict=True))


@torch.no_grad()
def held_out_margins(
    network: PreTrainedModel,
    intervention: Intervention,
    pivots: Sequence[Pivot],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, " P"]:
    """Margins (P,) of `pivots`, sorted by prefix length, under the intervention; empty where there are none.

    progress: as of `full_gradient`.
    """
    found: list[Tensor] = []

    def add(batch: Sequence[Pivot]) -> None:
        with last_margins(network, batch) as margins:
            found.append(margins)
        if progress:
            progress(sum(len(p.prefix) for p in batch))

    with intervention.attached(network):
        Halving[Pivot](lambda p: len(p.prefix), too_long).run(batches(network, pivots, batch_size), add)
    return torch.cat(found) if found else torch.empty(0)


def measured(step: int, loss: float | None, held_out: Float[Tensor, " P"], score: Validation) -> Metric:
    """The metric of a step from the margins (P,) of held-out pivots and the validation."""
    mean = float(held_out.mean()) if len(held_out) else 0.0
    preferred = float((held_out > 0).float().mean()) if len(held_out) else 0.0
    return Metric(step, loss, mean, preferred, score.accuracy, score.n, score.cut)


@torch.inference_mode(False)  # whatever the caller's mode is
def train(
    network: PreTrainedModel,
    intervention: T,
    pivots: Sequence[Pivot],
    held_out: Sequence[Pivot],
    validate: Callable[[T], Validation] | None,
    options: UpdateOptions,
    *,
    optimizer: Literal["descent", "adam"] = "descent",
    in_step: Callable[[T, int], Trainable] | None = None,
    recompute: Sequence[nn.Module] = (),
    state_path: Path | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    work: Work | None = None,
) -> Training[T]:
    """W_r <- W_r - learning_rate * gradient_r, `steps` times from what `intervention` holds, keeping the best step.

    Args:
        intervention: where training starts; a copy of it is trained.
        pivots: trained on, all of them in every step.
        held_out: pivots that are measured beside validation.
        validate: accuracy under an intervention; called at step 0 and where the options say. None: the last step is
            kept, and nothing is measured.
        optimizer: ``descent`` is the paper's; ``adam`` is for interventions whose parameters are not the model's.
        in_step: from the intervention and a step's number what that step computes its gradient through, with the same
            parameters: for LoRA with dropout. By default the intervention itself.
        recompute: layers whose activations are computed again in the backward pass.
        state_path: state goes there after each step, and a later call resumes from there, bit for bit; of several
            processes the first writes and reads it, and with another number it goes on as well.
        processes: that call this alike; each computes its part of the pivots, and all train the same. `validate` is
            to give the same in each, as `validator` does.
        progress: see `Progress`.
        work: see `Work`; of several processes, what this one reads. Validation is not told of: `validate` can tell.

    Raises:
        InputError: the processes were given different pivots or options.
        FloatingPointError: the loss or a gradient is not finite; the message says at which step and in which weight.
        TooLargeError: a pivot alone does not fit in memory.
        ConnectionError: another process has ended.
    """
    processes.check_alike(network.device, pivots=(pivots, held_out), options=options)
    intervention = intervention.copy()
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    given = None if options.learning_rate == "auto" else options.learning_rate
    rule = kind(list(intervention.parameters.values()), given or 0.0)
    course, step = Course(options.patience, intervention.copy()), 0
    if state_path is not None and (saved := load_state(state_path, processes)):
        step = _take_state(state_path, saved, intervention, course, rule)
        if work:
            work(0, float(step))
    in_a_step, read = sum(len(p.prefix) for p in processes.part(shortest_first(pivots))), 0

    def batch_read(tokens: int) -> None:
        nonlocal read
        read += tokens
        if work:
            work(tokens, step + read / in_a_step)

    def held_out_read(tokens: int) -> None:
        if work:
            work(tokens, float(step))

    def measure(loss: float | None) -> None:
        if validate is None:
            return
        own = processes.part(shortest_first(held_out))
        margins = held_out_margins(network, intervention, own, options.batch, held_out_read)
        whole = processes.whole(margins, len(held_out), network.device)
        metric = measured(step, loss, whole, validate(intervention))
        course.record(metric, intervention.copy)
        if progress:
            progress(step, options.steps, metric)

    with frozen(network):
        if not course.metrics:
            measure(None)
        while step < options.steps and not (course.metrics and course.exhausted):
            through = in_step(intervention, step + 1) if in_step else intervention
            loss = _descend(network, through, pivots, options, rule, recompute, step + 1, batch_read, processes)
            step, read = step + 1, 0
            if progress:
                progress(step, options.steps, None)
            if options.validated(step):
                measure(loss)
            if state_path is not None and processes.first:
                _save_state(state_path, intervention, course, rule, step)
    rate = rule.param_groups[0]["lr"] if given is None and step else None
    if not course.metrics:
        return Training(intervention.copy(), step, [], "steps", rate)
    return course.result("steps" if step == options.steps else "patience", rate)


def _descend(
    network: PreTrainedModel,
    intervention: Trainable,
    pivots: Sequence[Pivot],
    options: UpdateOptions,
    rule: torch.optim.Optimizer,
    recompute: Sequence[nn.Module],
    step: int,
    progress: Callable[[int], None],
    processes: Processes,
) -> float:
    """One step of `rule`; the loss before it."""
    loss, gradients = full_gradient(
        network, intervention, pivots, options.batch, options.loss, recompute, progress, processes
    )
    for name, gradient in gradients.items():
        what = f"step {step}: with a loss of {loss:g} the gradient of {name} is"
        check_finite(gradient, what, network, lambda: held_out_margins(network, intervention, pivots, options.batch))
        intervention.parameters[name].grad = gradient
    if options.learning_rate == "auto" and step == 1:
        squared = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
        rule.param_groups[0]["lr"] = _FIRST_DROP / squared if squared else 0.0
    rule.step()
    return loss


def _save_state(
    path: Path, intervention: Trainable, course: Course[Any], rule: torch.optim.Optimizer, step: int
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, value in intervention.parameters.items():
        tensors[f"now.{name}"], tensors[f"best.{name}"] = value.detach(), course.best.parameters[name].detach()
        for key, moment in rule.state.get(value, {}).items():
            if isinstance(moment, Tensor):
                tensors[f"{key}.{name}"] = moment
    metadata = {"step": str(step), "metrics": json.dumps([asdict(m) for m in course.metrics])}
    save_tensors(path, tensors, metadata | {"rate": repr(rule.param_groups[0]["lr"])})


@torch.no_grad()
def _take_state(
    path: Path, saved: Saved, intervention: Trainable, course: Course[Any], rule: torch.optim.Optimizer
) -> int:
    """Put what `_save_state` wrote to `path` into `intervention`, `course` and `rule`; the steps done."""
    tensors, metadata = saved
    with of_a_state(path):
        step, metrics = int(metadata["step"]), [Metric(**m) for m in json.loads(metadata["metrics"])]
        rule.param_groups[0]["lr"] = float(metadata["rate"])
        for name, value in intervention.parameters.items():
            for kept in ("now", "best"):
                check_shape(tensors[f"{kept}.{name}"], value.shape)
        for name, value in intervention.parameters.items():
            value.copy_(tensors[f"now.{name}"])
            course.best.parameters[name].copy_(tensors[f"best.{name}"])
            kept = [key for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            if kept:
                moments = {key: tensors[f"{key}.{name}"].to(value) for key in kept}
                rule.state[value] = {"step": tensors[f"step.{name}"], **moments}
        course.metrics = metrics
    return step
