"""How a step of the circuit and of the update grow with the length of prompts, with pivots and with the model.

No plain method: a line says how many times the time of the smallest size it is, and how many times the floor of that
its floor is. Sizes take turns.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import work
from circuit_step import BATCH, Steps
from lines import Line, Setting, part, skipped
from timing import floor_of, in_turns

from cca.method.update import full_gradient
from cca.model.delta import Delta
from cca.model.open import Model
from cca.records import Pivot

AT_ONCE = 32
FEW = 8
"""Pivots of an update where models are compared."""


class Sized:
    """One size: what it is called, and the network that does the work."""

    def __init__(self, called: str, network: Any, step: Callable[[], Any]):
        self.called, self.network, self.step = called, network, step


def circuit(model: Model, pivots: Sequence[Pivot], called: str) -> Sized:
    """A step for each 8 of `pivots`."""
    return Sized(called, model.network, Steps(model, pivots, BATCH).cca)


def update(model: Model, pivots: Sequence[Pivot], called: str) -> Sized:
    delta = Delta.zeros(model, work.a_circuit(model))
    return Sized(called, model.network, partial(full_gradient, model.network, delta, pivots, AT_ONCE))


def grown(what: str, sizes: Sequence[Sized], repeats: int) -> Iterator[Line]:
    times = in_turns({size.called: size.step for size in sizes}, repeats, warm=repeats > 1)
    floors = [floor_of(size.network, size.step, backward=True) for size in sizes]
    first = times[sizes[0].called].least
    for size, floor in zip(sizes, floors, strict=True):
        took = times[size.called]
        note = "" if size is sizes[0] else f"{took.least / first:.1f}x the time, {floor / floors[0]:.1f}x the floor"
        yield Line(f"{what}, {size.called}", took.least, floor=floor, spread=took.spread, note=note)


def of_lengths(model: Model, lengths: Sequence[int], pivots: int, repeats: int) -> Iterator[Line]:
    made = {n: work.made_pivots(model.network, pivots, n) for n in lengths}
    steps = [circuit(model, found[:BATCH], f"prompts of {n:,}") for n, found in made.items()]
    yield from grown("circuit step", steps, repeats)
    steps = [update(model, found, f"prompts of {n:,}") for n, found in made.items()]
    yield from grown(f"update step, {pivots} pivots", steps, repeats)


def of_pivots(model: Model, counts: Sequence[int], tokens: int, repeats: int) -> Iterator[Line]:
    made = {n: work.made_pivots(model.network, n, tokens) for n in counts}
    for what, method in (("epoch of the circuit", circuit), ("update step", update)):
        sizes = [method(model, found, f"{n} pivots") for n, found in made.items()]
        yield from grown(f"{what}, prompts of {tokens}", sizes, repeats)


def of_models(models: Sequence[Model], names: Sequence[str], tokens: int, repeats: int) -> Iterator[Line]:
    """Steps of 8 pivots; the first model is the smallest."""
    for what, method in (("circuit step", circuit), ("update step", update)):
        sizes = [
            method(model, work.made_pivots(model.network, FEW, tokens), name)
            for model, name in zip(models, names, strict=True)
        ]
        yield from grown(f"{what}, {FEW} pivots of {tokens}", sizes, repeats)


def lines(setting: Setting) -> Iterator[Line]:
    model, repeats = work.bundled(), setting.of(2, 1)
    yield from of_lengths(model, (20, 40) if setting.quick else (100, 400, 1600), setting.of(32, BATCH), repeats)
    yield from of_pivots(model, (8, 16) if setting.quick else (32, 128, 512), setting.of(100, 20), repeats)
    if setting.model is None:
        yield skipped("growth with the model's size")
        return
    real = {work.name_of(path): work.given(path, chat=False) for path in setting.models}
    real = dict(sorted(real.items(), key=lambda pair: sum(p.numel() for p in pair[1].network.parameters())))
    yield from of_models([model, *real.values()], ["bundled", *real], setting.of(100, 20), 1)


if __name__ == "__main__":
    part(__doc__, lines)
