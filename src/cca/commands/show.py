"""`cca show`: look at a run in the terminal. Model output is text here, never markup.

What is shown is what was asked for, so it goes to stdout, where a pager can take it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cca.errors import InputError
from cca.evaluation import stats
from cca.folder import RunFolder
from cca.method.circuit import Circuit
from cca.model.components import KINDS
from cca.run.config import load_config
from cca.run.workspace import make_prompter
from cca.show import words
from cca.show.terminal import show_summary
from cca.show.views import Continuation, PivotView, circuit_of, gates, pivot_views, problem_view, summary_of

GOOD, BAD = "bold black on bright_cyan", "bold white on dark_orange3"


def show(options: argparse.Namespace) -> int:
    """Run `cca show WHAT`."""
    commands: dict[str, Callable[[argparse.Namespace, Console], Any]] = {
        "scores": _scores,
        "pivots": _pivots,
        "circuit": _circuit,
        "problem": _problem,
    }
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, width=width, quiet=options.json)
    found = commands[options.what](options, console)
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0


_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def _text(said: str, style: str = "") -> Text:
    """Text of a model or a data file, in which control characters, that could steer the terminal, are pictures."""
    return Text(said.translate(_CONTROLS), style=style)


# ---- scores ----


def _scores(options: argparse.Namespace, console: Console) -> Any:
    summaries = {str(path): summary_of(RunFolder.open(path)) for path in options.runs}
    if len(options.runs) == 1:
        (summary,) = summaries.values()
        show_summary(console, summary)
        return summary
    rows = {path: {row.name: row for row in words.set_rows(summary)} for path, summary in summaries.items()}
    table = Table(title="Points against the base model (95% interval)", title_justify="left", show_edge=False)
    table.add_column("")
    for path in rows:
        table.add_column(_text(path), justify="right")
    for name in dict.fromkeys(name for found in rows.values() for name in found):
        cells = (found.get(name) for found in rows.values())
        table.add_row(_text(name), *(f"{c.difference} ({c.ci95})" if c else "" for c in cells))
    table.add_section()
    for what, said in (
        ("circuit", lambda s: f"{s['circuit']['selected']:,} ({s['circuit']['density']:.2%})"),
        ("rows", lambda s: f"{s['update']['rows']:,}"),
        ("step kept", lambda s: str(s["update"]["best_step"])),
    ):
        table.add_row(what, *map(said, summaries.values()))
    console.print(table)
    return summaries


# ---- pivots ----


def _pivots(options: argparse.Namespace, console: Console) -> Any:
    if options.n < 1:
        raise InputError(f"-n {options.n} shows nothing; give at least 1")
    folder = RunFolder.open(options.run)
    config = load_config(folder.file("config.toml"))
    views = pivot_views(folder, make_prompter(config), config.pivots.method)
    what, count = "pivots", len(views)
    if options.problem:
        views = [v for v in views if v.problem == options.problem]
        if not views:
            raise InputError(
                f"{options.run} has no pivot of problem {options.problem!r}; see cca show problem {options.run} "
                f"{options.problem}, or leave --problem out"
            )
    if options.off_slip:
        views, what = [v for v in views if v.on_slip is False], "pivots that miss their planted slip"
        count = len(views)
    chosen = [views[i * len(views) // options.n] for i in range(options.n)] if len(views) > options.n else views
    console.print(f"{len(chosen)} of {count} {what}.\n")
    for view in chosen:
        _show_pivot(console, view)
    return [asdict(v) for v in chosen]


def _show_pivot(console: Console, view: PivotView) -> None:
    slip = {True: ", on its slip", False: ", not on its slip", None: ""}[view.on_slip]
    wrong = "sampled" if view.greedy_correct else "greedy"
    console.print(_text(f"{view.problem}: {view.outcome} ({wrong} trace wrong{slip})", "bold"))
    console.print(Padding(_text(view.question, "dim"), (0, 0, 0, 2)))
    console.print(Padding(_text(f"{view.before.lstrip()} ..." if view.before else "(the first token)"), (0, 0, 0, 2)))
    for name, style, sign, side in (("desired", GOOD, "✓", view.desired), ("undesired", BAD, "✗", view.undesired)):
        text = Text(f"{sign} {name:<9} ")
        text.append_text(_text(_visible(side.token), style)).append_text(_text(side.text))
        console.print(Padding(text, (0, 0, 0, 2)))
        right = f"{'right' if side.correct else 'wrong'}, gold {view.gold}"
        console.print(Padding(_text(f"answer {side.answer or 'none'}: {right}; {_odds(side)}", "dim"), (0, 0, 0, 14)))
    console.print()


def _odds(side: Continuation) -> str:
    if side.base is None or side.updated is None:
        return "its probability is known after cca evaluate"
    return f"probability {words.percent(side.base)} -> {words.percent(side.updated)}"


def _visible(token: str) -> str:
    """A token with its white space shown, in brackets, so that it can be told apart without colour."""
    return "[" + token.replace("\n", "⏎").replace(" ", "␣") + "]"


# ---- circuit ----


def _circuit(options: argparse.Namespace, console: Console) -> Any:
    circuits = [circuit_of(RunFolder.open(path)) for path in options.runs]
    if len(circuits) > 2:
        raise InputError(f"cca show circuit takes one run or two to compare, not {len(circuits)}")
    first, found = circuits[0], {str(p): _members(c) for p, c in zip(options.runs, circuits, strict=True)}
    table = Table(title=f"Circuit of {options.runs[0]}", title_justify="left", show_edge=False)
    for name in ("layer", "query heads", "key heads", "value heads", "neurons"):
        table.add_column(name, justify="right" if name in ("layer", "neurons") else "left")
    members = found[str(options.runs[0])]
    for layer, counts in enumerate(first.sizes.tolist()):
        heads = [", ".join(map(str, members[kind].get(layer, []))) for kind in KINDS[:3]]
        neurons = len(members["neuron"].get(layer, []))
        table.add_row(str(layer), *heads, f"{neurons} of {counts[3]:,}" if neurons else "")
    console.print(table)
    total = len(first.gates)
    console.print(f"{int(first.selected.sum())} of {total:,} components ({first.density:.2%}).")
    if len(circuits) == 1:
        return {"components": members, "density": first.density}
    shared = _overlaps(first, circuits[1], options.runs)
    table = Table(title=f"Overlap with {options.runs[1]}", title_justify="left", show_edge=False)
    for name in ("", "of", "here", "there", "shared", "Jaccard", "p by chance"):
        table.add_column(name, justify="right" if name else "left")
    for kind, o in shared.items():
        jaccard = "" if o["jaccard"] is None else f"{o['jaccard']:.2f}"
        table.add_row(kind, *(f"{o[k]:,}" for k in ("n", "first", "second", "shared")), jaccard, f"{o['p_value']:.2g}")
    console.print()
    console.print(table)
    return {"runs": found, "overlap": shared}


def _members(circuit: Circuit) -> dict[str, dict[int, list[int]]]:
    """Kind -> layer -> numbers of the circuit's components."""
    found: dict[str, dict[int, list[int]]] = {kind: {} for kind in KINDS}
    for g in gates(circuit):
        if g.selected:
            found[g.kind].setdefault(g.layer, []).append(g.number)
    return found


def _overlaps(first: Circuit, second: Circuit, runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By kind, since circuits that favour the same kind overlap for that alone."""
    if first.sizes.tolist() != second.sizes.tolist():
        raise InputError(
            f"{runs[0]} and {runs[1]} are runs of models with other components; compare runs of one model, or of "
            "models of one shape"
        )
    all_gates = list(gates(first))
    counts = Counter(g.kind for g in all_gates)
    return {
        kind: stats.overlap(
            [bool(s) for s, g in zip(first.selected, all_gates, strict=True) if g.kind == kind],
            [bool(s) for s, g in zip(second.selected, all_gates, strict=True) if g.kind == kind],
        )._asdict()
        for kind in KINDS
        if counts[kind]
    }


# ---- problem ----


def _problem(options: argparse.Namespace, console: Console) -> Any:
    view = problem_view(RunFolder.open(options.run), options.id)
    console.print(_text(f"{view.id} ({view.split}, template {view.template})", "bold"))
    console.print(_text(f"{view.question}\n"))
    console.print(_text(f"gold {view.gold}: {view.solution}\n", "dim"))
    if not view.answers:
        console.print(f"Nothing has answered it yet; go on with: cca run --out {options.run}")
    table = Table(show_edge=False, show_lines=True, expand=bool(view.answers))
    for answer in view.answers:
        table.add_column(Text(answer.by), ratio=1, overflow="fold")
    if view.answers:
        table.add_row(*(_text(a.text.strip()) for a in view.answers))
        verdicts = [f"{'✓ right' if a.correct else '✗ wrong'}: {a.answer or 'no answer'}" for a in view.answers]
        table.add_row(*(_text(v, "bold") for v in verdicts))
        console.print(table)
    if view.split in ("train", "validation"):
        console.print(f"Only test problems are answered by the updated model. Its pivot: "
                      f"cca show pivots {options.run} --problem {view.id}")  # fmt: skip
    return asdict(view)
