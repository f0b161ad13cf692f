"""`cca plan`: what a run holds and how long it takes, on devices that may be elsewhere."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cca.commands.options import add_config, add_model, add_overrides, overrides
from cca.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from cca.run.config import Config
    from cca.run.cost import StageCost
    from cca.run.devices import Devices
    from cca.run.estimate import Estimate
    from cca.run.plan_memory import Memory


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca plan`."""
    add_config(parser)
    parser.add_argument("--devices", default="cpu", help="such as H100 or 8xH100; cpu, the default, is this machine")
    parser.add_argument("--flops", type=float, help="in place of --devices: products a second that were measured")
    parser.add_argument("--bandwidth", type=float, help="with --flops: bytes a second of its memory")
    parser.add_argument("--memory-gib", type=float, help="with --flops: of the device")
    parser.add_argument("--host-gib", type=float, help="main memory that is free beside the devices (64 for each)")
    parser.add_argument("--problems", type=int, help="to train on, in place of the config's")
    parser.add_argument("--shape", help="sizes of the model: a known one's name, a config.json or its folder")
    parser.add_argument("--prompt-tokens", type=int, help="mean tokens of a prompt")
    parser.add_argument("--shared-tokens", type=int, help="of these, how many all prompts begin with")
    parser.add_argument("--trace-tokens", type=float, help="mean tokens of what is written")
    parser.add_argument("--samples-drawn", type=float, help="mean number of samples a problem")
    parser.add_argument("--opposite", type=float, help="share of problems with an opposite sample (0.5)")
    parser.add_argument("--completions", type=float, help="mean number of completions a pair (2)")
    add_model(parser)
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    from cca.io import to_json
    from cca.run.config import load_config
    from cca.run.counts import Expected
    from cca.run.estimate import Stated, estimate

    config = load_config(options.config, overrides(options))
    expected: dict[str, float] = {}
    for name in ("trace_tokens", "samples_drawn", "opposite", "completions"):
        if (value := getattr(options, name)) is not None:
            _check(name, value)
            expected[name] = value
    stated = Stated(options.problems, options.shape, options.prompt_tokens, options.shared_tokens)
    found = estimate(config, _devices(options, config), stated, Expected(**expected))
    if options.json:
        print(to_json(found, indent=1))
        return 0
    from cca.show.terminal import console_for_people

    _show(console_for_people(120), found, config)
    return 0


def _check(name: str, value: float) -> None:
    """Raises InputError where an expectation cannot be."""
    said = f"--{name.replace('_', '-')} {value:g}"
    if not 0 <= value < float("inf") or (name == "trace_tokens" and value < 1):
        raise InputError(f"{said} cannot be; give a number from {int(name == 'trace_tokens')} on")
    if name == "opposite" and value > 1:
        raise InputError(f"{said} is no share; give a number between 0 and 1")


def _devices(options: argparse.Namespace, config: "Config") -> "Devices":
    from cca.run.devices import devices_of, given
    from cca.run.plan_memory import bytes_of

    measured = (options.flops, options.bandwidth, options.memory_gib)
    if any(value is not None for value in measured):
        if not all(value is not None and value > 0 for value in measured) or options.devices != "cpu":
            raise InputError(
                "--flops, --bandwidth and --memory-gib describe one device together; give all three, each above 0, and "
                "no --devices"
            )
        return given(*measured, options.host_gib)
    return devices_of(options.devices, bytes_of(config.model.dtype), options.host_gib)


def _show(console: "Console", found: "Estimate", config: "Config") -> None:
    from rich.text import Text

    from cca.run.cost import RANGE
    from cca.run.plan_memory import remedies

    plan, memory = found.plan, found.plan.memory_gib
    prompts, splits = plan.work.prompt_tokens, plan.work.problems
    console.print(
        Text(
            f"{plan.model.path}: {plan.model.parameters:,} parameters, {plan.components['all']:,} components, on "
            f"{found.devices}\n{', '.join(f'{n:,} {split}' for split, n in splits.items())} problems; prompts of "
            f"{prompts.mean:.0f} tokens, {prompts.shared} of them shared\n"
        )
    )
    show_memory(console, memory, found)
    hours = found.hours
    if found.group:
        least, most = _lasts(hours.expected / RANGE), _lasts(hours.expected * RANGE)
        lines = [f"about {_lasts(hours.expected)} ({least} to {most}), at most {_lasts(hours.most)}"]
        lines += [f"{stage} does not fit: {what}" for stage, what in remedies(memory, config).items()]
    else:
        fewer = "; model.dtype = bfloat16 takes half" if config.model.dtype == "float32" else ""
        lines = [f"the weights, {memory.weights:.1f} GiB, need {found.needed} of these devices{fewer}"]
    lines += ["assumed:", *(f"  {line}" for line in found.assumed)]
    console.print(Text("\n".join(["", *lines])))


def show_memory(console: "Console", memory: "Memory", found: "Estimate | None" = None) -> None:
    """A line a stage: what it needs against what there is; and where it is known, how long it takes."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, box=None)
    table.add_column("stage", style="bold")
    names = ["needs GiB", "has GiB", "fits"]
    if found and found.group:
        names += ["read", "written", "operations", "time", "at most", "binds"]
    for name in names:
        table.add_column(name, justify="left" if name == "binds" else "right")
    if not found:
        table.add_column("of it")
    for name, stage in memory.stages.items():
        has = "" if memory.has is None else f"{memory.has:.2f}"
        fits = {True: "yes", False: "no", None: "?"}[stage.fits]
        cells = [name, f"{stage.needs:.2f}", has, fits]
        if found and found.group:
            cells += _cost(found.expected, found.most, name)
        table.add_row(*cells, *([] if found else [stage.note]))
    console.print(table)


def _cost(expected: "Mapping[str, StageCost]", most: "Mapping[str, StageCost]", stage: str) -> list[str]:
    one = expected[stage]
    time, at_most = (_lasts(of[stage].seconds / 3600) for of in (expected, most))
    return [_amount(one.read), _amount(one.written), _amount(one.operations), time, at_most, one.binds]


def _amount(number: float) -> str:
    """With three digits and the prefix of its thousands."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.0f}Z"


def _lasts(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
