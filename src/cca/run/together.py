"""A command in several processes, as torchrun starts them: the first leads, and does all that a command does.

Where a stage shares its work, the leader tells the others, which wait (`cca.run.follow`), what of which run folder it
is. Then all call the same function of the method, until it is done.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca.controls.methods import OF_SOLUTIONS
from cca.errors import InputError
from cca.method.options import UpdateOptions
from cca.model.options import ModelOptions

if TYPE_CHECKING:
    from cca.method.processes import Processes

_WAIT = timedelta(days=365)
"""How long a process waits for another: those that follow do so for all of stage 1."""
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Task(NamedTuple):
    """Work of a stage of the run in `folder`, on the model with the delta in `base` on it, where there is one."""

    folder: Path
    stage: str
    base: Path | None
    arguments: tuple[Any, ...]


@dataclass
class _Team:
    """Those whom this process leads; at_work: at a task, and not waiting for one."""

    processes: "Processes"
    at_work: bool = False


_team: _Team | None = None


def join() -> "Processes":
    """This process among the others: in the group that there is, or in one that it makes with them.

    Raises:
        InputError: they were not started as torch.distributed expects.
    """
    import torch
    from torch import distributed

    from cca.method.processes import Processes

    if not distributed.is_available():
        raise InputError("this torch was built without torch.distributed; start one process (WORLD_SIZE is above 1)")
    if not distributed.is_initialized():
        if missing := [name for name in _NEEDED if name not in os.environ]:
            raise InputError(
                f"WORLD_SIZE asks for several processes, and {', '.join(missing)} is not set; start them with "
                "torchrun, or unset WORLD_SIZE"
            )
        if torch.cuda.is_available() and _local("RANK") < torch.cuda.device_count():
            torch.cuda.set_device(_local("RANK"))  # what "cuda" without a number means from here on
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_WAIT)
    return Processes.of_group()


@contextmanager
def leading() -> Iterator[None]:
    """Within the context stages share their work with the other processes; at its end those are told to end.

    Not where an error comes amid shared work: they are in the midst of it, and end as the connection breaks.

    Raises:
        InputError: as `join`.
    """
    global _team
    _team = team = _Team(join())
    try:
        yield
    finally:
        _team = None
        if not team.at_work:
            with suppress(ConnectionError):
                team.processes.same(None)


@contextmanager
def sharing(task: Task) -> "Iterator[Processes]":
    """Around the work of `task`: the processes that do it, each of which is to call the same; alone, only this one."""
    from cca.method.processes import ALONE

    if _team is None:
        yield ALONE
        return
    _team.at_work = True
    _team.processes.same(task)
    yield _team.processes
    _team.at_work = False


def check(model: ModelOptions, update: UpdateOptions) -> None:
    """See that several processes can work on a run, where this one leads others.

    Raises:
        InputError: they cannot.
    """
    if _team is None:
        return
    count, here = _team.processes.count, _local("WORLD_SIZE")
    if update.method in OF_SOLUTIONS:
        raise InputError(f"update.arm {update.method} is trained in one process, and here are {count}; start one")
    if here == 1:
        return
    if model.device_map is not None:
        raise InputError(
            f"model.device_map spreads one model over all devices, and here are {here} processes with a model each; "
            "start one on each machine, or leave device_map out"
        )
    if ":" in model.device.removeprefix("cpu"):
        raise InputError(
            f"model.device is {model.device!r}, and here are {here} processes that need a device each; leave it auto"
        )
    if model.device != "cpu":
        import torch

        if torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
            raise InputError(f"here are {here} processes and {gpus} GPUs; start {gpus}, or set model.device to cpu")


def _local(what: str) -> int:
    """RANK or WORLD_SIZE among the processes of this machine."""
    return int(os.environ.get(f"LOCAL_{what}") or os.environ[what])
