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
from cca.commands import others as commands
from cca.controls.methods import ARMS
from cca.errors import InputError

_STAGES = {
    "trace": "stage 1a: problems, greedy traces and samples of opposite correctness",
    "pivots": "stage 1b: the token at which each pair of traces turns",
    "circuit": "stage 2: learn which components favour the desired token",
    "update": "stage 3: change only the circuit's rows, keep the best validated step",
    "evaluate": "base against updated on target, held-out templates and other skills",
    "report": "report.html: the whole run in one page that opens offline",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cca",
        description="Constructive Circuit Amplification: find the token at which reasoning goes wrong, find the few "
        "components that favour the right one, and update only their rows.",
        epilog="Start with: cca run. It needs no download and no GPU and ends with a table in a few minutes.",
    )
    parser.add_argument("--version", action="version", version=f"cca {__version__}")
    known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = known.add_parser("run", help="all stages; the same command resumes an interrupted run")
    run.add_argument("config", nargs="?", type=Path, help="a TOML file; without one, the bundled run")
    run.add_argument("--out", type=Path, help="run folder (default: runs/ and the config's name)")
    run.add_argument("--model", help="short for --set model.path=MODEL")
    run.add_argument(
        "--dry-run", action="store_true", help="say what the run would do, hold and change; no weights are read"
    )
    _overrides(run)
    _common(run)

    for stage, text in _STAGES.items():
        command = known.add_parser(stage, help=text)
        command.add_argument("run", type=Path, metavar="RUN", help="run folder")
        if stage == "trace":
            command.add_argument("--config", type=Path, help="config of a new run (default: the bundled run)")
            _overrides(command)
        command.add_argument("--redo", action="store_true", help="forget this stage and what follows, and do it again")
        _common(command)

    compared = known.add_parser("compare", help="run every arm on the same problems and rank them in one table")
    compared.add_argument("config", nargs="?", type=Path, help="a TOML file; without one, the bundled run")
    compared.add_argument("--out", type=Path, help="folder of the runs (default: runs/compare- and the config's name)")
    compared.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=_arms_help())
    compared.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    compared.add_argument(
        "--rate",
        dest="rates",
        action="append",
        default=[],
        metavar="ARM=RATE",
        help="learning rate of an arm, in place of the one that suits the bundled model; may be repeated",
    )
    compared.add_argument("--model", help="short for --set model.path=MODEL")
    _overrides(compared)
    _common(compared)

    problems = known.add_parser("problems", help="write problems of a source as JSON lines, or check its templates")
    problems.add_argument(
        "source",
        metavar="SOURCE",
        help="gsm-symbolic, reasoning-gym:NAME, a file (.jsonl, .csv, .parquet), a folder of such files or annotated "
        "templates, or owner/name:config on the hub",
    )
    problems.add_argument("-n", "--n", type=int, default=50, metavar="N", help="instances a template (default 50)")
    problems.add_argument("--seed", type=int, default=0)
    problems.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to stdout")
    problems.add_argument(
        "--check", action="store_true", help="verify each template and print a line for it; exit code 1 where one fails"
    )

    merged = known.add_parser("merge", help="write the updated model as an ordinary model folder")
    merged.add_argument("run", type=Path, metavar="RUN", help="run folder")
    merged.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes; must not exist yet")
    merged.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of its weights (default: the run's)"
    )

    graded = known.add_parser("grade", help="list the traces of a run on which another grader disagrees with the run's")
    graded.add_argument("run", type=Path, metavar="RUN", help="run folder")
    graded.add_argument(
        "--grader", required=True, metavar="NAME", help="number, exact, math-verify, or your own module:function"
    )
    graded.add_argument("-n", type=int, default=20, metavar="N", help="disagreements to show (default 20)")
    graded.add_argument("--json", action="store_true", help="print all of them as JSON on stdout")

    _add_show(known.add_parser("show", help="look at a run: its scores, pivots, circuit or one of its problems"))
    return parser


def _add_show(parser: argparse.ArgumentParser) -> None:
    known = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    scores = known.add_parser("scores", help="the table of a run and its diagnosis; several runs side by side")
    scores.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    pivots = known.add_parser("pivots", help="traces with the pivot marked, and how both tokens go on")
    pivots.add_argument("run", type=Path, metavar="RUN", help="run folder")
    pivots.add_argument("-n", type=int, default=10, metavar="N", help="how many, spread over the run (default 10)")
    pivots.add_argument("--problem", metavar="ID", help="only that of this problem")
    pivots.add_argument("--off-slip", action="store_true", help="only those that miss their trace's planted slip")
    circuit = known.add_parser("circuit", help="heads and neurons per layer; with two runs, what they share")
    circuit.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    problem = known.add_parser("problem", help="a problem with the answers of base and updated model side by side")
    problem.add_argument("run", type=Path, metavar="RUN", help="run folder")
    problem.add_argument("id", metavar="ID", help="of the problem, as in problems.jsonl")
    for what in (scores, pivots, circuit, problem):
        what.add_argument("--json", action="store_true", help="as JSON")


def _arms_help() -> str:
    return "default all: " + "; ".join(f"{name}: {arm.title}" for name, arm in ARMS.items())


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
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        return 0
    except OSError as error:
        print(f"cca: {error}; finished work is kept, the same command resumes", file=sys.stderr)
        return 1


def _command(arguments: Sequence[str] | None) -> str:
    import shlex

    return "cca " + shlex.join(sys.argv[1:] if arguments is None else arguments)


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "show":
        from cca.commands.show import show

        return show(options)
    if options.command == "merge":
        return commands.merge(options)
    if options.command == "compare":
        return commands.compare(options)
    if options.command == "problems":
        return commands.problems(options)
    if options.command == "grade":
        return commands.grade(options)
    from cca.run.config import load_config
    from cca.run.pipeline import STAGES, Pipeline, default_folder
    from cca.show.progress import make_display

    overrides = list(getattr(options, "overrides", []))
    if options.command == "run":
        if options.model:
            overrides.append(f"model.path={json.dumps(options.model)}")
        config = load_config(options.config, tuple(overrides))
        if options.dry_run:
            return commands.dry_run(config, options.json)
        path = options.out or default_folder(options.config)
        pipeline = Pipeline.start(path, config, make_display(options.quiet, f"cca run, in {path}"))
        stages: Sequence[str] = STAGES
    else:
        display, redo = make_display(options.quiet), options.command if options.redo else None
        if options.command == "trace" and (options.config or overrides or not (options.run / "config.toml").exists()):
            pipeline = Pipeline.start(options.run, load_config(options.config, tuple(overrides)), display, redo)
        else:
            pipeline = Pipeline.resume(options.run, display, redo)
        stages = [options.command]
        if pipeline.folder.finished(options.command):
            print(f"{options.command} is finished in {options.run}; --redo does it again", file=sys.stderr)
    pipeline.run(stages)
    summary_path = pipeline.folder.file("summary.json")
    if summary_path.exists():
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        commands.print_summary(summary, options.json)
        if not options.json:
            _say_where(pipeline.folder)
    else:
        following = STAGES[STAGES.index(options.command) + 1]
        print(f"next: cca {following} {pipeline.folder.path}", file=sys.stderr)
    return 0


def _say_where(folder: Any) -> None:
    report = folder.file("report.html")
    look = f"Open {report} in a browser" if folder.finished("report") else f"Make its report: cca report {folder.path}"
    print(f"\nRun folder: {folder.path}. {look}, or: cca show pivots {folder.path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
