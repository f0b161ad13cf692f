"""Key and value caches that are written in place: none that grows by copying."""

import inspect
from collections.abc import Sequence
from functools import cache as remembered
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values in buffers (B, K, capacity, D) of which the first `filled` positions count, written in place."""

    def __init__(self, key_buffer: Tensor, value_buffer: Tensor, filled: int):
        super().__init__()
        self.dtype, self.device = key_buffer.dtype, key_buffer.device
        self.key_buffer, self.value_buffer, self.filled = key_buffer, value_buffer, filled
        self._show()

    @property
    def capacity(self) -> int:
        return self.key_buffer.shape[2]

    def _show(self) -> None:
        # a full buffer is shown as it is: a slice of it would cost autograd a copy of its gradient
        self.keys, self.values = (
            b if self.filled == self.capacity else b[:, :, : self.filled] for b in (self.key_buffer, self.value_buffer)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.key_buffer = write_columns(self.key_buffer, key_states, self.filled)
        self.value_buffer = write_columns(self.value_buffer, value_states, self.filled)
        self.filled += key_states.shape[2]
        self._show()
        assert self.keys is not None and self.values is not None
        return self.keys, self.values


class SlotGroup(NamedTuple):
    """Slots side by side whose rows look at as many columns, after the same start.

    begun: the position of their first column. start: by layer keys and values (K, begun, D) of the positions before it,
    which were read once for all of them.
    """

    slots: slice
    columns: int
    begun: int = 0
    start: Sequence[tuple[Tensor, Tensor]] = ()


class SlotPlaces:
    """Where the next tokens of the slots go, and which columns attention looks at.

    columns: (S,) on the CPU, of the next token of each slot. groups: of a step. count, shown: the slots of all groups,
    and the most columns. layer: the one that is at work.
    """

    def __init__(self, slots: int):
        self.columns = torch.zeros(slots, dtype=torch.long)
        self.groups: list[SlotGroup] = []
        self.count = self.shown = self.layer = 0
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def step(self, groups: list[SlotGroup]) -> None:
        """The next tokens are of the slots of these groups, which are the first ones."""
        self.groups, self.count, self.shown = groups, groups[-1].slots.stop, max(group.columns for group in groups)
        self._on.clear()

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the slots of this step, columns and positions of their next tokens; copied to a device once."""
        if device not in self._on:
            columns = self.columns[: self.count]
            positions = columns.clone()
            for group in self.groups:
                positions[group.slots] += group.begun
            self._on[device] = torch.arange(self.count, device=device), columns.to(device), positions.to(device)
        return self._on[device]


class SlotLayer(DynamicLayer):
    """Keys and values of sequences of unlike lengths, one a slot, in buffers (S, K, capacity, D), without a start that
    several share.

    places: where a step writes and how much it shows, common to all layers. number: of the layer.
    """

    def __init__(self, places: SlotPlaces, number: int, key_buffer: Tensor, value_buffer: Tensor):
        super().__init__()
        self.places, self.number, self.key_buffer, self.value_buffer = places, number, key_buffer, value_buffer
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.places.shown - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        del query_length  # the new ones are among those shown
        return self.places.shown, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        rows, columns, _positions = self.places.on(self.key_buffer.device)
        self.places.layer = self.number  # attention comes next
        for buffer, states in ((self.key_buffer, key_states), (self.value_buffer, value_states)):
            buffer[rows, :, columns] = states[:, :, 0]
        count, shown = self.places.count, self.places.shown
        return self.key_buffer[:count, :, :shown], self.value_buffer[:count, :, :shown]

    def grow(self, columns: int) -> None:
        """Room for so many more positions."""
        self.key_buffer, self.value_buffer = (
            torch.cat([b, b.new_zeros(*b.shape[:2], columns, b.shape[3])], 2)
            for b in (self.key_buffer, self.value_buffer)
        )

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        for buffer in (self.key_buffer, self.value_buffer):
            kept = buffer[one, :, :length].clone()
            buffer[one, :, :length] = buffer[other, :, :length]
            buffer[other, :, :length] = kept


class ConstantLayer(DynamicLayer):
    """Keys and values (B, K, T, D) of a prefix, if any, to which those of a pass are joined for the caller alone.

    It stays as it is, so that a layer that is computed twice may use it twice. own_keys, own_values: of the last pass
    without gradients; with them they would keep alive what is to be computed again.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, **_: object):
        super().__init__()
        self.own_keys, self.own_values = torch.empty(0), torch.empty(0)
        if keys is not None and values is not None:
            self.dtype, self.device, self.keys, self.values = keys.dtype, keys.device, keys, values
            self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            self.own_keys, self.own_values = key_states, value_states
        if not self.is_initialized:
            return key_states, value_states
        return torch.cat([cast(Tensor, self.keys), key_states], 2), torch.cat(
            [cast(Tensor, self.values), value_states], 2
        )


class _WriteColumns(torch.autograd.Function):
    """`buffer[:, :, start:] = fresh` without the two copies that autograd makes of a sliced assignment's gradient."""

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, fresh: Tensor, start: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.columns = slice(start, start + fresh.shape[2])
        buffer[:, :, ctx.columns] = fresh
        ctx.mark_dirty(buffer)
        return buffer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, gradient[:, :, ctx.columns], None


def write_columns(buffer: Tensor, fresh: Tensor, start: int) -> Tensor:
    """Write `fresh` (B, K, n, D) into positions `start` and on of `buffer`, whose older content is a constant."""
    return cast(Tensor, _WriteColumns.apply(buffer, fresh, start))


def cache_argument(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """`cache` under the name that the model's forward pass takes: transformers 5.24 renamed `past_key_values`."""
    return {_cache_name(type(model)): cache}


@remembered
def _cache_name(model_class: type[PreTrainedModel]) -> str:
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"
