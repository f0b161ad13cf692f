"""How much memory there is, and how work goes on where there was too little."""

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import torch

from cca.errors import TooLargeError

T = TypeVar("T")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder, limit and use of a container, of either generation, and what the use counts of files that were only read."""
_SAID = (
    "can't allocate memory: you tried to allocate",
    "not enough memory: you tried to allocate",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""In errors of torch's allocators of main memory, and of CUDA's libraries, which have no class of their own."""


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that `device` can still give: of a GPU what is not reserved by anyone, of the CPU what the host has free.

    None where the system does not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    return host_free_bytes()


def host_free_bytes() -> int | None:
    """Bytes of main memory that are free without swapping, within the limit of a container; None where nobody says."""
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
        found.append(int(line.split()[1]) * 1024)
    for folder, limit, used, files in _CGROUPS:
        with suppress(OSError, ValueError, KeyError):  # "max": there is none
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(counts[files])
            found.append(int((folder / limit).read_text()) - taken)
    if not found:
        with suppress(OSError, ValueError, AttributeError):  # not on Windows
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device or the host had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | TooLargeError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def attempted(work: Callable[[], object]) -> bool:
    """Do `work`; False where it ran out of memory. What it held is then let go."""
    try:
        work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    release()  # only here is the error gone, and with it what the frames held in which it was raised
    return False


def release() -> None:
    """Give memory back that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Halving(Generic[T]):
    """Does work in batches. One that runs out of memory is done again as two halves, and later ones that cost as much
    are halved before they are tried.

    cost: of an item, such as its tokens. too_large: what to say of one that does not fit alone.
    """

    def __init__(self, cost: Callable[[T], int], too_large: Callable[[T], str]):
        self.cost, self.too_large = cost, too_large
        self.failed: int | None = None

    def run(self, batches: Iterable[Sequence[T]], work: Callable[[Sequence[T]], object]) -> None:
        """Do `work` of each of `batches`, in order. It must change nothing before it has all that it needs memory for.

        Raises:
            TooLargeError: an item alone does not fit.
        """
        for batch in batches:
            left = [batch]
            while left:
                part = left.pop()
                cost = sum(map(self.cost, part))
                if len(part) > 1 and self.failed is not None and cost >= self.failed:
                    left += _halves(part)
                elif not attempted(lambda part=part: work(part)):
                    if len(part) == 1:
                        raise TooLargeError(self.too_large(part[0]))
                    self.failed = cost
                    left += _halves(part)


def _halves(items: Sequence[T]) -> list[Sequence[T]]:
    """The second half, and the first."""
    half = (len(items) + 1) // 2
    return [items[half:], items[:half]]
