"""What a run costs: operations, bytes moved and seconds by stage, of a model's shape, of counts and of devices.

docs/scaling.md explains the formulas. A part of a stage takes as long as its products or its bytes, whichever take
longer, and besides what each call of a layer costs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cca.model.placement import Where
from cca.run.counts import Counts
from cca.run.devices import Device
from cca.run.shape import Shape

Kind = Literal["read", "write", "gates", "gradient"]
Binds = Literal["compute", "memory bandwidth", "calls of layers"]
RANGE = 2.0
"""A stage may take so many times as long as is said, or so many times less: no better are the shares of
`cca.run.devices` known."""
_FORWARD, _TO_INPUTS, _TO_WEIGHTS = 2, 2, 2
"""Operations for each weight and token."""
_OF_ATTENTION, _AND_BACKWARD = 4, 12
"""Operations for each number of a query and each position it looks at: scores and mixture; with their gradients."""
_MOVED = 6
"""How often a step of gates moves the keys and values that it looks at: gathered, and read forward and backward."""


class Training(NamedTuple):
    """Of stage 3. parameters: that are trained. twice: layers are computed again. on_solutions: padded solutions are
    read, each with its whole prompt."""

    parameters: float
    twice: bool = False
    on_solutions: bool = False


class Split(NamedTuple):
    """How devices share the work: `replicas`, each of `group` devices that hold the model together."""

    replicas: int = 1
    group: int = 1


ALONE = Split()
"""One device."""


@dataclass(frozen=True)
class Load:
    """Work of one kind on one replica. tokens: that are read or written. products, attention: operations.

    moved: bytes of the device's memory. calls: of a layer. fetched, exchanged: bytes from main memory, and to other
    devices.
    """

    kind: Kind
    tokens: float = 0
    products: float = 0
    attention: float = 0
    moved: float = 0
    calls: float = 0
    fetched: float = 0
    exchanged: float = 0

    def times(self, count: float) -> "Load":
        """So many of it."""
        numbers = (self.tokens, self.products, self.attention, self.moved, self.calls, self.fetched, self.exchanged)
        return Load(self.kind, *(count * number for number in numbers))


class Seconds(NamedTuple):
    """total: the longer of compute and bandwidth, and calls."""

    compute: float
    bandwidth: float
    calls: float
    total: float


@dataclass(frozen=True)
class StageCost:
    """What a stage takes. read, written: tokens, and operations, of all devices. moved: bytes that each replica moves.

    binds: what most of its time goes to.
    """

    stage: str
    read: float
    written: float
    operations: float
    moved: float
    seconds: float
    binds: Binds


def tokens_of_a_pass(is_cpu: bool) -> int:
    """As `cca.model.read.TOKENS`, which loads torch."""
    return 2048 if is_cpu else 4096


@dataclass(frozen=True)
class Passes:
    """A model of `shape`, whose numbers have `size` bytes, on a device; each pass reads at most `most` tokens."""

    shape: Shape
    size: int
    device: Device

    @property
    def most(self) -> int:
        return tokens_of_a_pass(self.device.is_cpu)

    @property
    def weights(self) -> int:
        """Numbers that a step multiplies with."""
        return self.shape.linear + self.shape.head

    def read(self, tokens: float, context: float, texts: float = 0) -> Load:
        """Read `tokens` that look at `context` others each, on average; logits after `texts` of them."""
        shape, passes = self.shape, math.ceil(tokens / self.most)
        return Load(
            "read",
            tokens,
            _FORWARD * (shape.linear * tokens + shape.head * texts),
            _OF_ATTENTION * shape.queries * context * tokens,
            self.size * (passes * self.weights + shape.key_values * tokens),
            passes * shape.layers,
        )

    def write(self, tokens: float, slots: int, context: float, answer: float, shared: float = 0) -> Load:
        """Write `tokens`, at most `slots` a step; the last texts, of `answer` tokens, take as many steps more.

        shared: of the context, what all texts begin with; a CPU looks at that once for all rows.
        """
        if not tokens:
            return Load("write")
        steps = tokens / min(slots, max(1.0, tokens / answer)) + answer
        looked_at = tokens * (context - shared) + steps * shared if self.device.is_cpu else tokens * context
        return Load(
            "write",
            tokens,
            _FORWARD * self.weights * tokens,
            _OF_ATTENTION * self.shape.queries * context * tokens,
            self.size * (steps * self.weights + looked_at * self.shape.key_values),
            steps * self.shape.layers,
        )

    def gates(self, batch: float, context: float, own: float, place: Where) -> list[Load]:
        """A step of stage 2: `batch` tokens look at `context` others, of which `own` are in no shared start."""
        shape, kept = self.shape, batch * self.size * self.shape.key_values
        step = Load(
            "gates",
            batch,
            (_FORWARD + _TO_INPUTS) * self.weights * batch,
            _AND_BACKWARD * shape.queries * context * batch,
            self.size * 2 * self.weights + _MOVED * context * kept,
            shape.layers,
            fetched=own * kept if place == "host" else 0,
            exchanged=2 * 4 * shape.components,
        )
        return [step, self.read(batch * own, context)] if place == "chunks" else [step]

    def gradient(self, tokens: float, context: float, texts: float, of: Training) -> Load:
        """A step of stage 3: `tokens` forward and backward; logits after `texts` of them."""
        shape, passes = self.shape, math.ceil(tokens / self.most)
        often = 1 + of.twice
        through = _FORWARD * often + _TO_INPUTS
        return Load(
            "gradient",
            tokens,
            through * (shape.linear * tokens + shape.head * texts)
            + _TO_WEIGHTS * min(of.parameters, shape.linear) * tokens,
            (_AND_BACKWARD + _OF_ATTENTION * of.twice) * shape.queries * context * tokens,
            self.size * (often + 1) * (passes * self.weights + shape.key_values * tokens) + 16 * of.parameters,
            passes * shape.layers,
            exchanged=2 * 4 * of.parameters,
        )

    def seconds(self, load: Load, split: Split = ALONE) -> Seconds:
        """How long it takes. The devices of a group compute together where they read and write (tensor parallel), and
        one after the other where they learn (`model.device_map`)."""
        device, shares = self.device, self.device.shares
        together = split.group if load.kind in ("read", "write") else 1
        peak = device.flops(self.size) * together
        reached = {"read": shares.read, "gradient": shares.gradient}.get(load.kind, shares.write)
        compute = load.products / (peak * reached) + load.attention / (peak * shares.attention)
        bandwidth = load.moved / (device.bandwidth * shares.bandwidth * together) + load.fetched / device.host
        if split.replicas > 1:
            bandwidth += load.exchanged / device.link
        calls = load.calls * (shares.both if load.kind in ("gates", "gradient") else shares.forward)
        each = {"read": shares.read_token, "gradient": 0.0}.get(load.kind, shares.write_token)
        calls += each * load.tokens * self.shape.layers
        return Seconds(compute, bandwidth, calls, max(compute, bandwidth) + calls)


def costs(
    passes: Passes, counts: Counts, training: Training, place: Where, split: Split = ALONE
) -> dict[str, StageCost]:
    """What each stage takes, by its name.

    training: of stage 3. place: where stage 2 keeps its prefixes. Writing and reading are split by problems, steps of
    stages 2 and 3 by their pivots, whose gradients are summed.
    """
    stages: dict[str, Callable[[], list[Load]]] = {
        "trace": lambda: _trace(passes, counts, split.replicas),
        "pivots": lambda: _pivots(passes, counts, split.replicas),
        "circuit": lambda: _circuit(passes, counts, place, split.replicas),
        "update": lambda: _update(passes, counts, training, split.replicas),
        "evaluate": lambda: _evaluate(passes, counts, split.replicas),
    }
    return {name: _sum(passes, name, loads(), split) for name, loads in stages.items()}


def _sum(passes: Passes, stage: str, loads: list[Load], split: Split) -> StageCost:
    times = [passes.seconds(load, split) for load in loads]
    parts: dict[Binds, float] = {"compute": 0, "memory bandwidth": 0, "calls of layers": 0}
    for one in times:
        longer: Binds = "compute" if one.compute >= one.bandwidth else "memory bandwidth"
        parts[longer] += max(one.compute, one.bandwidth)
        parts["calls of layers"] += one.calls
    return StageCost(
        stage,
        split.replicas * sum(load.tokens for load in loads if load.kind != "write"),
        split.replicas * sum(load.tokens for load in loads if load.kind == "write"),
        split.replicas * sum(load.products + load.attention for load in loads),
        sum(load.moved for load in loads),
        sum(one.total for one in times),
        max(parts, key=lambda part: parts[part]),
    )


def _trace(passes: Passes, counts: Counts, replicas: int) -> list[Load]:
    of, traces = counts.lengths, counts.traced + counts.samples
    before = of.shared + of.prompt
    prompts = passes.read(of.shared + counts.traced * of.prompt / replicas, of.shared + of.prompt / 2, counts.traced)
    written = passes.write(
        traces * of.answer / replicas, counts.trace_slots, before + of.answer / 2, of.answer, of.shared
    )
    return [load.times(counts.rounds) for load in (prompts, written)]


def _pivots(passes: Passes, counts: Counts, replicas: int) -> list[Load]:
    """Each sampled trace is read with logits after all of its tokens; completions go on from the middle of it."""
    of, pairs = counts.lengths, counts.pairs / replicas
    own = of.prompt + of.answer
    traces = passes.read(of.shared + pairs * own, of.shared + own / 2, pairs * of.answer)
    written = counts.completions / replicas * of.rest
    context = of.shared + of.prompt + of.answer - of.rest / 2
    completions = passes.write(written, counts.trace_slots, context, of.rest, of.shared)
    return [load.times(counts.rounds) for load in (traces, completions)]


def _circuit(passes: Passes, counts: Counts, place: Where, replicas: int) -> list[Load]:
    of, steps = counts.lengths, counts.rounds * counts.trainings * counts.steps
    once = passes.read(of.shared + counts.pivots * of.prefix / replicas, of.shared + of.prefix / 2)
    batch = max(1.0, min(counts.batch, counts.pivots) / replicas)
    step = passes.gates(batch, of.shared + of.prefix, of.prefix, place)
    return [once.times(counts.rounds), *(load.times(steps) for load in step)]


def _update(passes: Passes, counts: Counts, training: Training, replicas: int) -> list[Load]:
    of, each = counts.lengths, counts.trained_on / replicas
    if training.on_solutions:
        own = of.shared + of.prompt + of.solution
        step = passes.gradient(each * own, own / 2, each * of.solution, training)
    else:
        # a pass has as many prefixes as are worth reading their shared start again
        passes_of_own = each * of.prefix / max(passes.most, 2 * of.shared)
        tokens = each * of.prefix + math.ceil(passes_of_own) * of.shared
        step = passes.gradient(tokens, of.shared + of.prefix / 2, each, training)
    held = counts.held_out / replicas
    margins = passes.read(held * of.prefix + of.shared, of.shared + of.prefix / 2, held)
    answered = _answers(passes, counts, counts.validated / replicas, of.answer)
    measured = [load.times(counts.validations) for load in (margins, *answered)]
    return [load.times(counts.rounds) for load in (step.times(counts.updates), *measured)]


def _answers(passes: Passes, counts: Counts, problems: float, tokens: float) -> list[Load]:
    of = counts.lengths
    prompts = passes.read(of.shared + problems * of.prompt, of.shared + of.prompt / 2, problems)
    context = of.shared + of.prompt + tokens / 2
    return [prompts, passes.write(problems * tokens, counts.answer_slots, context, tokens, of.shared)]


def _evaluate(passes: Passes, counts: Counts, replicas: int) -> list[Load]:
    """Answers, drift on worked solutions, what both models make of the pivots, and benchmarks."""
    of, texts = counts.lengths, 2 * counts.drift / replicas
    own = of.prompt + of.solution
    drift = passes.read(texts * own, of.shared + own / 2, texts * of.solution)
    both = 2 * (counts.pivots + counts.held_out) / replicas
    choices = passes.read(both * of.prefix, of.shared + of.prefix / 2, both)
    tasks = passes.read(counts.task_read / replicas, of.prompt, counts.task_read / replicas)
    written = passes.write(counts.task_written / replicas, counts.answer_slots, of.prompt, 16)
    return [*_answers(passes, counts, counts.answers / replicas, of.reply), drift, choices, tasks, written]
