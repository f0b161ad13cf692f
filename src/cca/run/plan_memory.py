"""What each stage of a run holds in memory, against what the device has: bytes from sizes alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cca.controls.methods import OF_SOLUTIONS
from cca.model.placement import GIB, Where, place
from cca.run.config import Config
from cca.run.cost import Training, tokens_of_a_pass
from cca.run.counts import Lengths
from cca.run.shape import Shape

TYPICAL_DENSITY = 0.016
"""Of the paper's circuits; a run's own is known once its circuit is learned."""
_COLUMNS = 128
"""Columns of a slot are a multiple of this, as in `cca.model.generate`."""
_PREDICTED, _COMPARED = 2**29, 2**27
"""Logits of a pass at most, where a trace's own tokens are predicted, and where drift compares two models."""
_COPIES_COMPARED = 5
"""Of them in float32 that drift holds at once."""
_STATE = {"descent": 16, "adam": 24}
"""Bytes a trained number: itself, the best of it, its gradient and one that is added to it; and Adam's two moments."""
_FINE_TUNED = 24
"""Bytes a weight of full fine-tuning beside the model: the trained copy, gradient, two moments, and on the CPU the best
change and the latest."""
_BY_ADAM = ("lora", "lora-pivots", "finetune")


class Free(NamedTuple):
    """Bytes. device: that it can give before the weights are there. host: of main memory besides; None where the device
    is the host, or nobody says."""

    device: float | None
    host: float | None = None
    is_cpu: bool = True


@dataclass(frozen=True)
class Prefixes:
    """GiB of keys and values of all pivots' prefixes. padded: each with the start that all share.
    stored: that start once, and what is each one's own. place: where they go; ``chunks``: nowhere, each step
    reads its own again."""

    padded: float
    stored: float
    place: Where


@dataclass(frozen=True)
class StageMemory:
    """GiB. takes: beside the weights. needs: with them. fits: None where nobody says what the device has.

    slots: texts that it writes at once, as many as asked for or as fit; 0 where it writes none. note: what of.
    """

    takes: float
    needs: float
    fits: bool | None
    slots: int
    note: str


@dataclass(frozen=True)
class Memory:
    """GiB, estimated, without what Python and torch hold themselves. has: the device, before the weights are there.

    trace to evaluate: what each stage's hungriest moment takes beside the weights. notes: what of, by stage.
    """

    weights: float
    trace: float
    pivots: float
    circuit: float
    update: float
    evaluate: float
    peak: float
    has: float | None
    notes: dict[str, str]
    prefixes: Prefixes
    stages: dict[str, StageMemory]

    @property
    def fits(self) -> bool:
        """Whether all of it does, as far as anybody knows."""
        return all(stage.fits is not False for stage in self.stages.values())


def bytes_of(dtype: str) -> int:
    """Of a number of this type; ``auto`` counts as float32."""
    return 4 if dtype in ("float32", "auto") else 2


def training_of(config: Config, shape: Shape) -> Training:
    """What stage 3 trains."""
    update, method = config.update, config.update.method
    parameters = {
        "all": shape.rows,
        "bias": shape.vocabulary,
        "steering": shape.width,
        "lora": update.lora_rank * shape.adapted,
        "lora-pivots": update.lora_rank * shape.adapted,
        "finetune": shape.parameters,
    }.get(method, shape.rows * TYPICAL_DENSITY)
    return Training(parameters, update.gradient_checkpointing, method in OF_SOLUTIONS)


def plan_memory(config: Config, shape: Shape, lengths: Lengths, longest: int, pivots: float, free: Free) -> Memory:
    """What each stage of the run of `config` holds.

    Args:
        lengths: mean ones.
        longest: tokens of the longest prompt.
        pivots: to train on, of which stage 2 keeps the prefixes.
        free: what there is.
    """
    return _Reckoning(config, shape, lengths, longest, pivots, free).memory()


class _Writing(NamedTuple):
    """Bytes. row: of a text that is being written. rest: whatever their number."""

    row: float
    rest: float


class _Reckoning:
    """In bytes. left: what the device has beside the weights. own: tokens of the longest prompt after the start."""

    def __init__(self, config: Config, shape: Shape, lengths: Lengths, longest: int, pivots: float, free: Free):
        self.config, self.shape, self.lengths, self.pivots, self.free = config, shape, lengths, pivots, free
        self.size = bytes_of(config.model.dtype)
        self.a_token = self.size * shape.key_values
        self.weights = self.size * shape.parameters
        self.a_pass = tokens_of_a_pass(free.is_cpu)
        self.left = None if free.device is None else free.device - self.weights
        self.longest, self.own = longest, longest - lengths.shared

    def memory(self) -> Memory:
        config = self.config
        limit, answers = config.traces.max_new_tokens, config.answer_limit.tokens
        trace, answer = self.writing(0, limit), self.writing(0, answers)
        drift = self.drift()
        prefixes = self.prefixes()
        stages = {
            "trace": self.written(trace, config.traces.batch),
            "pivots": self.written(self.writing(limit, limit), config.traces.batch),
            "circuit": self.learned(self.gates(prefixes), _SAID[prefixes.place].format(prefixes)),
            "update": self.update(answer),
            "evaluate": self.written(answer, config.evaluation.batch, drift),
        }
        auto = " (as float32; half as much where model.dtype auto comes to bfloat16)"
        notes = {"weights": auto if config.model.dtype == "auto" else ""}
        notes |= {name: f" ({stage.note})" for name, stage in stages.items() if stage.note}
        takes = {name: stage.takes for name, stage in stages.items()}
        weights, has = _gib(self.weights), None if self.free.device is None else _gib(self.free.device)
        peak = round(weights + max(takes.values()), 3)
        return Memory(weights=weights, **takes, peak=peak, has=has, notes=notes, prefixes=prefixes, stages=stages)

    # ---- writing ----

    def writing(self, held: int, limit: int) -> _Writing:
        """Rows of at most `limit` new tokens, each after a text of its own that is kept: a prompt, and of a trace up to
        `held` tokens more."""
        shared = self.lengths.shared
        begun = self.own + held
        slot = _multiple(begun + limit - held + (0 if self.free.is_cpu else shared), _COLUMNS)
        # the logits of the row, and a copy
        row = (begun + slot) * self.a_token + 2 * self.size * self.shape.vocabulary
        read = self.a_pass * (self.a_token + self.size * (4 * self.shape.width + 3 * self.shape.neurons))
        predicted = 2 * self.size * min(self.a_pass * self.shape.vocabulary, _PREDICTED) if held else 0
        return _Writing(row, shared * self.a_token + read + predicted)

    def slots(self, writing: _Writing, asked: int) -> int:
        """As many as are asked for, or as fit."""
        if self.left is None:
            return asked
        return max(1, min(asked, int((self.left - writing.rest) // writing.row)))

    def written(self, writing: _Writing, asked: int, besides: float = 0) -> StageMemory:
        slots = self.slots(writing, asked)
        took = max(writing.rest + asked * writing.row, besides)
        fewer = f"{slots} of {asked} texts at once" if slots < asked else ""
        return self.learned(took, fewer, slots)

    def learned(self, took: float, note: str, slots: int = 0) -> StageMemory:
        fits = None if self.left is None else took <= self.left
        return StageMemory(_gib(took), _gib(took + self.weights), fits, slots, note)

    # ---- learning ----

    def prefixes(self) -> Prefixes:
        """As if each reached to the end of its trace."""
        own = self.lengths.prompt + self.lengths.answer
        padded = self.pivots * (self.lengths.shared + own) * self.a_token
        stored = (self.lengths.shared + self.pivots * own) * self.a_token
        free, host = (None if n is None else int(n) for n in (self.left, self.free.host))
        where = place(int(stored), self.config.circuit.cache_gib, free, host).where
        return Prefixes(_gib(padded), _gib(stored), where)

    def gates(self, prefixes: Prefixes) -> float:
        """A step looks at a copy of what it gathered, whose gradient is as large."""
        longest = self.longest + self.config.traces.max_new_tokens
        step = self.config.circuit.batch * (2 * longest * self.a_token + 3 * 4 * self.shape.vocabulary)
        return step + (prefixes.stored * GIB if prefixes.place == "device" else 0)

    def update(self, answer: _Writing) -> StageMemory:
        """A gradient, or a validation; in both what is trained is there."""
        config, trained = self.config.update, training_of(self.config, self.shape)
        state = trained.parameters * _STATE["adam" if config.method in _BY_ADAM else "descent"]
        if config.method == "finetune":
            state = trained.parameters * (_FINE_TUNED if self.free.is_cpu else _FINE_TUNED - 8)
        if config.method == "gradient":  # chosen by the gradient of all rows
            state = max(state, self.shape.rows * 12)
        once = state + self.activations(trained)
        slots = self.slots(answer, self.config.evaluation.batch)
        validation = state + answer.rest + self.config.evaluation.batch * answer.row
        what = "activations of one layer at a time" if trained.twice else "activations"
        if state > once / 2:
            what = f"what {config.method} trains, with gradients{' and moments' if config.method in _BY_ADAM else ''}"
        if validation > once:
            what = "answers of a validation"
        return self.learned(max(once, validation), what, slots)

    def activations(self, trained: Training) -> float:
        """Of the largest pass, and of attention where its scores are written to memory."""
        config, shape, limit = self.config.update, self.shape, self.config.traces.max_new_tokens
        if trained.on_solutions:
            row = context = self.longest + 1.5 * self.lengths.solution
            rows, logits = config.solution_batch, config.solution_batch * self.lengths.solution
        else:
            row, context = self.own + limit, self.longest + limit
            budget = max(self.a_pass, 2 * self.lengths.shared, row)
            rows = logits = min(config.batch, self.pivots, max(1, budget // row))
        count = rows * row + (0 if trained.on_solutions else self.lengths.shared)
        scores = shape.heads * context * (2 * self.size + 4) if shape.eager else 0
        again = shape.widest * self.size + scores + self.size * shape.width * shape.layers
        whole = shape.activations * self.size + scores * shape.layers
        return count * (again if trained.twice else whole) + 12 * logits * shape.vocabulary

    def drift(self) -> float:
        """Log probabilities of all tokens under both models."""
        logits = min(self.config.update.batch * self.lengths.solution * self.shape.vocabulary, _COMPARED)
        return _COPIES_COMPARED * 4 * logits


_SAID: Mapping[Where, str] = {
    "device": "keys and values of all prefixes: {0.stored:.2f}",
    "host": "keys and values of all prefixes, {0.stored:.2f}, in main memory",
    "chunks": "all prefixes take {0.stored:.1f}, over circuit.cache_gib or half of what is free, so each step reads "
    "its own again",
}


_PLACES: Mapping[Where, str] = {
    "device": "prefixes on the device",
    "host": "prefixes in main memory",
    "chunks": "prefixes read again in each step",
}


def said(memory: Memory) -> str:
    """The plan in a line."""
    of = "" if memory.has is None else f" of {memory.has:.2f}"
    return f"about {memory.peak:.2f}{of} GiB at most; {_PLACES[memory.prefixes.place]}"


def lacking(memory: Memory, config: Config) -> str:
    """Which stages do not fit, and what to set there; nothing where all do."""
    stages = memory.stages
    return "; ".join(
        f"{name} may need {stages[name].needs:.1f} of {memory.has:.1f} GiB (set {what})"
        for name, what in remedies(memory, config).items()
    )


def remedies(memory: Memory, config: Config) -> dict[str, str]:
    """What to set where a stage does not fit, by stage."""
    found: dict[str, str] = {}
    for name, stage in memory.stages.items():
        if stage.fits is not False:
            continue
        batch = {"trace": "traces.batch", "pivots": "traces.batch", "evaluate": "evaluation.batch"}.get(name)
        if batch:
            found[name] = f"{batch} = {stage.slots}"
        elif name == "circuit":
            found[name] = f"circuit.batch = {max(1, config.circuit.batch // 2)}, or traces.max_new_tokens lower"
        elif not config.update.gradient_checkpointing:
            found[name] = "update.gradient_checkpointing = true"
        else:
            rows = "solution_batch" if config.update.method in OF_SOLUTIONS else "batch"
            found[name] = f"update.{rows} lower" + f", evaluation.batch = {stage.slots}" * (stage.slots > 0)
    return found


def _gib(number: float) -> float:
    return round(number / GIB, 3)


def _multiple(number: float, of: int) -> int:
    return math.ceil(number / of) * of
