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


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --ray-address, which `overrides` heeds."""
    parser.add_argument("--workers", type=int, help="short for --set engine.workers=WORKERS: write with Ray")
    parser.add_argument("--ray-address", help="short for --set engine.ray_address=RAY_ADDRESS: of a cluster")


def overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """What --set and the options that are short for it change in the config."""
    from cca.run.config import toml_value

    short = {"model": "model.path", "workers": "engine.workers", "ray_address": "engine.ray_address"}
    given = {key: value for name, key in short.items() if (value := getattr(options, name, None)) is not None}
    return (*options.overrides, *(f"{key}={toml_value(value)}" for key, value in given.items() if value != ""))


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
