"""Which model a delta was made on: its name, and a checksum of each row that the delta changes.

A model may be loaded in one type and merged in another, so a row has a checksum as each type that `ModelOptions` knows.
Rows are the same where they agree as the type that they had, or as the type that they have now: float32 rounds to what
a 16-bit load of the same file gives. Only bfloat16 and float16 loads of a float32 file cannot be told from one
another's numbers, so there the checksum of the file decides (`Model.revision`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)
UNKNOWN = ("memory", "unknown")
"""Revisions that say nothing."""


@dataclass(frozen=True, eq=False)
class BaseRows:
    """What rows (n,) of a weight held, which was of type `dtype`. sums: a checksum of each as each of TYPES."""

    dtype: torch.dtype
    sums: Int[Tensor, "n 3"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n E"]) -> "BaseRows":
        here = rows.detach().cpu()
        sums = [[_checksum(row) for row in here.to(kind).contiguous().view(torch.uint8).numpy()] for kind in TYPES]
        dtype = rows.dtype if rows.dtype in TYPES else torch.float32
        return cls(dtype, torch.tensor(sums, dtype=torch.int64).T.contiguous())

    def agrees(self, now: "BaseRows") -> bool:
        """Whether the rows that `now` is of hold the same numbers."""
        columns = {TYPES.index(self.dtype), TYPES.index(now.dtype)}
        return any(torch.equal(self.sums[:, i], now.sums[:, i]) for i in columns)

    def comparable(self, now: "BaseRows") -> bool:
        """Whether `agrees` can tell."""
        return {self.dtype, now.dtype} != {torch.bfloat16, torch.float16}


def _checksum(row: Any) -> int:
    return int.from_bytes(blake2b(row, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True, eq=False)
class Base:
    """The model that a delta is for.

    revision: as `cca.model.open.Model` has it. rows: what the delta's rows held there, by weight.
    """

    name: str
    revision: str
    rows: Mapping[str, BaseRows]

    def __str__(self) -> str:
        known = "" if self.revision in UNKNOWN else f" (revision {self.revision[:12]})"
        return f"{self.name}{known}"

    def same_files(self, revision: str) -> bool:
        """Whether a model of `revision` was loaded from the same files."""
        return self.revision == revision and revision not in UNKNOWN


def identity(model: Any) -> tuple[str, str]:
    """Name and revision of a `cca.model.open.Model`, or of a network."""
    name = getattr(model, "name", None) or getattr(getattr(model, "config", None), "_name_or_path", "")
    return name or type(model).__name__, getattr(model, "revision", UNKNOWN[0])
