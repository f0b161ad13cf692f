"""What evaluation and training need to know of a change of a model, whatever it changes.

`cca.model.delta.Delta` is the method's; the others are controls (`cca.controls`). Each can be put on for generation
(`active`) and, where it has parameters to train, so that gradients reach them (`attached`). Outside of these contexts
the model is as it was.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor


@runtime_checkable
class Intervention(Protocol):
    """A change that can be put on and taken off. model: a `cca.model.open.Model`, or its network."""

    @property
    def row_count(self) -> int: ...
    @property
    def parameter_count(self) -> int: ...
    def active(self, model: Any) -> AbstractContextManager[None]: ...
    def attached(self, model: Any) -> AbstractContextManager[None]: ...
    def save(self, path: str | Path) -> None: ...


@runtime_checkable
class Trainable(Intervention, Protocol):
    """What training by pivots needs besides: float32 tensors, by name, that `attached` computes with."""

    @property
    def parameters(self) -> Mapping[str, Tensor]: ...
    def copy(self) -> Self: ...
