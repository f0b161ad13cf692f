"""The `cca` command. Everything for people goes to stderr, `--json` prints the summary on stdout.

Exit codes: 0 done, 1 an error inside, 2 bad input (the message names it and the remedy), 130 interrupted.
Heavy imports stay inside the commands, so that `--help` answers at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cca import __version__
from cca.errors import InputError

_STAGES = {
    "trace": "stage 1a: problems, greedy traces and samples of opposite correctness",
    "pivots": "stage 1b: the token at which each pair of traces turns",
    "circuit": "stage 2: learn which components favour the desired token",
    "update": "stage 3: change only the circuit's rows, keep the best validated step",
    "evaluate": "base against updated on target, held-out templates and other skills",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cca",
        description="Constructive Circuit Amplification: find the token at which reasoning goes wrong, find the few "
        "components that favour the right one, and update only their rows.",
        epilog="Start with: cca run. It needs no download and no GPU and ends with a table in a few minutes.",
    )
    parser.add_argument("--version", action="version", version=f"cca {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="all stages; the same command resumes an interrupted run")
    run.add_argument("config", nargs="?", type=Path, help="a TOML file; without one, the bundled run")
    run.add_argument("--out", type=Path, help="run folder (default: runs/ and the config's name)")
    run.add_argument("--model", help="short for --set model.path=MODEL")
    run.add_argument(
        "--dry-run", action="store_true", help="say what the run would do, hold and change; no weights are read"
    )
    _overrides(run)
    _common(run)

    for stage, text in _STAGES.items():
        command = commands.add_parser(stage, help=text)
        command.add_argument("run", type=Path, metavar="RUN", help="run folder")
        if stage == "trace":
            command.add_argument("--config", type=Path, help="config of a new run (default: the bundled run)")
            _overrides(command)
        command.add_argument("--redo", action="store_true", help="forget this stage and what follows, and do it again")
        _common(command)

    merged = commands.add_parser("merge", help="write the updated model as an ordinary model folder")
    merged.add_argument("run", type=Path, metavar="RUN", help="run folder")
    merged.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes; must not exist yet")
    merged.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of its weights (default: the run's)"
    )

    show = commands.add_parser("show", help="summary table and ten pivots of a run")
    show.add_argument("run", type=Path, metavar="RUN", help="run folder")
    show.add_argument("-n", type=int, default=10, metavar="N", help="pivots to show (default 10)")
    show.add_argument("--off-slip", action="store_true", help="only pivots that miss their trace's planted slip")
    show.add_argument("--json", action="store_true", help="print the summary as JSON on stdout instead")
    return parser


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one config value, for example circuit.lambda=0.02; may be repeated",
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _dispatch(options)
    except InputError as error:
        print(f"cca: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"cca: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ncca: interrupted; finished work is kept. Resume with the same command: {_command(arguments)}",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        print(f"cca: {error}; finished work is kept, the same command resumes", file=sys.stderr)
        return 1


def _command(arguments: Sequence[str] | None) -> str:
    import shlex

    return "cca " + shlex.join(sys.argv[1:] if arguments is None else arguments)


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "show":
        return _show(options)
    if options.command == "merge":
        return _merge(options)
    from cca.config import load_config
    from cca.pipeline import STAGES, Pipeline, default_folder

    overrides = list(getattr(options, "overrides", []))
    if options.command == "run":
        if options.model:
            overrides.append(f"model.path={json.dumps(options.model)}")
        config = load_config(options.config, tuple(overrides))
        if options.dry_run:
            return _dry_run(config, options.json)
        path = options.out or default_folder(options.config)
        pipeline = Pipeline.start(path, config, options.quiet)
        stages: Sequence[str] = STAGES
    else:
        if options.command == "trace" and (options.config or overrides or not (options.run / "config.toml").exists()):
            pipeline = Pipeline.start(options.run, load_config(options.config, tuple(overrides)), options.quiet)
        else:
            pipeline = Pipeline.resume(options.run, options.quiet)
        stages = [options.command]
        if options.redo:
            pipeline.redo(options.command)
        elif pipeline.folder.finished(options.command):
            print(f"{options.command} is finished in {options.run}; --redo does it again", file=sys.stderr)
    pipeline.run(stages)
    summary_path = pipeline.folder.file("summary.json")
    if summary_path.exists():
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        _print_summary(summary, options.json)
        if not options.json:
            print(
                f"\nRun folder: {pipeline.folder.path}   Look at it: cca show {pipeline.folder.path}", file=sys.stderr
            )
    else:
        following = STAGES[STAGES.index(options.command) + 1]
        print(f"next: cca {following} {pipeline.folder.path}", file=sys.stderr)
    return 0


def _dry_run(config: Any, as_json: bool) -> int:
    from cca.plan import plan

    found = plan(config)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    from rich.console import Console

    from cca.display import show_plan

    show_plan(Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 110), found)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from cca.config import load_config
    from cca.export import merge
    from cca.store import RunFolder

    folder = RunFolder.open(options.run)
    if not folder.finished("update"):
        raise InputError(f"{options.run} has no finished update yet; finish it with: cca run --out {options.run}")
    folder.verify(["update"])
    rounding = merge(folder, load_config(folder.file("config.toml")), options.folder, options.dtype)
    print(
        f"merged into {rounding.dtype}: {rounding.unchanged:.1%} of the changed numbers rounded to nothing; what is "
        f"left departs from the delta by {rounding.error:.1%} of its size",
        file=sys.stderr,
    )
    if rounding.error > 0.1:
        print("warning: much of the update is lost to rounding; --dtype float32 keeps all of it", file=sys.stderr)
    print(f"wrote {options.folder}; load it with AutoModelForCausalLM.from_pretrained", file=sys.stderr)
    return 0


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    from rich.console import Console

    from cca.display import show_summary

    show_summary(Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 110), summary)


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cca.config import load_config
    from cca.display import show_pivots
    from cca.models import load_tokenizer
    from cca.records import Pivot
    from cca.store import RunFolder

    if options.n < 1:
        raise InputError(f"-n {options.n} shows nothing; give at least 1")
    folder = RunFolder.open(options.run)
    summary_path = folder.file("summary.json")
    if options.json and not summary_path.exists():
        raise InputError(
            f"{options.run} is not finished, so it has no summary; finish it with: cca run --out {options.run}"
        )
    if summary_path.exists():
        _print_summary(json.loads(summary_path.read_text(encoding="utf-8")), options.json)
        if options.json:
            return 0
    config = load_config(folder.file("config.toml"))
    pivots = [p for p in folder.read("pivots.jsonl", Pivot) if p.method == config.pivots.method]
    if not pivots:
        raise InputError(f"{options.run} has no pivots yet; find them with: cca pivots {options.run}")
    if options.off_slip:
        pivots = [p for p in pivots if p.on_slip is False]
    console = Console(stderr=True, highlight=False)
    what = "pivots that miss their planted slip" if options.off_slip else "pivots"
    console.print(f"\n{min(options.n, len(pivots))} of {len(pivots)} {what}:\n")
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    show_pivots(console, pivots, tokenizer.decode, options.n)
    return 0


if __name__ == "__main__":
    sys.exit(main())
