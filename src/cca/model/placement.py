"""Where what is kept for every step goes: on the device, in main memory, or nowhere. Nothing here loads torch."""

from typing import Literal, NamedTuple

GIB = 2**30

_OF_FREE = 0.5
"""What is kept where no budget is set takes so much of what is free: steps need the rest."""
_OF_FREE_AT_MOST = 0.9
"""And where one is set."""
_UNKNOWN = 4 * GIB
"""What may be kept where neither a budget is set nor the system says what is free."""

Where = Literal["device", "host", "chunks"]


class Placement(NamedTuple):
    """Where keys and values of all prefixes are kept, of `needed` bytes, where the device may take `room` of them.

    where: on the ``device``; in the main memory of its ``host``, from where each step is sent its own; or nowhere, so
    that each step reads its own again (``chunks``).
    """

    where: Where
    needed: int
    room: int

    def __str__(self) -> str:
        all_of_them = f"keys and values of all prefixes ({_gib(self.needed)})"
        over = f"over the {_gib(self.room)} that the device has for them"
        match self.where:
            case "device":
                return all_of_them
            case "host":
                return f"{all_of_them}, in main memory: {over}"
            case "chunks":
                return f"{all_of_them} are {over}, so each step reads its own again"


def _gib(count: int) -> str:
    return f"{count / GIB:.3g} GiB"


def place(needed: int, budget_gib: float | None, free: int | None, host_free: int | None) -> Placement:
    """Where `needed` bytes are kept that every step of a training needs some of.

    Args:
        needed: bytes.
        budget_gib: GiB of the device that they may take; None: half of what is free.
        free: bytes that the device has free; None where that is not known.
        host_free: bytes of main memory that are free; None or 0 where that is not known, or is the device's own.
    """
    if budget_gib is None:
        room = _UNKNOWN if free is None else int(_OF_FREE * free)
    else:
        room = int(budget_gib * GIB) if free is None else int(min(budget_gib * GIB, _OF_FREE_AT_MOST * free))
    if needed <= room:
        return Placement("device", needed, room)
    return Placement("host" if needed <= _OF_FREE * (host_free or 0) else "chunks", needed, room)
