"""Arguments that several commands take, and what becomes of them."""

import argparse
from pathlib import Path

from cca.errors import InputError


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one config value, for example circuit.lambda=0.02; may be repeated",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model, which `overrides` heeds."""
    parser.add_argument("--model", help="short for --set model.path=MODEL")


def overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """What --set and --model change in the config."""
    from cca.run.config import toml_value

    model = getattr(options, "model", None)
    return (*options.overrides, *([f"model.path={toml_value(model)}"] if model else []))


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add --quiet and --json."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def add_trackers(parser: argparse.ArgumentParser) -> None:
    """Add --tracker."""
    parser.add_argument(
        "--tracker",
        dest="trackers",
        action="append",
        default=[],
        choices=("tensorboard", "wandb", "mlflow"),
        help="send the figures there too; may be repeated (default: nowhere)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config file."""
    parser.add_argument("config", nargs="?", type=Path, help="a TOML file; without one, the bundled run")


def check_meant(options: argparse.Namespace, chooses: str, chosen: str, **of: str) -> None:
    """See that options that only some choices heed are given for one of those, and that a rank is at least 1.

    chooses: the option that chooses; chosen: what. of: option -> the choices that heed it, with spaces between.

    Raises:
        InputError: one is given for another choice, which would not heed it.
    """
    for name, choices in of.items():
        said = "--" + name.replace("_", "-")
        if getattr(options, name) is not None and chosen not in choices.split():
            raise InputError(f"{said} is for {chooses} {' or '.join(choices.split())}, not for {chosen}; leave it out")
    rank = getattr(options, "max_rank", None)
    if rank is not None and rank < 1:
        raise InputError(f"--max-rank {rank} is no rank; give at least 1")
