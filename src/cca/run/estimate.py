"""How long a run takes and what it holds on devices that may be elsewhere: a plan, counts and costs together."""

from dataclasses import dataclass
from typing import NamedTuple

from cca.controls.methods import OF_SOLUTIONS
from cca.model.placement import GIB
from cca.run.config import Config
from cca.run.cost import Passes, Split, StageCost, costs
from cca.run.counts import (
    TASKS,
    USUAL,
    Counts,
    Expected,
    Lengths,
    Limits,
    answered,
    completions,
    samples_drawn,
    settled,
    trainings,
    usable,
)
from cca.run.devices import Devices
from cca.run.plan import Plan, planned
from cca.run.plan_memory import Free, Memory, bytes_of, training_of
from cca.run.stand_ins import NOTHING, Stated, stand_in

RESERVED_GIB = 1.0
"""What the driver and its libraries keep of a GPU."""
_BESIDE = 1.25
"""Of the weights, what a group of devices must hold at least."""


@dataclass(frozen=True)
class Hours:
    """Of a stage, or of a run: as expected, and at most."""

    expected: float
    most: float


@dataclass(frozen=True)
class Estimate:
    """A plan, and how long it takes. expected, most: costs by stage. hours: of all of them.

    replicas, group: so many copies of the model work side by side, each on so many devices; 0 where these are fewer
    than needed, and there are no costs. assumed: what was not known.
    """

    plan: Plan
    devices: str
    expected: dict[str, StageCost]
    most: dict[str, StageCost]
    hours: Hours
    replicas: int
    group: int
    needed: int
    assumed: list[str]


def estimate(config: Config, devices: Devices, stated: Stated = NOTHING, expected: Expected = USUAL) -> Estimate:
    """The plan of `config` on `devices`, whatever of it is here.

    Raises:
        InputError: nothing is known of the model, or what is stated cannot be.
    """
    of, assumed = stand_in(config, stated)
    free = free_on(devices)
    plan = planned(config, of, free)
    shared = split_of(plan.memory_gib, devices)
    if shared.group > 1:
        assumed.append(
            f"the weights need {shared.group} devices: stage 1 and the evaluation with tensor parallel engines, stages "
            "2 and 3 with model.device_map, layer after layer"
        )
        free = free_on(devices, shared.group)
        plan = planned(config, of, free)
    size = bytes_of(config.model.dtype)
    passes, training = Passes(of.shape, size, devices.device), training_of(config, of.shape)
    place = plan.memory_gib.prefixes.place
    usual, most = (
        costs(passes, counts_of(config, plan, of.lengths, known), training, place, shared) if shared.group else {}
        for known in (expected, None)
    )
    hours = Hours(*(sum(stage.seconds for stage in stages.values()) / 3600 for stages in (usual, most)))
    assumed += _expectations(config, plan, of.lengths, expected)
    needed = devices_needed(plan.memory_gib, devices)
    return Estimate(plan, str(devices), usual, most, hours, shared.replicas, shared.group, needed, assumed)


def free_on(devices: Devices, group: int = 1) -> Free:
    """What `group` of the devices, and their share of the main memory, have."""
    device = devices.device
    if device.is_cpu:
        return Free(device.memory, None, True)
    host = None if devices.host is None else devices.host * group / devices.count
    return Free(group * (device.memory - RESERVED_GIB * GIB), host, False)


def devices_needed(memory: Memory, devices: Devices) -> int:
    """How many of the devices hold the weights and a quarter more: one, or twice as many as often as it takes."""
    has, group = free_on(devices).device, 1
    while has is not None and memory.weights * GIB * _BESIDE > group * has:
        group *= 2
    return group


def split_of(memory: Memory, devices: Devices) -> Split:
    """How so many devices share the work: groups of as few as are needed; none where all are too few."""
    group = devices_needed(memory, devices)
    return Split(devices.count // group, group) if group <= devices.count else Split(0, 0)


def counts_of(config: Config, plan: Plan, lengths: Lengths, expected: Expected | None) -> Counts:
    """What there is to do, as expected; None: at most."""
    work, options, stages = plan.work, config.circuit, plan.memory_gib.stages
    traced, samples = work.greedy_traces, config.traces.samples
    pairs, train, drawn = float(traced), float(work.pivots), float(samples)
    if expected is not None:
        pairs, train, drawn = usable(expected, traced), usable(expected, train), samples_drawn(expected, samples)
    tasks = _benchmarks(config)
    return Counts(
        answered(lengths, Limits(work.max_new_tokens, work.answer_tokens), expected),
        traced,
        samples=traced * drawn,
        pairs=pairs,
        completions=pairs * completions(expected, config.pivots.sampled(work.max_new_tokens)),
        pivots=train,
        held_out=pairs - train,
        trainings=trainings(options.target_density is not None, expected),
        steps=options.steps(max(1, round(train))) * settled(options.epochs, expected),
        batch=options.batch,
        updates=config.update.steps,
        trained_on=work.pivots if config.update.method in OF_SOLUTIONS else train,
        validations=work.validations,
        validated=work.validation_problems,
        answers=work.answers,
        drift=_drift_texts(config, plan),
        task_read=2 * tasks.read,
        task_written=2 * tasks.written,
        trace_slots=max(1, stages["trace"].slots),
        answer_slots=max(1, stages["evaluate"].slots),
        rounds=work.rounds if expected is None else 1,
    )


def _drift_texts(config: Config, plan: Plan) -> int:
    """Solutions by which drift is measured: of each set, and no more than it has."""
    options, sizes = config.evaluation, plan.work.problems
    skills = len(options.transfer) + len(options.retention)
    most = options.drift_problems
    return sum(min(most, sizes.get(split, 0)) for split in ("test", "held_out")) + skills * min(most, options.per_skill)


class _Tokens(NamedTuple):
    read: float
    written: float


def _benchmarks(config: Config) -> _Tokens:
    """What one model reads and writes for the benchmarks that are known."""
    read = written = 0.0
    for task in (TASKS[name] for name in config.evaluation.tasks if name in TASKS):
        limit = config.evaluation.task_limit
        documents = min(task.documents, limit * task.subtasks) if limit else task.documents
        read, written = read + documents * task.read, written + documents * task.written
    return _Tokens(read, written)


def _expectations(config: Config, plan: Plan, lengths: Lengths, expected: Expected) -> list[str]:
    """What is expected and nobody knows, and which setting of `cca plan` says it otherwise."""
    drawn = samples_drawn(expected, config.traces.samples)
    tokens = min(expected.trace_tokens or lengths.answer, plan.work.max_new_tokens)
    found = [
        f"texts of {tokens:.0f} tokens, as worked solutions have where there are any (--trace-tokens)"
        if expected.trace_tokens is None
        else f"texts of {tokens:.0f} tokens",
        f"{expected.opposite:.0%} of the problems have an opposite sample (--opposite), after {drawn:.1f} samples a "
        "problem (--samples-drawn)",
        f"{expected.completions:g} completions a pair (--completions), gates settled after a third of circuit.epochs",
    ]
    unknown = [name for name in config.evaluation.tasks if name not in TASKS]
    return found + ([f"benchmarks that are not reckoned: {', '.join(unknown)}"] if unknown else [])
