"""`cca run` with its dry run, and each stage by itself."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cca.commands.options import add_common, add_config, add_engine, add_model, add_overrides, add_trackers, overrides
from cca.commands.plan import show_memory
from cca.run.stages import STAGES

if TYPE_CHECKING:
    from rich.console import Console

    from cca.run.config import Config
    from cca.run.plan import Plan
    from cca.run.run import Run


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca run`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/ and the config's name)")
    add_model(parser)
    add_engine(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would do, hold and change; no weights are read"
    )
    add_trackers(parser)
    add_overrides(parser)
    add_common(parser)


def add_stage(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the arguments of the command of one stage."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    if stage == "trace":
        parser.add_argument("--config", type=Path, help="config of a new run (default: the bundled run)")
    add_overrides(parser)
    add_engine(parser)
    parser.add_argument(
        "--redo", action="store_true", help="forget this stage and what follows, and do it again, with --set otherwise"
    )
    add_trackers(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """All stages."""
    from cca.run.config import load_config
    from cca.run.run import Run, config_of, default_folder
    from cca.run.tracking import check_trackers
    from cca.show.progress import make_display

    path = options.out or default_folder(options.config)
    if options.config is None and options.out and _begun(path):
        config = config_of(path, overrides(options))
    else:
        config = load_config(options.config, overrides(options))
    if options.dry_run:
        return _dry_run(config, options.json)
    check_trackers(options.trackers)
    with Run.start(path, config, make_display(options.quiet, f"cca run, in {path}")) as opened:
        opened.begin_tracking(options.trackers)
        return _execute(opened, tuple(STAGES), options.json)


def run_stage(options: argparse.Namespace) -> int:
    """One stage. `cca trace` may start a run."""
    from cca.run.config import load_config
    from cca.run.run import Run
    from cca.run.tracking import check_trackers
    from cca.show.progress import make_display

    check_trackers(options.trackers)
    stage, path, changes = options.command, options.run, overrides(options)
    display, redo = make_display(options.quiet), stage if options.redo else None
    if stage == "trace" and (options.config or not _begun(path)):
        opened = Run.start(path, load_config(options.config, changes), display, redo)
    else:
        opened = Run.resume(path, display, redo, changes)
    with opened:
        opened.begin_tracking(options.trackers)
        if opened.folder.finished(stage):
            print(f"{stage} is finished in {path}; --redo does it again", file=sys.stderr)
        return _execute(opened, (stage,), options.json)


def _begun(path: Path) -> bool:
    """Whether there is a run, whose manifest knows its config as well."""
    return any((path / name).exists() for name in ("config.toml", "manifest.json"))


def _execute(opened: "Run", stages: Sequence[str], as_json: bool) -> int:
    from cca.io import to_json
    from cca.show.views import summary_of

    folder = opened.folder
    opened.execute(stages)
    if not folder.file("summary.json").exists():
        known = list(STAGES)
        print(f"next: cca {known[known.index(stages[-1]) + 1]} {folder.path}", file=sys.stderr)
        return 0
    summary = summary_of(folder)
    if as_json:
        print(to_json(summary, indent=1))
        return 0
    from cca.show.terminal import console_for_people, show_summary

    show_summary(console_for_people(120), summary)
    report = folder.file("report.html")
    look = f"Open {report} in a browser" if folder.finished("report") else f"Make its report: cca report {folder.path}"
    print(f"\nRun folder: {folder.path}. {look}, or: cca show pivots {folder.path}", file=sys.stderr)
    return 0


# ---- the dry run ----


def _dry_run(config: "Config", as_json: bool) -> int:
    from cca.io import to_json
    from cca.run.plan import check_weights_fit, make_plan

    plan = make_plan(config)
    if as_json:
        print(to_json(plan, indent=1))
    else:
        from cca.show.terminal import console_for_people

        _show_plan(console_for_people(110), plan, config)
    check_weights_fit(config, plan.memory_gib)
    return 0


def _show_plan(console: "Console", plan: "Plan", config: "Config") -> None:
    from rich.table import Table
    from rich.text import Text

    from cca.run.plan_memory import remedies, said

    model, memory, work, rows = plan.model, plan.memory_gib, plan.work, plan.rows
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in plan.components.items() if kind != "all")
    splits = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in work.problems.items())
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    lines = {
        "model": f"{model.path}: {model.type}, {model.layers} layers, {model.parameters:,} parameters",
        "components": f"{plan.components['all']:,}: {kinds}",
        "rows": f"{rows.all:,}; {rows.per_head} a head, {rows.per_neuron} a neuron",
        "circuit size": f"{plan.circuit.components:,} components at the paper's density of {plan.circuit.density:.1%}",
        "problems": f"at most {splits}",
        "prompts": f"about {work.prompt_tokens.mean:.0f} tokens on average, {work.prompt_tokens.longest} at most"
        + (f"; all begin with the same {work.prompt_tokens.shared}" if work.prompt_tokens.shared else ""),
        "trace": f"{work.greedy_traces:,} greedy traces and at most {work.sampled_traces:,} samples, "
        f"each of at most {work.max_new_tokens} tokens",
        "pivots": f"at most {work.pivots:,} to train on; by branching, one completion for each deviation that is tried"
        + (f"; to see what decides, at most {work.sampled_completions:,} samples" if work.sampled_completions else "")
        + (", more than of traces" if work.sampled_completions > work.sampled_traces else ""),
        "circuit": f"at most {work.circuit_steps:,} steps of {work.circuit_batch} pivots, one token each",
        "update": f"at most {work.update_steps:,} steps over all pivots, {work.validations} validations of "
        f"{work.validation_problems:,} problems",
        **({"rounds": f"at most {work.rounds} of these four stages"} if work.rounds > 1 else {}),
        "evaluate": f"{work.answers:,} answers of at most {work.answer_tokens} tokens, half of them the base model's"
        + (f"; {', '.join(work.benchmarks)} on both" if work.benchmarks else ""),
        "memory": f"{said(memory)}; weights {memory.weights:.2f}{memory.notes['weights']}",
    }
    for name, text in lines.items():
        table.add_row(name, Text(text))
    console.print(table)
    show_memory(console, memory)
    for name, what in remedies(memory, config).items():
        console.print(Text(f"{name} does not fit: set {what}"))
