"""`cca export`: what a run found, as a file or folder for other tools."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cca.commands.options import check_meant

if TYPE_CHECKING:
    from cca.run.run import Run

FORMATS = {
    "delta": "one file of the changed rows, for cca apply",
    "peft": "a LoRA adapter, for PEFT, vLLM and others",
    "dataset": "traces, pivots and preferences as Parquet, for datasets and trl",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca export`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="where it goes; must not exist yet")
    parser.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument(
        "--base", metavar="NAME", help="what others have the base model as, such as its hub name (default: model.path)"
    )
    parser.add_argument(
        "--max-rank", type=int, metavar="R", help="of peft: lower larger ranks to this, and say what is lost"
    )


def run(options: argparse.Namespace) -> int:
    """Write it, and say what others need to know."""
    from cca.run.run import Run

    check_meant(options, "--format", options.format, max_rank="peft", base="peft delta")
    opened = Run.load(options.run)
    {"delta": _delta, "peft": _peft, "dataset": _dataset}[options.format](opened, options)
    return 0


def _delta(opened: "Run", options: argparse.Namespace) -> None:
    from cca.run.share.patch import export_delta

    delta = export_delta(opened, options.out, options.base)
    print(
        f"wrote {options.out}: {delta.row_count:,} rows of {len(delta.components):,} components, for {delta.base}. "
        f"Apply it with: cca apply MODEL {options.out} OUT",
        file=sys.stderr,
    )
    _warn_of_base(delta.base.name if delta.base else "")


def _peft(opened: "Run", options: argparse.Namespace) -> None:
    from cca.run.share.adapter import export_adapter

    adapter = export_adapter(opened, options.out, options.base, options.max_rank)
    print(f"wrote {options.out}: rank {adapter.rank} at most, in {len(adapter.pairs)} modules", file=sys.stderr)
    if adapter.lost:
        worst = adapter.worst
        print(
            f"rank lowered in {len(adapter.lost)} modules: {adapter.error:.2%} of the change's size is left out "
            f"({worst}: {adapter.lost[worst]:.2%})",
            file=sys.stderr,
        )
    _warn_of_base(options.base or opened.config.model.path)


def _dataset(opened: "Run", options: argparse.Namespace) -> None:
    from cca.run.share.datasets import export_datasets

    found = export_datasets(opened, options.out)
    rows = ", ".join(f"{count:,} {name}" for name, count in found.rows.items())
    print(f"wrote {options.out}: {rows}", file=sys.stderr)
    if found.cut:
        print(f"{found.cut:,} pairs are in no preferences, since the limit of tokens cut a side", file=sys.stderr)
    if found.respelled:
        print(
            f"{found.respelled:,} rows of the preferences have texts that the tokenizer makes into other tokens than "
            "the model wrote (same_tokens is false)",
            file=sys.stderr,
        )


def _warn_of_base(base: str) -> None:
    if base == "bundled" or Path(base).exists():
        print(
            f"note: it names its base as {base}, which others do not have under that name; --base says what they have",
            file=sys.stderr,
        )
