"""`cca grade`: the traces of a run on which its grader and another disagree."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cca.errors import InputError

if TYPE_CHECKING:
    from cca.grading.graders import Disagreement


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca grade`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--grader",
        required=True,
        metavar="NAME",
        help="number, stated, exact, math-verify, or your own module:function",
    )
    parser.add_argument("-n", type=int, default=20, metavar="N", help="disagreements to show (default 20)")
    parser.add_argument("--json", action="store_true", help="print all of them as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Grade all traces with both."""
    from cca.folder import RunFolder
    from cca.grading.graders import disagreements, load_grader
    from cca.records import Problem, TracePair, problem_of
    from cca.show.views import settings

    folder = RunFolder.open(options.run)
    pairs = folder.read("traces.jsonl", TracePair)
    if not pairs:
        raise InputError(f"{options.run} has no traces yet; make them with: cca trace {options.run}")
    name = settings(folder)["problems"]["grader"]
    first, second = load_grader(name), load_grader(options.grader)
    problems = {p.id: p for p in folder.read("problems.jsonl", Problem)}
    items = [
        (f"{pair.problem}, {kind}", trace.text, problem_of(pair, problems, "traces.jsonl").answer)
        for pair in pairs
        for kind, trace in pair.by_kind().items()
    ]
    found = disagreements(items, first, second)
    if options.json:
        records = [{**d._asdict(), "first": d.first._asdict(), "second": d.second._asdict()} for d in found]
        whole = {"first": name, "second": options.grader, "traces": len(items), "disagreements": records}
        print(json.dumps(whole, indent=1))
        return 0
    print(f"{name} and {options.grader} disagree on {len(found)} of {len(items)} traces", file=sys.stderr)
    _show(found[: options.n], name, options.grader)
    return 0


def _show(found: "Sequence[Disagreement]", *graders: str) -> None:
    for d in found:
        said = (
            f"{g} reads {v.answer!r}: {'right' if v.correct else 'wrong'}"
            for g, v in zip(graders, (d.first, d.second), strict=True)
        )
        print(f"\n{d.id}, gold {d.gold!r}\n  " + "\n  ".join(said) + f"\n  ends: {d.end!r}")
