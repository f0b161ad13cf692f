"""Keys and values of pivots' prefixes: what makes a step of stage 2 cost one token a pivot.

Gates act at the last position only, so keys and values of all earlier positions are constants. They are computed
once; every optimiser step is then a forward and backward of one token per pivot against a cached prefix. What all
prefixes begin with, such as few-shot examples, is read once and stored once.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from cca.model.memory import attempted, free_bytes, host_free_bytes
from cca.model.padded import OneTokenStep, Ragged, Shape
from cca.model.placement import GIB, Placement, place
from cca.model.read import Text, by_budget, read, texts
from cca.records import Pivot


class CachedPrefixes:
    """Keys and values of every pivot's prefix but its last token.

    They are kept where `place` says: on the device, in main memory, or only their common start, so that each batch
    reads its prefixes again. budget_gib: of the device, None for half of what is free. constant: steps leave their
    cache as it is, so that a layer can be computed twice. progress: told after each pass how many tokens the prefixes
    have that it read and keeps.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pivots: Sequence[Pivot],
        budget_gib: float | None = None,
        constant: bool = False,
        progress: Callable[[int], None] | None = None,
    ):
        self.model, self.room = model, 0 if constant else 1
        if min((len(p.prefix) for p in pivots), default=0) < 2:
            raise ValueError("a pivot needs a prefix of at least two tokens")
        self.last = torch.tensor([p.prefix[-1] for p in pivots], device=model.device)
        self.heads = texts([p.prefix[:-1] for p in pivots])
        self.start = self.heads[0].start
        self.lengths = [head.own_length() for head in self.heads]
        some = self.start or self.heads[0].unread()
        read(model, [some])
        self.shapes = Shape.of(some)
        self.placement = self._place(budget_gib)
        self.stored: Ragged | None = None
        if self.placement.where == "device" and not attempted(lambda: self._store(progress)):
            self.placement = place(self.placement.needed, 0.0, 0, self._host_free())
        if self.placement.where == "host" and not attempted(lambda: self._store(progress)):
            self.placement = self.placement._replace(where="chunks")
        if self.start and self.placement.where == "device":
            self.start.forget()

    @property
    def gib(self) -> float:
        """What all of them take, wherever they are."""
        return self.placement.needed / GIB

    def _place(self, budget_gib: float | None) -> Placement:
        tokens = sum(self.lengths) + (len(self.start.ids) if self.start else 0)
        of_device: dict[torch.device, int] = {}
        for shape in self.shapes:
            of_device[shape.keys.device] = of_device.get(shape.keys.device, 0) + shape.bytes_per_token
        per_token = sum(of_device.values())
        # the whole that would fill the first device that is full
        free = [
            None if (bytes_free := free_bytes(device)) is None else bytes_free * per_token // share
            for device, share in of_device.items()
        ]
        known = [count for count in free if count is not None]
        return place(tokens * per_token, budget_gib, min(known, default=None), self._host_free())

    def _host_free(self) -> int | None:
        """Bytes of main memory, where that is not what the device has."""
        return host_free_bytes() if any(shape.keys.is_cuda for shape in self.shapes) else None

    def _store(self, progress: Callable[[int], None] | None) -> None:
        on_host = self.placement.where == "host"
        stored = Ragged.room_for(self.shapes, None if on_host else self.start, self.lengths, on_host)
        self._fill(stored, range(len(self.heads)), progress)
        self.stored = stored

    def _fill(self, stored: Ragged, rows: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Read the prefixes `rows` in groups, of which each is let go before the next."""
        number = 0
        for group in by_budget((self.heads[i].unread() for i in rows), Text.own_length, self.model):
            read(self.model, group)
            for text in group:
                stored.put(number, text)
                text.forget()
                number += 1
            if progress:
                progress(sum(len(text.ids) for text in group))

    def to_read(self, rows: Sequence[int]) -> int:
        """How many tokens a step with `rows` reads."""
        return len(rows) + (0 if self.stored else sum(self.lengths[i] for i in rows))

    def take(self, rows: Sequence[int]) -> OneTokenStep:
        """What a forward pass of the last tokens of the prefixes `rows` needs. Call it outside of any gating."""
        rows, chosen = list(rows), range(len(rows))
        match self.placement.where:
            case "device":
                assert self.stored is not None
                some, chosen = self.stored, rows
            case "host":
                assert self.stored is not None
                some = self.stored.on_devices(rows, self.start)
            case "chunks":
                some = Ragged.room_for(self.shapes, self.start, [self.lengths[i] for i in rows])
                self._fill(some, rows)
        cache, mask = some.take(chosen, self.room)
        return OneTokenStep(cache, mask, self.last[rows])
