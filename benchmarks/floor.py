"""What a machine can do at most, to stand beside what was measured."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from cca.model.attention import Pattern, attention_through
from cca.model.generate import Row, Watch, _Writing
from cca.model.read import texts
from cca.model.sampling import stream
from cca.model.slots import attention


def best(work: Callable[[], Any], repeats: int) -> float:
    """The shortest of some repeats, in seconds, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times)


def wait() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def linear_layers(
    network: Any, rows: int, head_rows: int | None = None, repeats: int = 5, *, backward: bool = False
) -> float:
    """Seconds of the linear layers alone on so many rows, the output head on `head_rows`.

    backward: with the gradients of what goes into them, as a gradient of a few rows of each needs.
    """
    head = network.get_output_embeddings()
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    counts = {m: head_rows if m is head and head_rows else rows for m in layers}
    inputs = {m: torch.randn(count, m.in_features, device=m.weight.device).to(m.weight) for m, count in counts.items()}

    def run() -> None:
        for layer, x in inputs.items():
            out = layer(x)
            if backward:
                torch.autograd.grad(out, x, torch.ones_like(out))

    with torch.set_grad_enabled(backward):
        for x in inputs.values():
            x.requires_grad_(backward)
        return best(run, repeats)


def copy_rate(device: str) -> float:
    """GB/s read and written together by a copy."""
    a = torch.empty(2**27, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / best(lambda: b.copy_(a), 7) / 1e9


def decode_steps(
    network: Any,
    ids: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    rounds: int = 5,
    repeats: int = 5,
    starts: Sequence[Sequence[int]] = ((),),
) -> tuple[list[float], float]:
    """Seconds of a pass that writes a token for each of the rows that continue `ids`, and of its floor.

    Of each temperature, and of each of `starts` with which the rows begin and that is kept once for all of them. They
    take turns, so that a machine which is slower for a while is so for all of them.
    """
    limit = rounds * (repeats + 1) + 1
    writers = [_writer(network, ids, temperature, limit, start) for temperature in temperatures for start in starts]
    found, floors = [[] for _ in writers], list[float]()
    for _ in range(rounds):
        floors.append(linear_layers(network, len(ids), repeats=repeats))
        for times, writing in zip(found, writers, strict=True):
            with torch.no_grad(), attention_through(network, partial(attention, writing.places), Pattern.of):
                times.append(best(writing._step, repeats))
    return [min(times) for times in found], min(floors)


@torch.no_grad()
def _writer(
    network: Any, ids: Sequence[Sequence[int]], temperature: float, limit: int, start: Sequence[int]
) -> _Writing:
    """With every row at work."""
    writing = _Writing(network, len(ids), frozenset(), None, Watch(lambda _: None))
    writing.queue.add(
        Row(text, limit + 1, (i,), temperature=temperature, uniforms=stream(0, i).random(limit + 1))
        for i, text in enumerate(texts(ids, start))
    )
    writing._fill()
    return writing
