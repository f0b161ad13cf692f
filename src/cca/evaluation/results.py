"""What a run and a comparison found, as typed values: `summary.json` and `comparison.json`. No torch, no scipy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from cca.evaluation.pivot_kinds import Kind
from cca.records import ProblemSizes


def percent(share: float) -> str:
    """A share to a tenth of a percent; what is neither none nor all does not read as that."""
    text = f"{share:.1%}"
    if text == "0.0%" and share > 1e-12:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and share < 1 - 1e-12 else text


def points(difference: float) -> str:
    """A difference of shares in percentage points; what is not 0 shows its first digit, up to the fourth decimal."""
    value = round(100 * difference, 4)
    return f"{value:+.1f}" if abs(value) >= 0.05 else f"{value:+.1g}" if value else "0.0"


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high

    @property
    def in_points(self) -> str:
        """Of a difference of shares."""
        return f"{points(self.low)} to {points(self.high)}"


def too_few(units: int, alpha: float = 0.05) -> bool:
    """Whether so few templates or problems cannot give a sign-flip p of `alpha` whatever they show: fewer than six."""
    return 2.0 ** (1 - units) > alpha


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

    ci95: of the difference, over templates. sign_flip_p: of the test that it is 0, over templates. units: of both, the
    templates; the problems where these are of one template. gained, lost: problems. minimum_detectable_effect: the
    smallest true difference that this sample shows 80% of the time, at least; None where even a difference of 1 would
    not show. Where a benchmark's `metric` is no count of right answers, gained, lost and the effect are None.
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
    sign_flip_p: float
    units: int
    minimum_detectable_effect: float | None
    base_ci95: Interval | None = None
    updated_ci95: Interval | None = None
    drift: Drift | None = None
    metric: str | None = None
    no_answer: Change | None = None
    cut: Change | None = None


def unchanged(found: "SetResult | PooledResult") -> str:
    """Says so where no answer changed; empty where some did."""
    return f"0 of {found.n:,} changed" if found.gained == found.lost == 0 else ""


def difference(found: "SetResult | PooledResult") -> str:
    """The difference and its interval in points, as ``+12.2 points (+5.4 to +19.7)``."""
    return f"{unchanged(found) or f'{points(found.difference)} points'} ({found.ci95.in_points})"


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
class OfKind:
    """The `n` pivots of one kind. preferred: those whose desired token the base model prefers already. mended: those
    whose desired token the updated model prefers and the base model does not. unconfirmed: so many more were found that
    do not count, since sampled completions do not show that their token decides.
    """

    n: int
    preferred: int
    mended: int
    unconfirmed: int = 0


@dataclass(frozen=True)
class PivotSummary:
    """Counts of stage 1. without: by reason. on_slip: by method; None for a model without planted slips.

    by_kind: of all kinds, the commonest first. completions, sampled: written to find pivots, and to confirm them.
    """

    problems: int
    traces: int
    found: int
    share: Annotated[float, Field(alias="yield")]
    without: dict[str, int]
    completions: int
    on_slip: dict[str, OnSlip | None]
    by_kind: dict[Kind, OfKind] = field(default_factory=dict)
    sampled: int = 0


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
    """Size of the whole update, and what the first round's validation saw at step 0 and at the kept step.

    learning_rate: what ``auto`` came to; None where the config gives it.
    """

    best_step: int
    rows: int
    parameters: int
    validation: Validated
    held_out_preference_accuracy: Change
    held_out_margin: Change
    learning_rate: float | None = None


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
    holm_p: `sign_flip_p` corrected for the number of methods; None where it was not tested.
    """

    n: int
    base: float
    updated: float
    difference: float
    ci95: Interval
    gained: int
    lost: int
    sign_flip_p: float
    units: int
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
