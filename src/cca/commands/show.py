"""`cca show`: look at a run in the terminal. What is shown is what was asked for, so it goes to stdout, for a pager."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cca.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from cca.evaluation.stats import Overlap
    from cca.show.circuit import CircuitView


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca show WHAT`."""
    known = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    scores = known.add_parser("scores", help="the table of a run and its diagnosis; several runs side by side")
    scores.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    pivots = known.add_parser("pivots", help="traces with the pivot marked, and how both tokens go on")
    pivots.add_argument("run", type=Path, metavar="RUN", help="run folder")
    pivots.add_argument("-n", type=int, default=10, metavar="N", help="how many, spread over the run (default 10)")
    pivots.add_argument("--problem", metavar="ID", help="only that of this problem")
    pivots.add_argument("--off-slip", action="store_true", help="only those that miss their trace's planted slip")
    pivots.add_argument(
        "--kind", metavar="KIND", help="only those of this kind: first token, word, punctuation, digit, operator or end"
    )
    circuit = known.add_parser("circuit", help="heads and neurons per layer; with two runs, what they share")
    circuit.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    problem = known.add_parser("problem", help="a problem with the answers of base and updated model side by side")
    problem.add_argument("run", type=Path, metavar="RUN", help="run folder")
    problem.add_argument("id", metavar="ID", help="of the problem, as in problems.jsonl")
    for what in (scores, pivots, circuit, problem):
        what.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Show what was asked for."""
    from cca.show.terminal import console_for_output

    shown: dict[str, Callable[[argparse.Namespace, Console], Any]] = {
        "scores": _scores,
        "pivots": _pivots,
        "circuit": _circuit,
        "problem": _problem,
    }
    found = shown[options.what](options, console_for_output(quiet=options.json))
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0


def _scores(options: argparse.Namespace, console: "Console") -> Any:
    from cca.folder import RunFolder
    from cca.io import to_json
    from cca.show.terminal import show_side_by_side, show_summary
    from cca.show.views import summary_of

    summaries = {str(path): summary_of(RunFolder.open(path)) for path in options.runs}
    found = {path: json.loads(to_json(summary)) for path, summary in summaries.items()}
    if len(options.runs) > 1:
        show_side_by_side(console, summaries)
        return found
    show_summary(console, *summaries.values())
    return found[str(options.runs[0])]


def _pivots(options: argparse.Namespace, console: "Console") -> Any:
    from cca.evaluation.pivot_kinds import PIVOT_KINDS
    from cca.run.run import Run
    from cca.show import words
    from cca.show.terminal import show_pivot
    from cca.show.views import pivot_views

    if options.n < 1:
        raise InputError(f"-n {options.n} shows nothing; give at least 1")
    if options.kind is not None and options.kind not in PIVOT_KINDS:
        raise InputError(f"--kind {options.kind!r} is none; give one of: {', '.join(map(repr, PIVOT_KINDS))}")
    opened = Run.load(options.run)
    views = pivot_views(opened.folder, opened.prompter)
    kinds, what, count = words.kind_counts(v.kind for v in views), "pivots", len(views)
    if options.problem:
        views = [v for v in views if v.problem == options.problem]
        if not views:
            raise InputError(
                f"{options.run} has no pivot of problem {options.problem!r}; see cca show problem {options.run} "
                f"{options.problem}, or leave --problem out"
            )
    if options.kind:
        views, what = [v for v in views if v.kind == options.kind], f"pivots of the kind {options.kind}"
        count = len(views)
    if options.off_slip:
        views, what = [v for v in views if v.on_slip is False], f"{what} that miss their planted slip"
        count = len(views)
    chosen = [views[i * len(views) // options.n] for i in range(options.n)] if len(views) > options.n else views
    console.print(f"{len(chosen)} of {count} {what}. By kind, all that were found: {kinds}.\n")
    for view in chosen:
        show_pivot(console, view)
    return [asdict(v) for v in chosen]


def _circuit(options: argparse.Namespace, console: "Console") -> Any:
    from cca.folder import RunFolder
    from cca.show.circuit import circuit_of
    from cca.show.terminal import show_circuit, show_overlap

    if len(options.runs) > 2:
        raise InputError(f"cca show circuit takes one run or two to compare, not {len(options.runs)}")
    circuits = {str(path): circuit_of(RunFolder.open(path)) for path in options.runs}
    of, first = next(iter(circuits.items()))
    show_circuit(console, first, of)
    if len(options.runs) == 1:
        return {"components": first.members(), "density": first.density}
    other = str(options.runs[1])
    shared = _overlaps(circuits, of, other)
    show_overlap(console, shared, other)
    return {
        "runs": {path: circuit.members() for path, circuit in circuits.items()},
        "overlap": {kind: overlap._asdict() for kind, overlap in shared.items()},
    }


def _overlaps(circuits: "Mapping[str, CircuitView]", here: str, there: str) -> "dict[str, Overlap]":
    """By kind, since circuits that favour the same kind overlap for that alone."""
    from cca.evaluation import stats
    from cca.records import KINDS

    first, second = circuits[here], circuits[there]
    if first.sizes.tolist() != second.sizes.tolist():
        raise InputError(
            f"{here} and {there} are runs of models with other components; compare runs of one model, or of models of "
            "one shape"
        )
    both = list(zip(first.components(), second.selected.tolist(), strict=True))
    found = {}
    for kind in KINDS:
        alike = [(gate.selected, also) for gate, also in both if gate.kind == kind]
        if alike:
            found[kind] = stats.overlap([mine for mine, _ in alike], [theirs for _, theirs in alike])
    return found


def _problem(options: argparse.Namespace, console: "Console") -> Any:
    from cca.folder import RunFolder
    from cca.show.terminal import show_problem
    from cca.show.views import problem_view

    view = problem_view(RunFolder.open(options.run), options.id)
    show_problem(console, view, str(options.run))
    return asdict(view)
