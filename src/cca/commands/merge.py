"""`cca merge`: write the updated model as an ordinary model folder."""

import argparse
import sys
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca merge`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes; must not exist yet")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of its weights (default: the run's)"
    )


def run(options: argparse.Namespace) -> int:
    """Merge, and say what rounding cost."""
    from cca.run.merge import merge
    from cca.run.run import Run

    rounding = merge(Run.load(options.run), options.folder, options.dtype)
    print(
        f"merged into {rounding.dtype}: {rounding.unchanged:.1%} of the changed parameters rounded to nothing; what is "
        f"left departs from the delta by {rounding.error:.1%} of its size",
        file=sys.stderr,
    )
    if rounding.error > 0.1:
        print("warning: much of the update is lost to rounding; --dtype float32 keeps all of it", file=sys.stderr)
    print(f"wrote {options.folder}; {options.folder / 'README.md'} says how to load and ask it", file=sys.stderr)
    return 0
