"""Time in turns, the floor under it, and memory."""

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floor import linear_layers
from lines import Line

from cca.cli import ROUNDING, WAITING
from cca.run.memory import peak_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MANY = 512
"""Passes of so many tokens are timed once for the floor: they take long, and vary little."""


@dataclass(frozen=True)
class Times:
    """Seconds of the repeats of one method."""

    all: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.all)

    @property
    def spread(self) -> float:
        """By how much the longest exceeds the shortest, as a share of it."""
        return max(self.all) / self.least - 1


class Kept:
    """A method as it is timed, and what it gave last."""

    def __init__(self, work: Callable[[], Any]):
        self.work, self.found = work, None

    def __call__(self) -> None:
        self.found: Any = self.work()


def in_turns(methods: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True) -> dict[str, Times]:
    """Seconds of each method. They take turns, so that a machine that is slower for a while is so for all.

    warm: call each once before, which does not count.
    """
    took: dict[str, list[float]] = {name: [] for name in methods}
    for counts in [False] * warm + [True] * repeats:
        for name, work in methods.items():
            began = time.perf_counter()
            work()
            if counts:
                took[name].append(time.perf_counter() - began)
    return {name: Times(tuple(seconds)) for name, seconds in took.items()}


def compared(what: str, plain: Times, cca: Times, each: int = 1, **more: Any) -> Line:
    """The shortest times of two methods that did `each` pieces of work, as the time of one."""
    return Line(what, cca.least / each, plain.least / each, spread=max(plain.spread, cca.spread), **more)


class Passes:
    """How many tokens each pass of a model had, and how many rows its output head.

    written: the tokens of passes with one token a row, which write; all others read.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()
        self.written = 0

    @contextmanager
    def of(self, network: Any) -> Iterator["Passes"]:
        tokens = 0

        def began(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            nonlocal tokens
            ids = kwargs["input_ids"]
            tokens = ids.numel()
            self.written += tokens if ids.shape[1] == 1 else 0

        def ended(_: Any, __: Any, logits: Any) -> None:
            self.counts[tokens, logits.numel() // logits.shape[-1]] += 1

        hooks = [
            network.register_forward_pre_hook(began, with_kwargs=True),
            network.get_output_embeddings().register_forward_hook(ended),
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def floor(self, network: Any, *, backward: bool = False) -> float:
        """Seconds of the linear layers alone in all of them; backward: and the gradients of what goes into these."""
        return sum(
            count * linear_layers(network, tokens, rows, 1 if tokens >= MANY else 5, backward=backward)
            for (tokens, rows), count in self.counts.items()
        )


def floor_of(network: Any, work: Callable[[], Any], *, backward: bool = False) -> float:
    """Seconds of the linear layers alone in what `work` has the network do."""
    with Passes().of(network) as passes:
        work()
    return passes.floor(network, backward=backward)


def peak_beyond(work: Callable[[], Any]) -> float:
    """GiB that the process held at most while it worked, beyond what it held before (Linux)."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # else the work would use what was freed before, unseen
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    with peak_memory() as used:
        work()
        return used.gib - int(line.split()[1]) / 2**20


def environment() -> dict[str, str]:
    """Of a process that measures: what the `cca` command sets, and no hub."""
    return WAITING | ROUNDING | {"HF_HUB_OFFLINE": "1"} | os.environ


def in_own_process(file: str, *arguments: str) -> float:
    """The number that a process of its own prints last."""
    command = [sys.executable, file, *arguments]
    out = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(out.split()[-1])
