"""The figures of a comparison as cells of text, for terminal, report and Markdown alike."""

import math
from collections.abc import Iterator, Sequence

from cca.evaluation.results import Comparison, PooledResult
from cca.show import words

COLUMNS = (
    "method", "target", "points (95%)", "Holm p", "held-out templates", "transfer", "retention",
    "drift target / transfer / retention", "rows", "parameters", "seconds", "GiB",
)  # fmt: skip
MINIMUM_DETECTABLE = (
    "Points are against the base model. Holm p: of the sign-flip test over templates, corrected for the number of "
    "methods; too few: fewer than six templates. MDE, minimum detectable effect: where the interval holds 0, the "
    "smallest true change in points, at least, found 80% of the time."
)


def cells(comparison: Comparison) -> Iterator[list[str]]:
    """The rows of the table below `COLUMNS`, best method first."""
    for name in comparison.ranked:
        found = comparison.methods[name]
        target, drift = found.target, (found.drift_kl[s] for s in ("target", "transfer", "retention"))
        yield [
            name,
            f"{words.percent(target.base)} -> {words.percent(target.updated)}",
            points(target),
            _p(target),
            *map(points, (found.held_out_templates, found.transfer, found.retention)),
            " / ".join(words.divergence(kl) or "-" for kl in drift),
            _span(found.rows),
            _span(found.parameters),
            f"{_mean(found.seconds):.0f}",
            f"{_mean(found.peak_gib):.2f}",
        ]


def points(found: PooledResult | None) -> str:
    """A difference with its interval, and the minimum detectable effect where that holds 0."""
    if found is None:
        return "-"
    least = words.detectable(found.minimum_detectable_effect, found.ci95)
    said = f", MDE {least}" if least and found.minimum_detectable_effect is not None else ""
    return f"{words.unchanged(found) or words.points(found.difference)} ({found.ci95.in_points}){said}"


def _p(found: PooledResult) -> str:
    return "-" if found.holm_p is None else words.tested(found, found.holm_p)


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def markdown(comparison: Comparison) -> str:
    """The table, each seed by itself, and each method against the first, as Markdown."""
    first, seeds = comparison.first, comparison.seeds
    lines = [*_head(COLUMNS), *map(_line, cells(comparison))]
    by_seed = ("target, points by seed", *map(str, seeds), "mean of such seeds (95%)", "steps kept", "density")
    lines += ["", *_head(by_seed)]
    for name in comparison.ranked:
        found = comparison.methods[name]
        interval = found.target.seeds_ci95
        density = ", ".join(f"{d:.2%}" for d in found.density) if found.density else "-"
        each = [words.points(d) for d in found.target.by_seed]
        spread = "-" if interval is None else interval.in_points
        lines.append(_line([name, *each, spread, ", ".join(map(str, found.best_step)), density]))
    lines += ["", *_head((f"against {first}", "points (95%)", "gained / lost", "Holm p"))]
    for name in comparison.ranked:
        if found := comparison.methods[name].against_first:
            lines.append(_line([name, points(found), f"{found.gained} / {found.lost}", _p(found)]))
    return "\n".join(lines) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    return "\n".join([*_head(headings), *map(_line, rows)])


def _head(columns: Sequence[str]) -> list[str]:
    return [_line(columns), "| --- " * len(columns) + "|"]


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
