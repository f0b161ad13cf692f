"""What the stages hand to each other, one JSON line each.

Token ids are kept as they were generated; nothing is ever decoded and encoded again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cca.errors import InputError

KINDS = ("query", "key", "value", "neuron")
"""Kinds of components, in the order in which a layer's gates stand."""

Split = Literal["train", "validation", "test", "held_out", "transfer", "retention"]
"""What a problem is for. ``held_out``: a test problem of a template that is kept out of the update entirely."""
Which = Literal["base", "updated"]
"""The model before or after the update."""
NO_TEMPLATE = "all"
"""What stands for the template of problems whose source names none. They are no more alike than others."""


class ProblemSet(NamedTuple):
    """Problems that are evaluated together. skill: of transfer and retention, else None."""

    split: Split
    skill: str | None

    @property
    def name(self) -> str:
        """``target``, ``held-out templates``, ``transfer: chain_sum`` ..."""
        named = {"test": "target", "held_out": "held-out templates"}.get(self.split, self.split)
        return f"{named}: {self.skill}" if self.skill else named


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer; `cca.load_problems` makes them.

    Attributes:
        id: unlike that of any other problem.
        template: what the question is an instance of; instances of one template are alike.
        instance: its number among them.
        split: what it is for.
        question: as it is asked.
        answer: the gold one.
        solution: worked, ending with the answer; may be empty.
        skill: None for the target; another skill's answers are compared as they stand, whatever the target's grader.
    """

    id: str
    template: str
    instance: int
    split: Split
    question: str
    answer: str
    solution: str
    skill: str | None = None

    @property
    def set(self) -> ProblemSet:
        """What it is evaluated together with."""
        return ProblemSet(self.split, self.skill)


def check_problems(problems: Sequence[Problem]) -> None:
    """See that these are problems, and that no two have one id.

    Raises:
        InputError: they are not; the message names one.
    """
    seen: set[str] = set()
    for problem in problems if isinstance(problems, Sequence) and not isinstance(problems, str) else [problems]:
        if not isinstance(problem, Problem) or problem is problems:
            raise InputError(f"{problem!r:.80} is no list of problems; make one with cca.load_problems")
        if problem.id in seen:
            raise InputError(f"two problems have the id {problem.id}; give each its own")
        seen.add(problem.id)


@dataclass(frozen=True)
class SplitSize:
    """How many problems of which templates a set holds."""

    problems: int
    templates: list[str]


@dataclass(frozen=True)
class ProblemSizes:
    """The problems of a run. splits: by `ProblemSet.name`, training and validation besides."""

    source: str
    split_by: str
    splits: dict[str, SplitSize]


Verdict = Literal["right", "wrong", "no answer", "cut"]
"""What became of an answer. ``no answer``: the text gives none; ``cut``: it is not right, and was not finished."""


def verdict(correct: bool, cut: bool, answer: str) -> Verdict:
    """The verdict on a graded text; cut: it ended at the limit of tokens."""
    return "right" if correct else "cut" if cut else "wrong" if answer else "no answer"


@dataclass(frozen=True)
class Trace:
    """What the model wrote for a prompt. `tokens` includes the end token where the model wrote one.

    cut: it wrote neither an end token nor a stop string, so that the limit of tokens ended it.
    """

    tokens: tuple[int, ...]
    text: str
    answer: str
    correct: bool
    cut: bool = False

    @property
    def verdict(self) -> Verdict:
        return verdict(self.correct, self.cut, self.answer)


@dataclass(frozen=True)
class TracePair:
    """A problem's greedy trace and, where one was found, the first sampled trace of opposite correctness."""

    problem: str
    split: Split
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


@dataclass(frozen=True)
class Pivot:
    """The training example of stages 2 and 3: after `prefix`, `desired` should beat `undesired`.

    All three are token ids, such as ``model.tokenizer.encode(text)`` gives. The rest says where the pivot came from,
    and may be left out for pivots of one's own; those with the split ``validation`` are measured and never trained on.

    Raises:
        InputError: both tokens are the same, an id is negative, or the prefix has fewer than two tokens.
    """

    prefix: tuple[int, ...]
    desired: int
    undesired: int
    problem: str = ""
    split: Split = "train"
    template: str = ""
    method: str = "own"
    """``branching``, ``prefix``, ``probability`` or ``own``."""
    position: int = 0
    """Index in the trace of the token that turned it."""
    greedy_correct: bool = True
    on_slip: bool | None = None
    """Whether the pivot is the planted slip's own token; None where the wrong trace contains no planted slip."""
    completions: int = 0
    """Completions generated to find it (Probability method: sampled), without those that confirm it."""
    deviations: int = 0
    after_desired: tuple[int, ...] = ()
    """How the base model's text goes on after the prefix where it goes on with `desired`, which comes first: greedily
    (Branching method) or as that trace does (Prefix method)."""
    after_undesired: tuple[int, ...] = ()
    samples: int = 0
    """Completions that were sampled after each of the two tokens (`pivots.confirm`); 0: none were."""
    right_after_desired: int = 0
    """How many of them are right, after the desired token ..."""
    right_after_undesired: int = 0
    """... and after the undesired one."""

    def __post_init__(self) -> None:
        try:
            for name in ("desired", "undesired"):
                object.__setattr__(self, name, index(getattr(self, name)))
            object.__setattr__(self, "prefix", tuple(map(index, self.prefix)))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"a pivot is a list of token ids and two token ids ({error}); encode text with model.tokenizer, and of "
                "a batch take one row"
            ) from error
        if self.desired == self.undesired:
            raise InputError(
                f"{self.name} has token {self.desired} as desired and undesired; give two different tokens"
            )
        if len(self.prefix) < 2:
            raise InputError(f"{self.name} has a prefix of {len(self.prefix)} tokens; give at least two token ids")
        if (lowest := min(*self.prefix, self.desired, self.undesired)) < 0:
            raise InputError(f"{self.name} has token {lowest}; token ids are 0 and more")

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the pivot of {self.problem}" if self.problem else f"a pivot after {list(self.prefix[-4:])}"

    @property
    def gain(self) -> float | None:
        """By how much the desired token raises the success rate of sampled completions; None: none were sampled."""
        return (self.right_after_desired - self.right_after_undesired) / self.samples if self.samples else None

    def counts(self, gap: float) -> bool:
        """Whether it is to be learned from: its gain is at least `gap`, or nothing was sampled."""
        return self.gain is None or self.gain >= gap - 1e-9

    def lies_the_other_way(self, gap: float) -> bool:
        """Whether its gain is as far below 0: where samples speak for the undesired token."""
        return self.gain is not None and -self.gain >= gap - 1e-9


@dataclass(frozen=True)
class WithoutPivot:
    """A traced problem that gave no pivot, and why."""

    problem: str
    split: Split
    template: str
    reason: str
    """``no_opposite``: no sample was of opposite correctness; ``template_solved``: of the training
    problems of its template the base model solves at least the share `traces.skip_solved`, so that it is left out;
    ``not_confirmed``: sampled completions do not show that the pivot's token decides (`Pivot.counts`)."""


@dataclass(frozen=True)
class Score:
    """One graded greedy answer of the base or the updated model."""

    model: Which
    split: Split
    skill: str | None
    problem: str
    template: str
    answer: str
    correct: bool
    tokens: int
    text: str
    cut: bool = False
    """The limit of tokens ended it."""

    @property
    def set(self) -> ProblemSet:
        return ProblemSet(self.split, self.skill)

    @property
    def verdict(self) -> Verdict:
        return verdict(self.correct, self.cut, self.answer)


class Answered(NamedTuple):
    """The answers of both models to one problem."""

    base: Score
    updated: Score


def answered(scores: Iterable[Score]) -> Iterator[Answered]:
    """Both answers to each problem, in the order of the base model's.

    Raises:
        InputError: one model answered a problem that the other did not.
    """
    by_model: dict[str, dict[str, Score]] = {"base": {}, "updated": {}}
    for score in scores:
        by_model[score.model][score.problem] = score
    if lone := by_model["base"].keys() ^ by_model["updated"].keys():
        raise InputError(
            f"scores.jsonl has the answer of one model alone to {len(lone)} problems, such as {min(lone)}; evaluate "
            "both again: cca evaluate RUN --redo"
        )
    for problem, base in by_model["base"].items():
        yield Answered(base, by_model["updated"][problem])


def problem_of(record: Pivot | TracePair, problems: Mapping[str, Problem], file: str) -> Problem:
    """The problem that a record of `file` is of.

    Raises:
        InputError: it is not among `problems`.
    """
    if record.problem not in problems:
        raise InputError(
            f"{file} has a record of problem {record.problem!r}, which is not in problems.jsonl; put both files back "
            "as they were, or trace again: cca trace RUN --redo"
        )
    return problems[record.problem]


@dataclass(frozen=True)
class Choice:
    """What the base or the updated model makes of a pivot."""

    model: Which
    problem: str
    desired: float
    """Natural logarithm of the desired token's probability after the prefix."""
    undesired: float


@dataclass(frozen=True)
class Metric:
    """One measured step of stage 3."""

    step: int
    loss: float | None
    """Mean loss over the training examples, before the step."""
    margin: float
    """Mean logit[desired] - logit[undesired] over the validation pivots."""
    preference_accuracy: float
    """Share of validation pivots at which the desired token beats the undesired one."""
    accuracy: float
    """Greedy accuracy on the validation problems."""
    n: int = 0
    cut: float | None = None
    """Share of the answers to them that the limit of tokens ended; None in runs that did not note it."""


def best_of(metrics: Sequence[Metric]) -> Metric:
    """The earliest of the steps with the highest validation accuracy."""
    return max(metrics, key=lambda m: (m.accuracy, -m.step))


@dataclass(frozen=True)
class Trial:
    """A penalty (lambda) that was tried, and the density of the circuit it gave."""

    penalty: Annotated[float, Field(alias="lambda")]
    density: float


@dataclass(frozen=True)
class TaskScore:
    """What a model got for one document of a benchmark."""

    task: str
    """As it was asked for, such as ``mmlu``."""
    subtask: str
    """The document's cluster, such as ``mmlu_anatomy``; a task without subtasks is its own."""
    document: int
    """Its place in the evaluated split."""
    metric: str
    """lm-evaluation-harness's name, with the filter where there is one: ``acc``, ``exact_match,strict-match``."""
    value: float
    """From 0 to 1."""
