"""`cca merge`: write the updated model as an ordinary model folder."""

import argparse
import sys
from pathlib import Path

from cca.errors import InputError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca merge`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes; must not exist yet")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of its weights (default: the run's)"
    )


def run(options: argparse.Namespace) -> int:
    """Merge, and say what rounding cost."""
    from cca.folder import RunFolder
    from cca.run.config import load_config
    from cca.run.merge import merge

    folder = RunFolder.open(options.run)
    if not folder.finished("update"):
        raise InputError(f"{options.run} has no finished update yet; finish it with: cca run --out {options.run}")
    folder.verify()
    rounding = merge(folder, load_config(folder.file("config.toml")), options.folder, options.dtype)
    print(
        f"merged into {rounding.dtype}: {rounding.unchanged:.1%} of the changed parameters rounded to nothing; what is "
        f"left departs from the delta by {rounding.error:.1%} of its size",
        file=sys.stderr,
    )
    if rounding.error > 0.1:
        print("warning: much of the update is lost to rounding; --dtype float32 keeps all of it", file=sys.stderr)
    print(f"wrote {options.folder}; load it with AutoModelForCausalLM.from_pretrained", file=sys.stderr)
    return 0
