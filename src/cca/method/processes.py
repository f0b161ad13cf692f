"""Several processes that learn together, each on a copy of the model of its own.

All call the same functions with the same arguments. Each computes its part of the pivots; what they find is added up,
so that all have the same sums and take the same steps.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cca.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; by default the only one, for which all that is here does nothing.

    group: theirs, of torch.distributed; None for its default one.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of_group(cls, group: Any = None) -> Self:
        """Those of a group of torch.distributed, by default of the one that was initialised.

        Raises:
            InputError: none was.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError(
                "there is no group of processes yet; start them with torchrun and call "
                "torch.distributed.init_process_group() in each first"
            )
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """This process's items of all, dealt out in turn. In order of size they are as much work for each."""
        return list(items[self.rank :: self.count])

    def whole(self, part: Tensor, total: int, device: torch.device) -> Tensor:
        """The numbers (total,) of all items, of which `part` are those of this process's."""
        if self.count == 1:
            return part
        found = torch.zeros(total, device=device, dtype=part.dtype)
        found[self.rank :: self.count] = part
        self.sum(found)
        return found

    def sum(self, *tensors: Tensor) -> None:
        """Add `tensors` up over all processes, in place. All get the same bits.

        Raises:
            ConnectionError: another process has ended.
        """
        if self.count > 1:
            with self._reached():
                for tensor in tensors:
                    dist.all_reduce(tensor, group=self.group)

    def same(self, value: T | None = None) -> T:
        """What the first process gives, in all of them; what the others give counts for nothing.

        Raises:
            ConnectionError: another process has ended.
        """
        box: list[Any] = [value]
        if self.count > 1:
            with self._reached():
                dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def check_alike(self, device: torch.device, **given: Any) -> None:
        """See that all processes were given the same, before they work on it.

        Raises:
            InputError: they were not; the message says what differs.
        """
        if self.count == 1:
            return
        hashes = [int.from_bytes(hashlib.sha256(repr(v).encode()).digest()[:7]) for v in given.values()]
        all_of_them = torch.zeros(self.count, len(hashes), dtype=torch.int64, device=device)
        all_of_them[self.rank] = torch.tensor(hashes, dtype=torch.int64)
        self.sum(all_of_them)
        for name, column in zip(given, all_of_them.T.tolist(), strict=True):
            if len(set(column)) > 1:
                raise InputError(
                    f"the {self.count} processes were given different {name}, so that they cannot learn together; let "
                    f"the first find them, and give all the same: processes.same({name})"
                )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of which torch has no class of its own for each backend
            raise ConnectionError(f"another of the {self.count} processes has ended") from error


ALONE = Processes()
"""The only process."""
