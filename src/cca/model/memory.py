"""How much memory a device and its host have to give, and whether an error says that there was too little."""

import os
from contextlib import suppress
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of a container, of either generation."""


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
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # "max": there is none
            found.append(int(limit.read_text()) - int(used.read_text()))
    if not found:
        with suppress(OSError, ValueError, AttributeError):  # not on Windows
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device or the host had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator of main memory has no error of its own
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
