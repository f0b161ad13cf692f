"""Key and value caches that are written in place: none that grows by copying."""

import inspect
from functools import cache as remembered
from typing import Any, cast

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

    def keep(self, rows: Tensor) -> None:
        """Drop all but `rows` of the batch."""
        rows = rows.to(self.key_buffer.device)
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self._show()


class ConstantLayer(DynamicLayer):
    """Keys and values (B, K, T, D) of a prefix, to which new ones are joined for the caller alone: nothing is kept.

    A layer that is computed twice may use it twice.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.dtype, self.device, self.keys, self.values = keys.dtype, keys.device, keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
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
