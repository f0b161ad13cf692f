"""`cca merge`: write the updated model as an ordinary model folder."""

import argparse
import sys
from pathlib import Path

from cca.commands.apply import DTYPES, add_shard, say_rounding


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca merge`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes; must not exist yet")
    parser.add_argument("--dtype", choices=DTYPES, help="of its weights (default: the run's)")
    add_shard(parser)


def run(options: argparse.Namespace) -> int:
    """Merge, and say what rounding cost."""
    from cca.model.checkpoint import check_shard
    from cca.run.run import Run
    from cca.run.share.merge import merge

    shard = check_shard(options.max_shard_size)
    found = merge(Run.load(options.run), options.folder, options.dtype, shard)
    say_rounding(f"merged into {found.dtype}", found.unchanged, found.error)
    print(f"wrote {options.folder}; {options.folder / 'README.md'} says how to load and ask it", file=sys.stderr)
    return 0
