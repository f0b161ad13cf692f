"""`cca apply` and `cca revert`: put deltas into the files of a model, and take them out again."""

import argparse
import sys
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Add the size at which weights are cut into files."""
    said = "largest size of a file of weights, such as 500MB (default 5GB)"
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help=said)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that reads a model's files and writes others."""
    add_shard(parser)
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca apply`."""
    parser.add_argument("model", metavar="MODEL", help="bundled, a folder, a GGUF file or a hub name")
    parser.add_argument("deltas", type=Path, nargs="+", metavar="DELTA", help="a file of a delta, or a run folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="where the model goes; must not exist yet")
    parser.add_argument("--dtype", choices=DTYPES, help="of its weights (default: that of the model's files)")
    parser.add_argument(
        "--add", action="store_true", help="add deltas that change the same rows, though nobody measured them together"
    )
    add_files(parser)


def add_revert(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca revert`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder that cca merge or cca apply wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="where the model goes; must not exist yet")
    parser.add_argument("--all", action="store_true", help="take out all deltas that were applied, not only the last")
    add_files(parser)


def run(options: argparse.Namespace) -> int:
    """Apply, and say what rounding cost."""
    from cca.model.checkpoint import check_shard
    from cca.run.share.patch import apply_to

    found = apply_to(
        options.model,
        options.deltas,
        options.out,
        dtype=options.dtype,
        add=options.add,
        shard=check_shard(options.max_shard_size),
        trust_remote_code=options.trust_remote_code,
    )
    for name, rounding in found.rounding.items():
        say_rounding(f"applied {name} in {found.dtype}", rounding.unchanged, rounding.error)
    print(f"wrote {options.out}; cca revert {options.out} NEW takes it out again", file=sys.stderr)
    return 0


def run_revert(options: argparse.Namespace) -> int:
    """Take out what was applied, and name it."""
    from cca.model.checkpoint import check_shard
    from cca.run.share.patch import revert

    taken = revert(
        options.model,
        options.out,
        every=options.all,
        shard=check_shard(options.max_shard_size),
        trust_remote_code=options.trust_remote_code,
    )
    print(f"took out {', '.join(taken)}; the rows are what they were. Wrote {options.out}", file=sys.stderr)
    return 0


def say_rounding(what: str, unchanged: float, error: float) -> None:
    """What is left of a delta in the weights, and a warning where that is not much."""
    print(
        f"{what}: {unchanged:.1%} of the changed parameters rounded to nothing; what is left departs from the delta by "
        f"{error:.1%} of its size",
        file=sys.stderr,
    )
    if error > 0.1:
        print("warning: much of the update is lost to rounding; --dtype float32 keeps all of it", file=sys.stderr)
