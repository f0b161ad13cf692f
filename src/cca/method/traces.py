"""Stage 1a: for each problem a greedy trace and a sampled trace of opposite correctness (paper section 3.1)."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from cca.errors import InputError
from cca.method.options import TraceOptions
from cca.model.checks import check_prompts
from cca.model.engine import Engine
from cca.model.generate import Row, Watch
from cca.model.open import Model, opened
from cca.model.read import Text, texts
from cca.model.sampling import stream
from cca.model.state import frozen
from cca.options import check_seed
from cca.problems.prompts import Prompter
from cca.records import Problem, Score, Trace, TracePair, check_problems

TRACED = ("train", "validation")
"""Splits whose problems are traced. All others are only ever evaluated."""
WAVE = 3
"""Samples of a problem that are drawn at once, at most."""
CUT_SHARE = 0.02
"""More texts than this that the limit of tokens ended are worth a warning."""


@dataclass(frozen=True)
class Traces:
    """Pairs of traces, with the problems that they answer and how they were drawn."""

    pairs: tuple[TracePair, ...]
    problems: dict[str, Problem] = field(repr=False)
    options: TraceOptions = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TracePair]:
        return iter(self.pairs)

    def __repr__(self) -> str:
        right = sum(pair.greedy.correct for pair in self.pairs) / max(1, len(self.pairs))
        opposite = sum(pair.sampled is not None for pair in self.pairs)
        cut = f", {self.cut:.1%} of the traces cut at {self.options.max_new_tokens} tokens" if self.cut else ""
        return f"Traces({len(self.pairs)} problems, {right:.1%} right, {opposite} with an opposite sample{cut})"

    @property
    def cut(self) -> float:
        """The share of all traces, greedy and sampled, that the limit of tokens ended."""
        return share_cut(trace for pair in self.pairs for trace in pair.by_kind().values())

    @cached_property
    def solved(self) -> frozenset[str]:
        """Templates whose training problems the base model solves in at least the share `skip_solved` (0: none)."""
        share, outcomes = self.options.skip_solved, dict[str, list[bool]]()
        for pair in self.pairs if share else ():
            if pair.split == "train":
                outcomes.setdefault(pair.template, []).append(pair.greedy.correct)
        # a quotient is rounded as a decimal is, so 4 of 5 are 0.8
        return frozenset(t for t, correct in outcomes.items() if sum(correct) / len(correct) >= share)

    @property
    def usable(self) -> list[TracePair]:
        """The pairs with both traces, of templates that are not solved."""
        return [pair for pair in self.pairs if pair.sampled and pair.template not in self.solved]


def share_cut(written: Iterable[Trace | Score]) -> float:
    """The share of texts that the limit of tokens ended."""
    cut = [one.cut for one in written]
    return sum(cut) / max(1, len(cut))


def cut_note(share: float) -> str:
    """What to add to a figure, such as ``, 9% cut``, where that share is noteworthy."""
    return f", {share:.0%} cut" if share >= CUT_SHARE else ""


def cut_off(share: float, limit: int, what: str = "the traces", setting: str = "traces.max_new_tokens") -> str | None:
    """What to say where the limit of tokens ended a noteworthy share of `what`, or None."""
    if share < CUT_SHARE:
        return None
    return (
        f"{share:.0%} of {what} were cut at {setting} = {limit}, which counts as wrong unless the right answer came "
        "before; raise it"
    )


def trace(
    model: Model,
    problems: Sequence[Problem],
    options: TraceOptions | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> Traces:
    """Trace the training and validation problems among `problems`; test problems are left alone.

    Args:
        model: what is traced.
        problems: of any split.
        options: how traces are drawn; by default `TraceOptions()`.
        seed: of all samples. A trace depends on seed, problem and sample number alone.
        progress: told after each problem how many are done, and of how many.
        **changes: fields of `TraceOptions` that differ from `options`.

    Returns:
        A pair of traces for each problem, in the order of their prompts' lengths. A warning says where many were cut.

    Raises:
        InputError: none of the problems is for training or validation, two have one id, a prompt does not fit the
            model, or the seed is no int.
    """
    opened(model)
    check_seed(seed)
    check_problems(problems)
    options = TraceOptions.of(options, changes)
    traced = [p for p in problems if p.split in TRACED]
    if not traced:
        raise InputError(f"none of the {len(problems)} problems is for training or validation, so nothing is traced")
    prompts = [model.prompter.prompt(p) for p in traced]
    check_prompts(prompts, options.max_new_tokens, model.network.config, model.name)
    pairs: dict[str, TracePair] = {}

    def keep(pair: TracePair) -> None:
        pairs[pair.problem] = pair
        if progress:
            progress(len(pairs), len(traced))

    ordered = by_length(traced, model.prompter)
    with frozen(model.network):
        trace_pairs(model.engine, model.prompter, ordered, options, seed, keep)
    found = Traces(tuple(pairs[p.id] for p in ordered), {p.id: p for p in traced}, options)
    if said := cut_off(found.cut, options.max_new_tokens):
        warnings.warn(said, UserWarning, stacklevel=2)
    return found


def by_length(problems: Iterable[Problem], prompter: Prompter) -> list[Problem]:
    """`problems` in the order in which they are begun: by the length of their prompts, then by name."""
    return sorted(problems, key=lambda p: (len(prompter.prompt(p)), p.id))


def waves(samples: int) -> Iterator[range]:
    """Sample numbers in groups of 1, 1, 2, 3, 3 ...: most problems have their opposite after a draw or two."""
    start = 0
    for size in (1, 1, 2):
        yield range(start, min(samples, start + size))
        start += size
    while start < samples:
        yield range(start, min(samples, start + WAVE))
        start += WAVE


def trace_pairs(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    options: TraceOptions,
    seed: int,
    done: Callable[[TracePair], None],
    watch: Watch | None = None,
) -> None:
    """Trace `problems`, the first of them first; each pair is handed to `done` as soon as it is found.

    A problem whose greedy trace is correct is sampled at `temperature_if_correct` until one is wrong, and the other
    way round. Its samples are drawn in `waves`, each when the one before brought no opposite; slots that this leaves
    free draw the next wave ahead of time. Sample i of a problem has its own random stream, and the first in number that
    is of opposite correctness counts, so that this changes nothing but the time.

    Args:
        watch: sees the writing go on.
    """
    open_ones: dict[int, _Tracing] = {}

    def found(number: int, pair: TracePair) -> None:
        del open_ones[number]
        if watch:
            watch.over(number)
        done(pair)

    def ahead(free: int) -> list[Row]:
        nearest = sorted(open_ones.values(), key=lambda t: (t.ahead, t.number))
        return [row for tracing in nearest[:free] for row in tracing.ahead_of_time()]

    prompts = texts([prompter.prompt(p) for p in problems], prompter.start)
    for number, (problem, text) in enumerate(zip(problems, prompts, strict=True)):
        open_ones[number] = _Tracing(number, problem, text, prompter, options, seed, partial(found, number))
    rows = [tracing.greedy_row() for tracing in open_ones.values()]
    engine.write(rows, slots=options.batch, end_tokens=prompter.end_tokens, idle=ahead, watch=watch)


class _Tracing:
    """Where the traces of a problem stand.

    wave: which of the waves, that end before the samples `ends`, is wanted; -1 before the greedy trace has ended.
    begun: the samples that were begun. tried: how many are known to be of the greedy trace's correctness.
    """

    def __init__(
        self,
        number: int,
        problem: Problem,
        text: Text,
        prompter: Prompter,
        options: TraceOptions,
        seed: int,
        done: Callable[[TracePair], None],
    ):
        self.number, self.problem, self.text, self.prompter = number, problem, text, prompter
        self.options, self.seed, self.done = options, seed, done
        self.ends = [wave.stop for wave in waves(options.samples) if wave]
        self.wave, self.tried, self.begun = -1, 0, list[Row]()
        self.ended: dict[int, Trace] = {}

    def greedy_row(self) -> Row:
        return self._row((self.number,), then=self._greedy_ended)

    @property
    def ahead(self) -> int:
        """How many samples were begun that nobody wants yet."""
        return len(self.begun) - self.ends[self.wave] if self.wave >= 0 else 0

    def ahead_of_time(self) -> list[Row]:
        """The next sample of the next wave, though it may turn out that it is not needed."""
        if self.wave < 0 or len(self.begun) == self.ends[min(self.wave + 1, len(self.ends) - 1)]:
            return []
        return self._begin(len(self.begun) + 1)

    def _row(self, order: tuple[int, ...], **how: Any) -> Row:
        return Row(self.text, self.options.max_new_tokens, order, stop=self.prompter.stop_rule(), **how)

    def _greedy_ended(self, tokens: list[int]) -> list[Row]:
        self.greedy = self.prompter.trace(self.problem, tokens)
        return self._next_wave()

    def _next_wave(self) -> list[Row]:
        self.wave += 1
        if self.wave == len(self.ends):
            self._found(None)
            return []
        return self._begin(self.ends[self.wave])

    def _begin(self, stop: int) -> list[Row]:
        """Those of the samples before `stop` that were not begun."""
        options = self.options
        temperature = options.temperature_if_correct if self.greedy.correct else options.temperature_if_wrong
        fresh = [
            self._row(
                (self.number, n),
                temperature=temperature,
                top_k=options.top_k,
                uniforms=stream(self.seed, self.problem.id, n).random(options.max_new_tokens),
                then=partial(self._sample_ended, n),
            )
            for n in range(len(self.begun), stop)
        ]
        self.begun += fresh
        return fresh

    def _sample_ended(self, n: int, tokens: list[int]) -> list[Row]:
        """The first in number that is of opposite correctness is found once those before it have ended."""
        self.ended[n] = self.prompter.trace(self.problem, tokens)
        while self.tried in self.ended:
            if self.ended[self.tried].correct is not self.greedy.correct:
                for row in self.begun:
                    row.drop()
                self._found(self.tried)
                return []
            self.tried += 1
        rows: list[Row] = []
        while self.wave < len(self.ends) and self.tried >= self.ends[self.wave]:
            rows += self._next_wave()
        return rows

    def _found(self, number: int | None) -> None:
        problem, drawn = self.problem, self.options.samples if number is None else number + 1
        self.text.forget()
        opposite, reason = (None, "no_opposite") if number is None else (self.ended[number], None)
        self.done(
            TracePair(problem.id, problem.split, problem.template, self.text.ids, self.greedy, opposite, drawn, reason)
        )


def greedy_traces(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    max_new_tokens: int,
    *,
    slots: int,
    done: Callable[[Problem, Trace], None] | None = None,
    watch: Watch | None = None,
) -> list[Trace]:
    """Greedy answers to `problems`, graded, in their order.

    Args:
        slots: answers that are written at once.
        done: told of each problem as soon as it is answered.
        watch: sees the writing go on.
    """
    traces: dict[int, Trace] = {}

    def ended(number: int, tokens: list[int]) -> tuple[Row, ...]:
        traces[number] = prompter.trace(problems[number], tokens)
        prompts[number].forget()
        if watch:
            watch.over(number)
        if done:
            done(problems[number], traces[number])
        return ()

    prompts = texts([prompter.prompt(p) for p in problems], prompter.start)
    rows = [
        Row(text, max_new_tokens, (number,), stop=prompter.stop_rule(), then=partial(ended, number))
        for number, text in enumerate(prompts)
    ]
    engine.write(rows, slots=slots, end_tokens=prompter.end_tokens, watch=watch)
    return [traces[number] for number in range(len(problems))]
