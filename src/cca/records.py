"""What the stages hand to each other, one JSON line each.

Token ids are kept as they were generated; nothing is ever decoded and encoded again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar


class Record:
    """A dataclass that goes to and from one JSON line."""

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))  # pyright: ignore[reportArgumentType]

    @classmethod
    def parse(cls, line: str) -> Self:
        data: dict[str, Any] = json.loads(line)
        return cls(**{f.name: data[f.name] for f in fields(cls)})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Problem(Record):
    """A question with its gold answer."""

    id: str
    template: str
    instance: int
    split: str
    """``train``, ``validation``, ``test``, ``held_out`` (whole templates), ``transfer:NAME`` or ``retention:NAME``."""
    question: str
    answer: str
    solution: str


@dataclass(frozen=True)
class Trace:
    """What the model wrote for a prompt. `tokens` includes the end token where the model wrote one."""

    tokens: tuple[int, ...]
    text: str
    answer: str
    correct: bool


@dataclass(frozen=True)
class TracePair(Record):
    """A problem's greedy trace and, where one was found, the first sampled trace of opposite correctness."""

    problem: str
    split: str
    template: str
    prompt: tuple[int, ...]
    greedy: Trace
    sampled: Trace | None
    drawn: int
    """How many samples were looked at, up to and including the opposite one."""
    reason: str | None
    """Why there is no sampled trace (``no_opposite``), or None."""

    def by_kind(self) -> dict[str, Trace]:
        """The traces that there are: ``greedy``, and ``sampled`` where one was found."""
        return {"greedy": self.greedy} | ({"sampled": self.sampled} if self.sampled else {})

    @classmethod
    def parse(cls, line: str) -> Self:
        data = json.loads(line)

        def trace(value: dict[str, Any]) -> Trace:
            return Trace(tuple(value["tokens"]), value["text"], value["answer"], value["correct"])

        data["prompt"] = tuple(data["prompt"])
        data["greedy"] = trace(data["greedy"])
        data["sampled"] = trace(data["sampled"]) if data["sampled"] else None
        return cls(**data)


@dataclass(frozen=True)
class Pivot(Record):
    """The training example of stages 2 and 3: after `prefix`, `desired` should beat `undesired`."""

    problem: str
    split: str
    template: str
    method: str
    prefix: tuple[int, ...]
    desired: int
    undesired: int
    position: int
    """Index in the trace of the token that turned it."""
    greedy_correct: bool
    on_slip: bool | None = None
    """Whether the pivot is the planted slip's own token; None where the wrong trace contains no planted slip."""
    completions: int = 0
    """Completions generated to find it."""
    deviations: int = 0
    after_desired: tuple[int, ...] = ()
    """How the base model's text goes on after the prefix where it goes on with `desired`, which comes first: greedily
    (Branching method) or as that trace does (Prefix method)."""
    after_undesired: tuple[int, ...] = ()

    @classmethod
    def parse(cls, line: str) -> Self:
        data = json.loads(line)
        tokens = {key: tuple(data[key]) for key in ("prefix", "after_desired", "after_undesired")}
        return cls(**{**data, **tokens})


@dataclass(frozen=True)
class WithoutPivot(Record):
    """A traced problem that gave no pivot, and why."""

    problem: str
    split: str
    template: str
    reason: str
    """``no_opposite``: no sample was of opposite correctness; ``template_solved``: the base model solves all
    training problems of its template, which is left out."""


@dataclass(frozen=True)
class Score(Record):
    """One graded greedy answer of the base or the updated model."""

    arm: str
    set: str
    problem: str
    template: str
    answer: str
    correct: bool
    tokens: int
    text: str


class Answered(NamedTuple):
    """The answers of both models to one problem."""

    base: Score
    updated: Score


def answered(scores: Iterable[Score]) -> Iterator[Answered]:
    """Both answers to each problem, in the order of the base model's."""
    arms: dict[str, dict[str, Score]] = {"base": {}, "updated": {}}
    for score in scores:
        arms[score.arm][score.problem] = score
    for problem, base in arms["base"].items():
        yield Answered(base, arms["updated"][problem])


@dataclass(frozen=True)
class Choice(Record):
    """What the base or the updated model makes of a pivot."""

    arm: str
    problem: str
    desired: float
    """Natural logarithm of the desired token's probability after the prefix."""
    undesired: float


@dataclass(frozen=True)
class Metric(Record):
    """One measured step of stage 3."""

    step: int
    loss: float | None
    """Mean loss over the training examples, before the step."""
    margin: float
    """Mean logit[desired] - logit[undesired] over the validation pivots."""
    won: float
    """Share of validation pivots at which the desired token beats the undesired one."""
    accuracy: float
    """Greedy accuracy on the validation problems."""
    n: int = field(default=0)


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Append `records` to `path`, one JSON line each, flushed to the disk."""
    import os

    with path.open("a", encoding="utf-8") as file:
        file.writelines(record.line() + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


R = TypeVar("R", bound=Record)


def read_lines(path: Path, kind: type[R]) -> Iterator[R]:
    """The records in `path`; nothing where the file does not exist."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield kind.parse(line)
