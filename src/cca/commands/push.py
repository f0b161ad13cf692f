"""`cca push`: upload what a run found to the hub."""

import argparse
import sys
from pathlib import Path

from cca.commands.apply import DTYPES
from cca.commands.options import check_meant


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca push`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("name", metavar="USER/NAME", help="repository on the hub; made where there is none")
    parser.add_argument(
        "--what",
        choices=("adapter", "model", "dataset"),
        default="adapter",
        help="the update as a LoRA adapter (default), the whole updated model, or traces and pivots",
    )
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    parser.add_argument("--offline", action="store_true", help="only write the folder that would be uploaded")
    parser.add_argument(
        "--base", metavar="NAME", help="of an adapter: what others have the base as (default: model.path)"
    )
    parser.add_argument("--max-rank", type=int, metavar="R", help="of an adapter: lower larger ranks to this")
    parser.add_argument("--dtype", choices=DTYPES, help="of a model's weights (default: the run's)")


def run(options: argparse.Namespace) -> int:
    """Write and push, and say where it is."""
    from cca.run.run import Run
    from cca.run.share.hub import push

    check_meant(options, "--what", options.what, base="adapter", max_rank="adapter", dtype="model")
    found = push(
        Run.load(options.run),
        options.name,
        options.what,
        private=options.private,
        offline=options.offline,
        base=options.base,
        max_rank=options.max_rank,
        dtype=options.dtype,
    )
    if found.url:
        print(f"pushed {found.folder} to {found.url}", file=sys.stderr)
        return 0
    kind = " --repo-type dataset" if options.what == "dataset" else ""
    print(
        f"nothing was pushed ({found.reason}). The folder is {found.folder}; upload it later with the same command, "
        f"or: hf upload {options.name} {found.folder}{kind}",
        file=sys.stderr,
    )
    return 0
