"""What a run and a comparison found, as typed values: `summary.json` and `comparison.json`. No torch, no scipy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from cca.records import ProblemSizes


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Drift:
    """How far the updated model is from the base, over `tokens` tokens of text. It moves before any answer does.

    kl: mean KL(base || updated) in nats per token. perplexity_ratio: of the updated model to the base; 1 where the text
    is as likely as before, below 1 where it is likelier.
    """

    kl: float
    perplexity_ratio: float
    tokens: int


@dataclass(frozen=True)
class Change:
    """A figure of the base and of the updated model."""

    base: float
    updated: float


@dataclass(frozen=True)
class SetResult:
    """Base against updated on one evaluation set.

    ci95: of the difference, over templates. gained, lost: problems. minimum_detectable_effect: the smallest true
    difference that this sample shows 80% of the time, at least; None where even a difference of 1 would not show.
    Where a benchmark's `metric` is no count of right answers, gained, lost, mcnemar_p and the effect are None.
    no_answer, cut: shares of the answers in which none was found, and of those that reached the limit of tokens; None
    for a benchmark, and where there were none.
    """

    n: int
    base: float
    updated: float
    difference: float
    ci95: Interval
    gained: int | None
    lost: int | None
    mcnemar_p: float | None
    minimum_detectable_effect: float | None
    base_ci95: Interval | None = None
    updated_ci95: Interval | None = None
    drift: Drift | None = None
    metric: str | None = None
    no_answer: Change | None = None
    cut: Change | None = None


@dataclass(frozen=True)
class ModelRead:
    """Which model: `revision` is the SHA-256 of a local model's weights, or the commit of one from the hub."""

    path: str
    revision: str


@dataclass(frozen=True)
class OnSlip:
    """The share of `n` pivots that sit on the planted slip's own token."""

    n: int
    share: float
    ci95: Interval


@dataclass(frozen=True)
class PivotSummary:
    """Counts of stage 1. without: by reason. on_slip: by method; None for a model without planted slips."""

    problems: int
    traces: int
    found: int
    share: Annotated[float, Field(alias="yield")]
    without: dict[str, int]
    completions: int
    on_slip: dict[str, OnSlip | None]


@dataclass(frozen=True)
class CircuitSummary:
    """Sizes of the circuit. stopped: why stage 2 ended, ``unchanged`` or ``epochs``."""

    components: int
    selected: int
    density: float
    by_kind: dict[str, int]
    stopped: str


@dataclass(frozen=True)
class Validated:
    """Greedy accuracy on `n` validation problems, before and at the kept step."""

    n: int
    base: float
    updated: float


@dataclass(frozen=True)
class UpdateSummary:
    """Size of the whole update, and what the first round's validation saw at step 0 and at the kept step."""

    best_step: int
    rows: int
    parameters: int
    validation: Validated
    held_out_preference_accuracy: Change
    held_out_margin: Change


@dataclass(frozen=True)
class RoundSummary:
    """One round: its training and held-out pivots, its circuit's density and its kept step."""

    round: int
    pivots: int
    held_out_pivots: int
    density: float
    best_step: int
    validation: Validated


@dataclass(frozen=True)
class Finding:
    """One check of the diagnosis. figures: what it looked at. advice: what to do, empty where nothing is wrong."""

    check: str
    fine: bool
    message: str
    figures: dict[str, Any]
    advice: str


@dataclass(frozen=True)
class Summary:
    """What a run found: `summary.json`.

    method: what the update trained. pivot_method: ``branching`` or ``prefix``. transfer, retention: by skill, or by
    benchmark. text_drift: by file of plain text. seconds: by stage and in ``total``; they live in the manifest and are
    joined on reading.
    """

    model: ModelRead
    method: str
    pivot_method: str
    seed: int
    problems: ProblemSizes
    pivots: PivotSummary
    circuit: CircuitSummary
    update: UpdateSummary
    target: SetResult
    held_out_templates: SetResult | None
    transfer: dict[str, SetResult]
    retention: dict[str, SetResult]
    text_drift: dict[str, Drift]
    rounds: list[RoundSummary]
    diagnosis: list[Finding]
    seconds: dict[str, float] = field(default_factory=dict)

    def sets(self) -> Iterator[tuple[str, str, SetResult]]:
        """(group, name, result) of every set: target, held-out templates, each skill and benchmark."""
        yield "target", "target", self.target
        if self.held_out_templates:
            yield "held-out templates", "held-out templates", self.held_out_templates
        for group, found in (("transfer", self.transfer), ("retention", self.retention)):
            for name, result in found.items():
                yield group, f"{group}: {name}", result

    def others(self) -> dict[str, SetResult]:
        """What is not the target: transfer and retention, by ``group: name``."""
        return {name: result for group, name, result in self.sets() if group in ("transfer", "retention")}


@dataclass(frozen=True)
class PooledResult:
    """Base against updated over the problems of all seeds.

    by_seed: the difference of each. seeds_ci95: Student's interval of their mean; None where there is one seed.
    holm_p: McNemar's p corrected for the number of methods; None where it was not tested.
    """

    n: int
    base: float
    updated: float
    difference: float
    ci95: Interval
    gained: int
    lost: int
    mcnemar_p: float
    minimum_detectable_effect: float | None
    by_seed: list[float]
    seeds_ci95: Interval | None
    holm_p: float | None = None


@dataclass(frozen=True)
class MethodResult:
    """What one method did, over all seeds. Sets and drift: by name of the set, None where there is none.

    rows, parameters, density, best_step, seconds, peak_gib: a value a seed. against_first: the target's answers against
    those of the first method; None for that method itself.
    """

    title: str
    target: PooledResult
    held_out_templates: PooledResult | None
    transfer: PooledResult | None
    retention: PooledResult | None
    drift_kl: dict[str, float | None]
    rows: list[int]
    parameters: list[int]
    density: list[float] | None
    best_step: list[int]
    seconds: list[float]
    peak_gib: list[float]
    against_first: PooledResult | None

    def on(self, split: str) -> PooledResult | None:
        """The result on ``target``, ``held_out_templates``, ``transfer`` or ``retention``."""
        return getattr(self, split)


@dataclass(frozen=True)
class Comparison:
    """Several methods on identical problems: `comparison.json`. ranked: their names, best on the target first."""

    seeds: list[int]
    first: str
    ranked: list[str]
    methods: dict[str, MethodResult]
