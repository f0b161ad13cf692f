"""The other processes of a command, which follow its first (`cca.run.together`): they wait, and take part where asked.

They look at the run folder and write nothing to it, nor to the screen, but where one fails by itself.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

from cca.errors import InputError
from cca.method.processes import Processes
from cca.model.delta import Delta
from cca.run.run import Run
from cca.run.together import Task, join


def follow() -> int:
    """Take part until the first process ends; the exit code."""
    try:
        processes = join()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            _serve(processes)
    except (InputError, FloatingPointError) as error:
        print(f"cca: process {os.environ.get('RANK')}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except ConnectionError:  # whoever ended said why
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(processes: Processes) -> None:
    run, stage, work = None, "", None
    while task := _next(processes):
        if run is None or work is None or (run.folder.path, stage) != (task.folder, task.stage):
            run, stage = _opened(task.folder, run), task.stage
            work = import_module(f"cca.run.stages.{stage}").helper(run, processes)
        with _with_base(run, task.base):
            work(*task.arguments)


def _next(processes: Processes) -> Task | None:
    return processes.same()


def _opened(path: Path, before: Run | None) -> Run:
    """The run in `path`, with the model of the one before where that is the same."""
    run = Run.load(path)
    if before and (before.config.model, before.dtype) == (run.config.model, run.dtype):
        run.use(before.model)
    return run


def _with_base(run: Run, base: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if base is None else Delta.load(base, run.model).active(run.model)
