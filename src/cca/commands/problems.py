"""`cca problems`: the problems of a source as JSON lines, or a verdict on each of its templates."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cca.errors import InputError

if TYPE_CHECKING:
    from cca.problems.rows import Columns
    from cca.problems.templates.annotated import TemplateCheck


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca problems`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="gsm-symbolic, reasoning-gym:NAME, a file (.jsonl, .csv, .parquet), a folder of such files or annotated "
        "templates, or owner/name:config on the hub",
    )
    parser.add_argument(
        "-n", "--n", type=int, metavar="N", help="instances a template (default 50; of a file all, which --check reads)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=COLUMN",
        help="which column of a file holds what, such as question=prompt answer=target",
    )
    parser.add_argument(
        "--grader",
        default="number",
        metavar="NAME",
        help="of --check, as problems.grader of a run: number (default), stated, exact, math-verify, module:function",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to stdout")
    parser.add_argument(
        "--check",
        action="store_true",
        help="grade the own solution of each problem, and print a line a template; exit code 1 where one fails",
    )


def run(options: argparse.Namespace) -> int:
    """Write or check."""
    from cca.io import write_text
    from cca.problems.listing import listed, verdicts
    from cca.problems.sources import open_source

    if options.n is not None and options.n < 1:
        raise InputError(f"-n {options.n} asks for nothing; give at least 1")
    columns, drawn = _columns(options.columns), options.n or 50
    if options.check:
        return _check(verdicts(options.source, drawn, options.seed, columns, options.grader), drawn)
    if options.out is not None and not options.out.parent.is_dir():
        raise InputError(f"there is no folder {options.out.parent} for --out; make it first")
    source = open_source(options.source, columns=columns, grader=options.grader)
    if options.out and options.out.exists() and Path(options.source).exists() and options.out.samefile(options.source):
        raise InputError(f"--out {options.out} is the source itself, whose other columns would be lost; name another")
    text: list[str] = []
    errors: list[str] = []
    for found in listed(source, options.n if source.is_rows else drawn, options.seed):
        if options.out is None:
            print(*found.lines, sep="\n", end="\n" * bool(found.lines))
        text += found.lines
        if found.error and len(source.templates) == 1:
            raise InputError(found.error)
        if found.error:
            errors.append(found.error)
            print(f"left out {found.template}: {found.error}", file=sys.stderr)
    if not text:
        raise InputError(f"{options.source} gives no problems; mend what is named above, or name another source")
    used = len(source.templates) - len(errors)
    if options.out is not None:
        write_text(options.out, "".join(line + "\n" for line in text))
        print(f"wrote {len(text)} problems of {used} templates to {options.out}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(source.templates)} templates left out", file=sys.stderr)
    return 1 if errors else 0


def _columns(given: list[str]) -> "Columns":
    from cca.problems.rows import Columns

    pairs = [text.partition("=") for text in given]
    for text, (key, _, column) in zip(given, pairs, strict=True):
        if not (key and column):
            raise InputError(f"--columns {text!r} is not of the form KEY=COLUMN, such as question=prompt")
    if len({key for key, _, _ in pairs}) < len(pairs):
        raise InputError(f"--columns {' '.join(given)} names a key twice; name it once")
    return Columns.of({key: column for key, _, column in pairs}, {})


def _check(found: "Iterable[TemplateCheck]", wanted: int) -> int:
    failed = checked = 0
    for verdict in found:
        checked += 1
        failed += bool(verdict.failures)
        size = f"{verdict.distinct} distinct" + (f", all there are: {verdict.maximum}" if verdict.maximum else "")
        if verdict.maximum and verdict.maximum > wanted:
            size = f"{verdict.distinct} distinct of {verdict.maximum}"
        print(f"{'FAIL' if verdict.failures else 'ok  '} {verdict.name}: " + "; ".join([size, *verdict.failures]))
        for note in verdict.notes:
            print(f"     note: {note}")
    print(f"{checked} templates, {failed} failed", file=sys.stderr)
    return 1 if failed else 0
