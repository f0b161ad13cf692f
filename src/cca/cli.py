"""The `cca` command. Everything for people goes to stderr, `--json` prints the summary on stdout.

Exit codes: 0 done, 1 an error inside or a template left out, 2 bad input (the message names it and the remedy), 130
interrupted (Ctrl-C), 143 asked to end (SIGTERM).
Heavy imports stay inside the commands, so that `--help` answers at once.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from cca import __version__
from cca.commands import apply, compare, config, diff, export, grade, merge, plan, problems, push, run, show
from cca.errors import InputError
from cca.run.stages import STAGES

WAITING = {"GOMP_SPINCOUNT": "10000"}
"""How threads of a command wait for one another: torch has them spin for milliseconds, which beside other work on the
same cores takes its time and their own. Read when torch is loaded, which is later than this is set."""

ROUNDING = {"MKL_CBWR": "AUTO,STRICT"}
"""MKL adds the terms of a float32 product in one order, whatever the number of rows and of threads. Read at the first
product."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cca",
        description="Constructive Circuit Amplification: find the token at which reasoning goes wrong, find the few "
        "components that favour the right one, and update only their rows.",
        epilog="Start with: cca run. It needs no download and no GPU and ends with a table in a few minutes.",
    )
    parser.add_argument("--version", action="version", version=f"cca {__version__}")
    known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = known.add_parser(name, help=text)
        added.set_defaults(does=does)
        return added

    run.add(command("run", run.run, "all stages; the same command resumes an interrupted run"))
    for stage in STAGES.values():
        run.add_stage(command(stage.name, run.run_stage, stage.help), stage.name)
    plan.add(command("plan", plan.run, "how long a run takes and what it holds, on devices that may be elsewhere"))
    config.add(command("config", config.run, "print every setting with its default, explained, as a config to change"))
    compare.add(command("compare", compare.run, "run every method on the same problems and rank them in one table"))
    problems.add(command("problems", problems.run, "write problems of a source as JSON lines, or check its templates"))
    merge.add(command("merge", merge.run, "write the updated model as an ordinary model folder"))
    export.add(command("export", export.run, "write a run as a delta file, a LoRA adapter or data sets"))
    push.add(command("push", push.run, "upload adapter, model or data set of a run to the hub"))
    apply.add(command("apply", apply.run, "write a model with deltas applied, each seen to be for it"))
    apply.add_revert(command("revert", apply.run_revert, "take out what cca merge or cca apply put into a model"))
    diff.add(command("diff", diff.run, "in which components two models differ"))
    grade.add(command("grade", grade.run, "list the traces of a run on which another grader disagrees with the run's"))
    show.add(command("show", show.run, "look at a run: its scores, pivots, circuit or one of its problems"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Of several processes (torchrun) the first does, and the others help."""
    try:
        if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
            return _do(arguments)
        if os.environ.get("RANK", "0") != "0":
            from cca.run.follow import follow

            return follow()
        from cca.run.together import leading

        with leading():
            return _do(arguments)
    except InputError as error:
        print(f"cca: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"cca: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(
            f"\ncca: interrupted; finished work is kept. Resume with the same command: {_command(arguments)}",
            file=sys.stderr,
        )
        return 143 if isinstance(stop, _Terminated) else 130
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        return 0
    except (MemoryError, RuntimeError) as error:
        from cca.model.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "lower the batch of this stage, or set model.dtype to bfloat16 (docs/scaling.md), and run it again"
        print(f"cca: out of memory; finished work is kept: {remedy} ({error})", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cca: {error}; finished work is kept, the same command resumes", file=sys.stderr)
        return 1


def _do(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    return options.does(options)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do a while before they kill it."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _command(arguments: Sequence[str] | None) -> str:
    import shlex

    return "cca " + shlex.join(sys.argv[1:] if arguments is None else arguments)


def command() -> int:
    """`main` as a process of its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # models write what not every console can show
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if not {*WAITING, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ |= WAITING
    for name, value in ROUNDING.items():
        os.environ.setdefault(name, value)
    code = main()
    gc.freeze()  # else the interpreter looks through all of torch for garbage before it ends: a second
    return code


if __name__ == "__main__":
    sys.exit(command())
