"""The figures of a run in words, for terminal and report alike."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


def percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def points(difference: float) -> str:
    return f"{difference * 100:+.1f}"


def interval(bounds: Sequence[float]) -> str:
    """Of a difference, in points."""
    return f"{points(bounds[0])} to {points(bounds[1])}"


def holds_zero(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a comparison holds no change at all."""
    return row["ci95"][0] <= 0 <= row["ci95"][1]


class SetRow(NamedTuple):
    """One line of the table of a run: an evaluation set, and its figures as text. Empty where there is none."""

    group: str
    name: str
    n: str
    base: str
    updated: str
    difference: str
    ci95: str
    mcnemar_p: str
    could_see: str
    drift: str


COLUMNS = ("", "problems", "base", "updated", "points", "95% interval", "McNemar p", "could see", "drift (KL)")
"""Headings of a `SetRow` from its name on."""
COULD_SEE = (
    "Where the interval holds 0, 'could see' is the smallest change, in points and at least, found 80% of the time."
)


def set_rows(summary: Mapping[str, Any]) -> Iterator[SetRow]:
    """The table of a run: target, held-out templates, then the skills and benchmarks that must not move."""
    yield _set_row("target", "target", summary["target"])
    if summary["held_out_templates"]:
        yield _set_row("held-out templates", "held-out templates", summary["held_out_templates"])
    for group in ("transfer", "retention"):
        for name, row in summary[group].items():
            yield _set_row(group, f"{group}: {name}", row)


def _set_row(group: str, name: str, row: Mapping[str, Any]) -> SetRow:
    seen = row["detectable"]
    return SetRow(
        group,
        name,
        f"{row['n']:,}",
        percent(row["base"]),
        percent(row["updated"]),
        points(row["difference"]),
        interval(row["ci95"]),
        "" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}",
        ("too few" if seen is None else f"{seen * 100:.1f}") if holds_zero(row) else "",
        "" if row["drift_kl"] is None else f"{row['drift_kl']:.4f}",
    )


def pivots_found(summary: Mapping[str, Any]) -> str:
    found = summary["pivots"]
    return (
        f"{found['found']} from {found['problems']} problems ({summary['method']} method, "
        f"{found['completions']} completions)"
    )


def on_slips(summary: Mapping[str, Any]) -> Iterator[str]:
    """Of each method, how many pivots sit on their trace's planted slip; nothing for a model without."""
    for method, share in summary["pivots"]["on_slip"].items():
        if share:
            low, high = share["ci95"]
            yield (
                f"{percent(share['share'])} ({percent(low)} to {percent(high)}) of the {share['n']} {method} pivots in "
                "traces with a planted slip sit on the slip's own token"
            )


def circuit_size(summary: Mapping[str, Any]) -> str:
    found = summary["circuit"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["by_kind"].items())
    return f"{found['selected']} of {found['components']} components ({found['density']:.2%}): {kinds}"


def what_was_kept(summary: Mapping[str, Any]) -> str:
    """What was kept of the update, and what validation saw; of each round where there are several."""
    update, rounds, won = summary["update"], summary["rounds"], summary["update"]["held_out_pivots_won"]
    size = f"{update['rows']} rows ({summary['arm']}), {update['parameters']:,} numbers"
    if len(rounds) < 2:
        return (
            f"step {update['best_step']}, {size}; held-out pivots won {percent(won['base'])} -> "
            f"{percent(won['updated'])}"
        )
    seen = [rounds[0]["validation"]["base"], *(r["validation"]["updated"] for r in rounds)]
    each = "; ".join(f"{r['pivots']} pivots, density {r['density']:.2%}, step {r['best_step']}" for r in rounds)
    return f"{len(rounds)} rounds, {size}; validation {' -> '.join(map(percent, seen))} ({each})"


def seconds_spent(summary: Mapping[str, Any]) -> str:
    seconds = summary["seconds"]
    parts = ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items() if stage != "total")
    return f"{seconds['total']:.0f} ({parts})"


def verdict(summary: Mapping[str, Any]) -> str:
    """The target in a sentence that claims no more than the interval does."""
    target = summary["target"]
    if summary["update"]["best_step"] == 0:
        return "No step of the update helped on the validation problems: the updated model is the base model."
    if target["gained"] == target["lost"] == 0:
        return "The update changes no answer of the target."
    if holds_zero(target):
        return "No change of the target is shown: the interval of the difference holds 0."
    return f"The update {'raises' if target['difference'] > 0 else 'lowers'} accuracy on the target."


def retention_verdict(summary: Mapping[str, Any]) -> str:
    """What became of everything that must not move, in a sentence."""
    rows = [(name, row) for group in ("transfer", "retention") for name, row in summary[group].items()]
    if not rows:
        return "Nothing else was evaluated."
    moved = [(name, row) for name, row in rows if not holds_zero(row)]
    if moved:
        said = ", ".join(f"{name} {points(row['difference'])} points" for name, row in moved)
        return f"Of {len(rows)} other skills and benchmarks, {len(moved)} moved: {said}."
    seen = [row["detectable"] for _, row in rows if row["detectable"] is not None]
    least = f"; changes below {max(seen) * 100:.1f} points could go unseen" if len(seen) == len(rows) else ""
    return f"Of {len(rows)} other skills and benchmarks, none is shown to move{least}."
