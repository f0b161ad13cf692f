"""How much memory a stage takes at most."""

import sys
from contextlib import suppress
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Begin anew to watch the process's and the GPUs' peak memory, where the system allows it (Linux)."""
    with suppress(OSError):
        _CLEAR.write_text("5")
    cuda = _cuda()
    if cuda:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_gib() -> float:
    """GiB that the process, and all GPUs, held at most since `reset_peak`; where it had no effect, since the start."""
    cuda = _cuda()
    on_gpu = sum(cuda.max_memory_allocated(device) for device in range(cuda.device_count())) if cuda else 0
    return (_resident() + on_gpu) / 2**30


def _resident() -> int:
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cuda():
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
