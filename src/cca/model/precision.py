"""``model.dtype = "auto"``: bfloat16 where it is measured to be faster than float32, on the device that computes."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

ROWS = 64
"""Of the product: about the tokens that a step of a batch has."""
SECONDS = 0.2
ENOUGH = 1.2
"""How much faster bfloat16 must be: it halves the memory too, but rounds."""
_REPEATS = 4


class Choice(NamedTuple):
    """A dtype, as `ModelOptions` names it, and why."""

    dtype: str
    why: str


def choose_dtype(config: Any, device: str) -> Choice:
    """Which dtype suits the model of `config` on `device`, by a product of a layer's up projection.

    The types take turns, and the shortest time of each counts, so that what else the machine does falls on both.
    """
    import torch

    text = config.get_text_config()
    width, neurons = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    least: dict[torch.dtype, float] = {}
    operands = {
        dtype: [torch.ones(rows, width, dtype=dtype, device=device) for rows in (ROWS, neurons)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    began, repeats = time.perf_counter(), 0
    while repeats < _REPEATS or time.perf_counter() - began < SECONDS:
        repeats += 1
        for dtype, (rows, weight) in operands.items():
            taken = _seconds(rows, weight)
            if repeats > 1:  # the first prepares
                least[dtype] = min(taken, least.get(dtype, taken))
    faster = least[torch.float32] / least[torch.bfloat16]
    chosen = "bfloat16" if faster >= ENOUGH else "float32"
    of = f"a product of {ROWS} x {width} x {neurons} on {device}"
    return Choice(chosen, f"bfloat16 is {faster:.1f} times as fast as float32 in {of}")


def _seconds(rows: Any, weight: Any) -> float:
    import torch

    began = time.perf_counter()
    with torch.no_grad():
        torch.nn.functional.linear(rows, weight)
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    return time.perf_counter() - began


def main_device(device: str, device_map: str | Mapping[str, str | int] | None) -> str:
    """Where a model computes, or most of it."""
    import torch

    if isinstance(device_map, Mapping):
        places = [place for place in device_map.values() if place not in ("cpu", "disk")]
        return "cpu" if not places else f"cuda:{places[0]}" if isinstance(places[0], int) else places[0]
    if device != "auto" and device_map is None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
