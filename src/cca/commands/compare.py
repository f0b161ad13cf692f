"""`cca compare`: run several methods on the same problems and rank them in one table."""

import argparse
import sys
from pathlib import Path

from cca.commands.options import add_common, add_config, add_model, add_overrides, overrides
from cca.controls.methods import METHODS
from cca.errors import InputError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca compare`."""
    said = "default all: " + "; ".join(f"{name}: {method.title}" for name, method in METHODS.items())
    add_config(parser)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/compare- and the config's name)")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD", help=said
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    parser.add_argument(
        "--rate",
        dest="rates",
        action="append",
        default=[],
        metavar="METHOD=RATE",
        help="learning rate of a method, in place of one that suits the bundled model, or of auto on another; may be "
        "repeated",
    )
    add_model(parser)
    add_overrides(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """Run what is not finished, and write and print the table."""
    from cca.io import to_json
    from cca.lock import make_and_lock
    from cca.run import compare
    from cca.run.run import default_folder
    from cca.show.progress import make_display

    rates = dict(map(_rate, options.rates))
    planned = compare.plan(options.config, overrides(options), options.methods, options.seeds, rates)
    default = default_folder(options.config)
    out = options.out or default.with_name(f"compare-{default.name}")
    with make_and_lock(out):
        compare.run_methods(
            out, planned, make_display(options.quiet, keep=False), lambda text: print(text, file=sys.stderr, flush=True)
        )
        found = compare.compare(out, planned)
        compare.write(out, planned, found)
    if options.json:
        print(to_json(found, indent=1))
        return 0
    from cca.show.terminal import WIDE, console_for_people, show_comparison

    show_comparison(console_for_people(WIDE), found)
    print(f"\nThe same table: {out / 'comparison.md'}, as JSON: {out / 'comparison.json'}", file=sys.stderr)
    print(f"Open {out / 'report.html'} in a browser", file=sys.stderr)
    return 0


def _rate(text: str) -> tuple[str, float]:
    method, _, rate = text.partition("=")
    try:
        return method, float(rate)
    except ValueError:
        raise InputError(f"--rate {text!r} is not of the form METHOD=RATE, for example bias=0.3") from None
