"""Where prefixes go, and what is stored of them."""

import pytest
import torch
from conftest import random_pivots
from test_generate import _many
from test_memory import limited

from cca.method import prefixes as prefixes_module
from cca.method.circuit import learn_gates
from cca.method.options import CircuitOptions
from cca.method.prefixes import CachedPrefixes
from cca.model.cache import ConstantLayer, PreallocatedLayer
from cca.model.components import find_components
from cca.model.padded import Ragged, Shape
from cca.model.placement import GIB, Placement, place
from cca.model.read import Text, read, texts
from cca.records import Pivot

START = tuple(range(5, 45))


def _padded(found: list[Text], room: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The plain way: each sequence whole, one position after the other, in a left-padded batch."""
    width = max(len(t.ids) for t in found)
    layers = []
    for layer in range(len(found[0].keys)):
        sides = []
        for side in ("keys", "values"):
            heads, _, size = getattr(found[0], side)[layer].shape
            out = torch.empty(len(found), heads, width + room, size)
            for row, text in enumerate(found):
                whole = getattr(text, side)[layer]
                if text.start:
                    whole = torch.cat([getattr(text.start, side)[layer], whole], 1)
                for column in range(width + room):
                    at = min(max(column - (width - len(text.ids)), 0), len(text.ids) - 1)
                    out[row, :, column] = whole[:, at]
            sides.append(out)
        layers.append((sides[0], sides[1]))
    return layers


@pytest.mark.parametrize("start", [(), START], ids=["nothing in common", "a common start"])
@pytest.mark.parametrize("room", [0, 1])
def test_what_is_taken_of_the_store_is_to_the_last_bit_what_padding_each_sequence_whole_gives(tiny, start, room):
    found = texts([(*start, *p) for p in _many(7)])
    assert bool(found[0].start) == bool(start)
    read(tiny, found)
    stored = Ragged.of(found)
    for rows in ([3], [6, 0, 2], [1, 1, 5, 4]):
        cache, mask = stored.take(rows, room)
        lengths = [len(found[i].ids) for i in rows]
        assert mask.sum(1).tolist() == lengths
        assert mask.shape[1] == max(lengths)
        assert all(mask[row, max(lengths) - n :].all() for row, n in enumerate(lengths))
        for layer, plain in zip(cache.layers, _padded([found[i] for i in rows], room), strict=True):
            if room:
                assert isinstance(layer, PreallocatedLayer)
                held = layer.key_buffer, layer.value_buffer
            else:
                assert isinstance(layer, ConstantLayer)
                assert layer.keys is not None
                assert layer.values is not None
                held = layer.keys, layer.values
            assert torch.equal(held[0], plain[0])
            assert torch.equal(held[1], plain[1])


def pivots_of_one_start():
    return [Pivot((*START, *p.prefix), p.desired, p.undesired, p.problem) for p in random_pivots(9, 60)]


def test_the_common_start_is_stored_once_and_nothing_is_padding(tiny):
    pivots = pivots_of_one_start()
    prefixes = CachedPrefixes(tiny, pivots)
    stored = prefixes.stored
    assert prefixes.start is not None
    assert not prefixes.start.keys, "not beside the store"
    assert stored is not None
    own = sum(len(p.prefix) - 1 - len(START) for p in pivots)
    (some,) = texts([START])
    read(tiny, [some])
    per_token = sum(shape.bytes_per_token for shape in Shape.of(some))
    assert per_token == 3 * 2 * 2 * 16 * 4, "layers, keys and values, heads, size, float32"
    assert stored.nbytes == (len(START) + own) * per_token
    assert CachedPrefixes(tiny, pivots).gib == stored.nbytes / GIB


@pytest.mark.parametrize(
    ("needed", "budget", "free", "host", "where"),
    [
        (4, None, 10, None, "device"),
        (6, None, 10, None, "chunks"),
        (6, None, 10, 12, "host"),
        (6, None, 10, 11, "chunks"),
        (6, 7, 10, 12, "device"),
        (6, 5, 10, 12, "host"),
        (6, 5, 10, 0, "chunks"),
        (10, 16, 10, 100, "host"),
        (3, None, None, None, "device"),
        (5, None, None, None, "chunks"),
        (5, 6, None, None, "device"),
    ],
)
def test_prefixes_go_where_a_stated_budget_and_what_is_free_allow_it(needed, budget, free, host, where):
    placed = place(needed * GIB, budget, None if free is None else free * GIB, None if host is None else host * GIB)
    assert placed.where == where
    assert ("over the" in str(placed)) == (where != "device")


@pytest.fixture(params=["host", "chunks", "device"])
def elsewhere(request, monkeypatch):
    """Where prefixes are that are not kept on the device; here the host's memory is ordinary memory. ``device``: for
    them there was no room there after all."""
    where = request.param
    placed = iter([Placement(where, 9, 9), Placement("chunks", 9, 0)])
    monkeypatch.setattr(prefixes_module, "place", lambda *_: next(placed))
    if where == "device":
        store, failed = CachedPrefixes._store, list[int]()

        def once(self, progress):
            if not failed:
                failed.append(1)
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
            store(self, progress)

        monkeypatch.setattr(CachedPrefixes, "_store", once)
    return "host" if where == "host" else "chunks"


def test_prefixes_that_are_kept_elsewhere_give_the_same_gates_to_the_last_bit(tiny, elsewhere, monkeypatch):
    pivots, parts = pivots_of_one_start(), find_components(tiny)
    options = CircuitOptions(learning_rate=0.05, batch=4, epochs=2, min_steps=0, patience=50.0)
    with limited(tiny) as passes:
        prefixes = CachedPrefixes(tiny, pivots)
        assert prefixes.placement.where == elsewhere
        before = len(passes)
        found = learn_gates(tiny, parts, pivots, options, prefixes=prefixes)
    own = sum(len(p.prefix) - 1 - len(START) for p in pivots)
    steps = sum(n for n in passes[before:] if n > 4)
    assert steps == 0 if elsewhere == "host" else 2 * own <= steps < 2 * own + 2 * 3 * 8, "never the start"
    monkeypatch.undo()
    assert torch.equal(found.history, learn_gates(tiny, parts, pivots, options).history)
