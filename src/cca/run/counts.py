"""How much a run has to do, in numbers: what is expected, at most, or what a finished run did."""

from dataclasses import dataclass
from typing import NamedTuple

_SOLVED = 0.25
"""Of the pairs of traces how many stand in templates that are left out as solved: 27% of the bundled run's, 18% of a
0.5B model's on GSM-Symbolic."""
_SOON = 1 / 3
"""Where a problem has an opposite sample, the share of `traces.samples` that is drawn until then; also the share of
`circuit.epochs` after which the gates have settled (17 of 50), where patience allows it. Of the bundled run."""
_PLACE = 0.65
"""Where in a trace its pivot stands (59% and 71% of bundled runs)."""
_TRAININGS = 4
"""Trainings of gates that a search for a density takes, of twelve at most."""
_NO_BOUND = 10.0
"""Completions a pair that are counted where at most is asked: there is no bound but the deviations of its trace."""


@dataclass(frozen=True)
class Expected:
    """What a run does not know beforehand. trace_tokens, samples_drawn: None is worked out.

    trace_tokens: mean length of what is written. samples_drawn: samples a problem. opposite: the share of problems with
    an opposite sample: 79% of the bundled run's, 27% of a 0.5B model's on GSM-Symbolic. completions: greedy ones a
    pair, 0.2 of the bundled run, 1.8 to 3.1 of the 0.5B model (docs/results/speed.md).
    """

    trace_tokens: float | None = None
    samples_drawn: float | None = None
    opposite: float = 0.5
    completions: float = 2.0


USUAL = Expected()
"""Where nobody says otherwise."""


class Lengths(NamedTuple):
    """Mean numbers of tokens. shared: what all prompts begin with. prompt: of a prompt after that. answer: of what the
    model writes. solution: of a worked solution. pivot: of what stands in a trace before its pivot.
    rest: of a completion from a place on that may be it. reply: of an answer that is evaluated, those of other skills
    among them."""

    shared: float
    prompt: float
    answer: float
    solution: float
    pivot: float
    rest: float
    reply: float

    @property
    def prefix(self) -> float:
        """Of a pivot's prefix after the shared start."""
        return self.prompt + self.pivot


class Limits(NamedTuple):
    """Tokens that a trace and an answer may have."""

    trace: int
    answer: int


class Task(NamedTuple):
    """A benchmark: documents, of which subtasks; tokens read and written a document (its choices together)."""

    documents: int
    subtasks: int
    read: float
    written: float


TASKS = {
    "mmlu": Task(14_042, 57, 4 * 120, 0),
    "triviaqa": Task(17_944, 1, 30, 16),
    "truthfulqa_mc2": Task(817, 1, 7 * 180, 0),
}
"""Documents as published; tokens about, as lm-evaluation-harness asks by default."""


@dataclass(frozen=True)
class Counts:
    """Units of work. traced: problems. samples: of all of them. pairs: with two traces, whose templates are not solved.

    completions: greedy and sampled ones of all pairs. pivots, held_out: to train on, and of validation. trainings,
    steps: of gates, and steps of each. batch: pivots a step. updates: steps (of LoRA and fine-tuning on solutions
    epochs). trained_on: what each of them reads: pivots or solutions. validations, validated: how often, and problems.
    answers: of both models together. drift: texts, each read by both. task_read, task_written: tokens of benchmarks,
    both models. slots: traces, and answers, that are written at once. rounds: of all but the evaluation.
    """

    lengths: Lengths
    traced: int
    samples: float
    pairs: float
    completions: float
    pivots: float
    held_out: float
    trainings: float
    steps: float
    batch: int
    updates: float
    trained_on: float
    validations: float
    validated: int
    answers: int
    drift: int = 0
    task_read: float = 0
    task_written: float = 0
    trace_slots: int = 128
    answer_slots: int = 128
    rounds: int = 1


def samples_drawn(expected: Expected, samples: int) -> float:
    """Of a problem: all where it has no opposite, else a third of them."""
    if expected.samples_drawn is not None:
        return min(expected.samples_drawn, samples)
    return (1 - expected.opposite) * samples + expected.opposite * max(1.0, samples * _SOON)


def usable(expected: Expected, problems: float) -> float:
    """Of so many problems those that give a pair to search, and a pivot."""
    return problems * expected.opposite * (1 - _SOLVED)


def completions(expected: Expected | None, sampled: int) -> float:
    """Of a pair; `sampled` to confirm its pivot."""
    return (_NO_BOUND if expected is None else expected.completions) + sampled


def settled(epochs: int, expected: Expected | None) -> float:
    """Epochs of a training of gates."""
    return epochs if expected is None else max(1.0, epochs * _SOON)


def trainings(search: bool, expected: Expected | None) -> float:
    """Of gates."""
    if not search:
        return 1
    return 12 if expected is None else _TRAININGS


def answered(lengths: Lengths, limits: Limits, expected: Expected | None) -> Lengths:
    """With answers as long as expected; at most up to their limits, both before a pivot and after it."""
    if expected is None:
        return lengths._replace(answer=limits.trace, pivot=limits.trace, rest=limits.trace, reply=limits.answer)
    answer = min(limits.trace, expected.trace_tokens or lengths.answer)
    reply = min(limits.answer, lengths.reply * answer / lengths.answer)
    return lengths._replace(answer=answer, pivot=_PLACE * answer, rest=(1 - _PLACE) * answer, reply=reply)
