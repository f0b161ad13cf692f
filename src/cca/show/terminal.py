"""What `cca` prints for people: tables, pivots and problems. What a model or a data file says is text, never markup."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cca.evaluation.results import Comparison, Summary
from cca.records import KINDS
from cca.show import tables, words
from cca.show.views import Continuation, PivotView, ProblemView

if TYPE_CHECKING:
    from cca.evaluation.stats import Overlap
    from cca.show.circuit import CircuitView

WIDE = 150
"""Columns that the whole table of a comparison takes."""
COSTS = ("drift", "parameters", "seconds", "GiB")
GOOD, BAD = "bold black on bright_cyan", "bold white on dark_orange3"
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def console_for_people(width: int) -> Console:
    """A console on stderr, of `width` columns where that is no terminal."""
    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else width)


def console_for_output(*, quiet: bool = False) -> Console:
    """A console on stdout for what was asked for, which may go to a pager. quiet: it prints nothing."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120, quiet=quiet)


def safe(said: str, style: str = "") -> Text:
    """Text of a model or a data file, in which control characters, that could steer the terminal, are pictures."""
    return Text(said.translate(_CONTROLS), style=style)


# ---- runs and comparisons ----


def show_summary(console: Console, summary: Summary) -> None:
    """The table that `cca run` ends with."""
    table = Table(title="Base against updated model", title_justify="left", show_edge=False, pad_edge=False)
    shown = words.set_table(summary)
    for name in shown.headings:
        heading = name.replace(" detectable", "\ndetectable").replace(" (", "\n(").replace(" p", "\np")
        table.add_column(heading, justify="right" if name else "left", no_wrap=not name)
    group = "target"
    for (now, _, _), (name, *cells) in zip(summary.sets(), shown.cells, strict=True):
        if now != group:
            table.add_section()
            group = now
        table.add_row(safe(name, "bold" if name == "target" else ""), *cells)
    console.print(table)
    for note in shown.notes:
        console.print(note)
    console.print(f"\nPivots: {words.pivots_found(summary)}.")
    for line in words.on_slips(summary):
        console.print(f"  {line}.")
    if (kinds := words.kind_table(summary)).cells:
        by_kind = Table(show_edge=False, pad_edge=False)
        for name in kinds.headings:
            by_kind.add_column(name, justify="left" if name == kinds.headings[0] else "right")
        for row in kinds.cells:
            by_kind.add_row(*row)
        console.print(by_kind)
        for note in kinds.notes:
            console.print(note)
    console.print(f"Circuit: {words.circuit_size(summary)}.")
    console.print(f"Update: {words.what_was_kept(summary)}.")
    if summary.seconds:
        console.print(f"Seconds: {words.seconds_spent(summary)}.")
    warnings = [f for f in summary.diagnosis if not f.fine]
    counted = f"{len(warnings) or 'no'} warning{'s'[: len(warnings) != 1]}"
    console.print(f"Diagnosis: {len(summary.diagnosis)} checks, {counted}.")
    for found in warnings:
        console.print(safe(f"warning, {found.check}: {found.message}. What to do: {found.advice}.", "yellow"))


def show_side_by_side(console: Console, summaries: Mapping[str, Summary]) -> None:
    """Several runs, by name, in one table."""
    rows = {name: {row.name: row for row in words.set_rows(summary)} for name, summary in summaries.items()}
    table = Table(title="Points against the base model (95% interval)", title_justify="left", show_edge=False)
    table.add_column("")
    for name in rows:
        table.add_column(safe(name), justify="right")
    for name in dict.fromkeys(name for found in rows.values() for name in found):
        cells = (found.get(name) for found in rows.values())
        table.add_row(safe(name), *(f"{c.difference} ({c.ci95})" if c else "" for c in cells))
    table.add_section()
    found = summaries.values()
    table.add_row("circuit", *(f"{s.circuit.selected:,} ({s.circuit.density:.2%})" for s in found))
    table.add_row("rows", *(f"{s.update.rows:,}" for s in found))
    table.add_row("step kept", *(str(s.update.best_step) for s in found))
    console.print(table)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """The table that `cca compare` ends with."""
    seeds = ", ".join(map(str, comparison.seeds))
    table = Table(title=f"Methods by gain on the target, seeds {seeds}", title_justify="left", show_lines=True)
    # what has no room on a narrow terminal is in the report and in comparison.md
    kept = [i for i, name in enumerate(tables.COLUMNS) if console.width >= WIDE or not name.startswith(COSTS)]
    for name in (tables.COLUMNS[i] for i in kept):
        heading = name.replace(" / ", "\n").replace("drift ", "drift\n").replace(" templates", "\ntemplates")
        first = name == "method"
        table.add_column(heading.replace(" (", "\n("), justify="left" if first else "right", no_wrap=first)
    for row in tables.cells(comparison):
        table.add_row(
            *(row[i].replace(" (", "\n(").replace(", ", "\n").replace(" / ", "\n").replace(" ->", "\n->") for i in kept)
        )
    console.print(table)
    console.print(tables.MINIMUM_DETECTABLE)


# ---- pivots ----


def show_pivot(console: Console, view: PivotView) -> None:
    """A trace with its pivot marked, and how both tokens go on."""
    slip = {True: ", on its slip", False: ", not on its slip", None: ""}[view.on_slip]
    wrong = "sampled" if view.greedy_correct else "greedy"
    console.print(safe(f"{view.problem}: {view.outcome} ({view.kind}; {wrong} trace wrong{slip})", "bold"))
    console.print(Padding(safe(view.question, "dim"), (0, 0, 0, 2)))
    console.print(Padding(safe(f"{view.before.lstrip()} ..." if view.before else "(the first token)"), (0, 0, 0, 2)))
    for name, style, sign, side in (("desired", GOOD, "✓", view.desired), ("undesired", BAD, "✗", view.undesired)):
        text = Text(f"{sign} {name:<9} ")
        text.append_text(safe(_visible(side.token), style)).append_text(safe(side.text))
        console.print(Padding(text, (0, 0, 0, 2)))
        told = [f"answer {side.answer or 'none'}: {side.verdict}, gold {view.gold}"]
        if view.outcome != "not confirmed":  # nobody asks either model about those
            told.append(_odds(side))
        if side.right is not None:
            told.append(f"sampled: {side.right} of {view.samples} right")
        console.print(Padding(safe("; ".join(told), "dim"), (0, 0, 0, 14)))
    console.print()


def _odds(side: Continuation) -> str:
    if side.base is None or side.updated is None:
        return "its probability is known after cca evaluate"
    return f"probability {words.percent(side.base)} -> {words.percent(side.updated)}"


def _visible(token: str) -> str:
    """A token with its white space shown, in brackets, so that it can be told apart without colour."""
    return "[" + token.replace("\n", "⏎").replace(" ", "␣") + "]"


# ---- circuits ----


def show_circuit(console: Console, circuit: "CircuitView", of: str) -> None:
    """Heads and neurons of the circuit by layer. of: its run."""
    table = Table(title=f"Circuit of {of}", title_justify="left", show_edge=False)
    for name in ("layer", "query heads", "key heads", "value heads", "neurons"):
        table.add_column(name, justify="right" if name in ("layer", "neurons") else "left")
    members = circuit.members()
    for layer, counts in enumerate(circuit.sizes.tolist()):
        heads = [", ".join(map(str, members[kind].get(layer, []))) for kind in KINDS[:3]]
        neurons = len(members["neuron"].get(layer, []))
        table.add_row(str(layer), *heads, f"{neurons} of {counts[3]:,}" if neurons else "")
    console.print(table)
    total = len(circuit.gates)
    console.print(f"{int(circuit.selected.sum())} of {total:,} components ({circuit.density:.2%}).")


def show_overlap(console: Console, shared: "Mapping[str, Overlap]", other: str) -> None:
    """What a circuit, shown before, shares with that of the run `other`, by kind."""
    table = Table(title=f"Overlap with {other}", title_justify="left", show_edge=False)
    for name in ("", "of", "here", "there", "shared", "Jaccard", "p by chance"):
        table.add_column(name, justify="right" if name else "left")
    for kind, o in shared.items():
        jaccard = "" if o.jaccard is None else f"{o.jaccard:.2f}"
        counts = (f"{count:,}" for count in (o.n, o.first, o.second, o.shared))
        table.add_row(kind, *counts, jaccard, words.p_value(o.p_value))
    console.print()
    console.print(table)


# ---- problems ----


def show_problem(console: Console, view: ProblemView, run: str) -> None:
    """A problem of the run `run` with its answers side by side."""
    split = f"{view.split}: {view.skill}" if view.skill else view.split
    console.print(safe(f"{view.id} ({split}, template {view.template})", "bold"))
    console.print(safe(f"{view.question}\n"))
    console.print(safe(f"gold {view.gold}: {view.solution}\n", "dim"))
    if not view.answers:
        console.print(f"Nothing has answered it yet; go on with: cca run --out {run}")
    table = Table(show_edge=False, show_lines=True, expand=bool(view.answers))
    for answer in view.answers:
        table.add_column(Text(answer.by), ratio=1, overflow="fold")
    if view.answers:
        table.add_row(*(safe(a.text.strip()) for a in view.answers))
        verdicts = [f"{'✓' if a.verdict == 'right' else '✗'} {a.verdict}: {a.answer or 'none'}" for a in view.answers]
        table.add_row(*(safe(v, "bold") for v in verdicts))
        console.print(table)
    if view.split in ("train", "validation"):
        console.print(
            f"Only test problems are answered by the updated model. Its pivot: cca show pivots {run} "
            f"--problem {view.id}"
        )
