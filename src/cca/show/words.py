"""The figures of a run in words, for terminal and report alike."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cca.evaluation.pivot_kinds import Kind, counted
from cca.evaluation.results import (
    Change,
    Interval,
    PooledResult,
    SetResult,
    Summary,
    percent,
    points,
    too_few,
    unchanged,
)


def detectable(effect: float | None, ci95: Interval) -> str:
    """The minimum detectable effect in points; empty where the interval shows a change all the same."""
    if not ci95.holds_zero:
        return ""
    return "too few" if effect is None else f"{effect * 100:.1f}"


def p_value(p: float) -> str:
    """To two digits, with no more certainty than a test of a sample has."""
    return "<0.0001" if p < 0.0001 else ">0.99" if p > 0.99 else f"{p:.2g}"


def tested(found: SetResult | PooledResult, p: float) -> str:
    """A p-value of the sign-flip test, or why it says nothing."""
    if unchanged(found):
        return "0 changed"
    return "too few" if too_few(found.units) else p_value(p)


def divergence(kl: float | None) -> str:
    """Nats per token to four decimals; what is not 0 does not read as 0."""
    if kl is None:
        return ""
    return f"{kl:.4f}" if kl == 0 or abs(kl) >= 0.0001 else "<0.0001"


class SetRow(NamedTuple):
    """One line of the table of a run: an evaluation set, and its figures as text. Empty where there is none."""

    group: str
    name: str
    n: str
    base: str
    updated: str
    difference: str
    ci95: str
    sign_flip_p: str
    minimum_detectable: str
    drift: str
    no_answer: str
    cut: str


COLUMNS = (
    "", "problems", "base", "updated", "points", "95% interval", "sign-flip p", "min. detectable", "drift (KL)",
    "no answer", "cut",
)  # fmt: skip
"""Headings of a `SetRow` from its name on."""
NOTES = {
    "no answer": "no answer: the grader found none in the text.",
    "cut": "cut: evaluation.max_new_tokens (where not set: traces.max_new_tokens) ended the text; where no right "
    "answer stood in it by then, it counts as wrong.",
}
"""Of columns that are left out where they are empty."""
SIGN_FLIP = (
    "sign-flip p: of the test over templates that the models differ by chance alone; over problems where they are of "
    "one template. Fewer than six are too few for 0.05."
)
KINDS_MEAN = (
    "preferred before: the base model has the desired token above the other already; mended: only the "
    "updated model has. Where answers are numbers, a digit, an operator and the end are what a calculation turns on; a "
    "first token or punctuation is mostly style, and a word may be chance."
)
UNCONFIRMED_MEANS = (
    "not confirmed: found besides, but sampled completions do not show that the token decides, so that nothing was "
    "learned from them."
)
MINIMUM_DETECTABLE = (
    "min. detectable: where the interval holds 0, the smallest true change in points, at least, found 80% of the time."
)


def set_rows(summary: Summary) -> Iterator[SetRow]:
    """The table of a run: target, held-out templates, then the skills and benchmarks that must not move."""
    for group, name, found in summary.sets():
        yield _set_row(group, name, found)


def _set_row(group: str, name: str, found: SetResult) -> SetRow:
    return SetRow(
        group,
        name,
        f"{found.n:,}",
        percent(found.base),
        percent(found.updated),
        points(found.difference),
        found.ci95.in_points,
        tested(found, found.sign_flip_p),
        "" if found.gained is None else detectable(found.minimum_detectable_effect, found.ci95),
        divergence(found.drift and found.drift.kl),
        _change(found.no_answer),
        _change(found.cut),
    )


def _change(shares: Change | None) -> str:
    return f"{percent(shares.base)} -> {percent(shares.updated)}" if shares else ""


class RunTable(NamedTuple):
    """A table of a run. headings: of `cells`, whose rows begin with a name; notes: what to say below it."""

    headings: list[str]
    cells: list[list[str]]
    notes: list[str]


def set_table(summary: Summary) -> RunTable:
    """The rows of `set_rows` from the name on, without the columns of `NOTES` that are empty."""
    rows = [row[1:] for row in set_rows(summary)]
    kept = [i for i, name in enumerate(COLUMNS) if name not in NOTES or any(row[i] for row in rows)]
    headings = [COLUMNS[i] for i in kept]
    notes = [SIGN_FLIP, MINIMUM_DETECTABLE] + [note for heading, note in NOTES.items() if heading in headings]
    return RunTable(headings, [[row[i] for i in kept] for row in rows], notes)


def pivots_found(summary: Summary) -> str:
    found = summary.pivots
    written = f"{found.completions:,} completion{'s' * (found.completions != 1)}"
    if found.sampled:
        written += f", and {found.sampled:,} sampled to confirm pivots"
    return f"{found.found} from {found.problems} problems ({summary.pivot_method} method, {written})"


def kind_table(summary: Summary) -> RunTable:
    """Pivots by kind, without the kinds of which there are none; no rows where they were not told apart."""
    found = {kind: of for kind, of in summary.pivots.by_kind.items() if of.n or of.unconfirmed}
    total = sum(of.n for of in found.values())
    headings = ["kind", "pivots", "share", "preferred before", "mended"]
    cells = [
        [kind, f"{of.n:,}", percent(of.n / total), f"{of.preferred:,}", f"{of.mended:,}"] for kind, of in found.items()
    ]
    notes = [KINDS_MEAN] if cells else []
    if any(of.unconfirmed for of in found.values()):
        headings.append("not confirmed")
        for row, of in zip(cells, found.values(), strict=True):
            row.append(f"{of.unconfirmed:,}")
        notes.append(UNCONFIRMED_MEANS)
    return RunTable(headings, cells, notes)


def kind_counts(kinds: Iterable[Kind]) -> str:
    """How many pivots there are of each kind that there is."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counted(list(kinds)).items() if count)


def on_slips(summary: Summary) -> Iterator[str]:
    """Of each method, how many pivots sit on their trace's planted slip; nothing for a model without."""
    for method, share in summary.pivots.on_slip.items():
        if share:
            low, high = share.ci95
            yield (
                f"{percent(share.share)} ({percent(low)} to {percent(high)}) of the {share.n} {method} pivots in "
                "traces with a planted slip sit on the slip's own token"
            )


def circuit_size(summary: Summary) -> str:
    found = summary.circuit
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.by_kind.items())
    return f"{found.selected} of {found.components} components ({found.density:.2%}): {kinds}"


def what_was_kept(summary: Summary) -> str:
    """What was kept of the update, and what validation saw; of each round where there are several."""
    update, rounds, preferred = summary.update, summary.rounds, summary.update.held_out_preference_accuracy
    if not update.best_step and len(rounds) < 2:
        return "no step helped on the validation problems, so nothing is changed"
    size = f"{update.rows} rows ({summary.method}), {update.parameters:,} parameters"
    if update.learning_rate is not None:
        size += f", learning rate {update.learning_rate:.2g} (auto)"
    if len(rounds) < 2:
        said = f"preference accuracy at held-out pivots {percent(preferred.base)} -> {percent(preferred.updated)}"
        if rounds and not rounds[0].held_out_pivots:
            said = "no pivot was held out"
        return f"step {update.best_step}, {size}; {said}"
    seen = [rounds[0].validation.base, *(r.validation.updated for r in rounds)]
    each = "; ".join(f"{r.pivots} pivots, density {r.density:.2%}, step {r.best_step}" for r in rounds)
    return f"{len(rounds)} rounds, {size}; validation {' -> '.join(map(percent, seen))} ({each})"


def seconds_spent(summary: Summary) -> str:
    parts = ", ".join(f"{stage} {value:.0f}" for stage, value in summary.seconds.items() if stage != "total")
    return f"{summary.seconds['total']:.0f} ({parts})"


def verdict(summary: Summary) -> str:
    """The target in a sentence that claims no more than the interval does."""
    target = summary.target
    if summary.update.best_step == 0:
        return "No step of the update helped on the validation problems: the updated model is the base model."
    if none := unchanged(target):
        return f"The update changes no answer of the target: {none}."
    if too_few(target.units):
        kind = "problems" if target.units == target.n else "templates"
        return f"No change of the target can be shown with so few {kind}: {target.units}."
    if target.ci95.holds_zero:
        return "No change of the target is shown: the interval of the difference holds 0."
    return f"The update {'raises' if target.difference > 0 else 'lowers'} accuracy on the target."


def retention_verdict(summary: Summary) -> str:
    """What became of everything that must not move, in a sentence."""
    others = summary.others()
    if not others:
        return "Nothing else was evaluated."
    moved = {name: found for name, found in others.items() if not found.ci95.holds_zero}
    if moved:
        said = ", ".join(f"{name} {points(found.difference)} points" for name, found in moved.items())
        return f"Of {len(others)} other skills and benchmarks, {len(moved)} moved: {said}."
    effects = [found.minimum_detectable_effect for found in others.values()]
    known = [effect for effect in effects if effect is not None]
    if len(known) == len(effects):
        unseen = f"changes below {max(known) * 100:.1f} points could go unseen"
    else:
        widest = max(max(-found.ci95.low, found.ci95.high) for found in others.values())
        unseen = f"changes of up to {widest * 100:.1f} points are left open"
    return f"Of {len(others)} other skills and benchmarks, none is shown to move; {unseen}."
