"""How long a stage takes, and how much memory at most."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Usage:
    """What was used since it was made."""

    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def gib(self) -> float:
        """GiB that the process, and all GPUs, held at most; where the system cannot begin anew, since its start."""
        cuda = _cuda()
        on_gpu = sum(cuda.max_memory_allocated(device) for device in range(cuda.device_count())) if cuda else 0
        return (_resident() + on_gpu) / 2**30


@contextmanager
def peak_memory() -> Iterator[Usage]:
    """Begin anew to watch the process's and the GPUs' peak memory, where the system allows it (Linux)."""
    with suppress(OSError):
        _CLEAR.write_text("5")
    if cuda := _cuda():
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)
    yield Usage()


def _resident() -> int:
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:  # Windows
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
