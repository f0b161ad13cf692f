"""Controls of one vector: a constant bias on the output logits, and a vector added to a layer's output."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cca.io import save_tensors
from cca.model.state import hooked, network_of


class Vector:
    """What interventions of one vector share."""

    values: Tensor
    row_count = 0

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"values": self.values}

    @property
    def parameter_count(self) -> int:
        return self.values.numel()

    def copy(self) -> Self:
        return replace(self, values=self.values.detach().clone())  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True)
class OutputBias(Vector):
    """Constants (n,) added to the logits of the tokens `index` (n,), whatever the context.

    A sceptic's control: if it does as well as the circuit, what was learned is to write a token more or less often.
    They are added to what the output embedding gives, before any soft-capping.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def zeros(cls, tokens: Tensor) -> "OutputBias":
        return cls(tokens, torch.zeros(len(tokens), device=tokens.device))

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        def add(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
            return logits.index_add(
                -1, self.index.to(logits.device), self.values.to(logits).expand(*logits.shape[:-1], -1)
            )

        head = network_of(model).get_output_embeddings()
        with hooked(head, add):
            yield

    active = attached

    def save(self, path: str | Path) -> None:
        save_tensors(path, {"index": self.index.cpu(), "values": self.values.detach().cpu()}, {"kind": "bias"})


@dataclass(frozen=True)
class Steering(Vector):
    """A vector (E,) added to the output of the layer called `layer` at every position."""

    layer: str
    values: Tensor

    @classmethod
    def zeros(cls, layer: str, width: int, device: torch.device) -> "Steering":
        return cls(layer, torch.zeros(width, device=device))

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        def add(_: nn.Module, __: Any, out: Any) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            steered = hidden + self.values.to(hidden)
            return (steered, *out[1:]) if isinstance(out, tuple) else steered

        with hooked(network_of(model).get_submodule(self.layer), add):
            yield

    active = attached

    def save(self, path: str | Path) -> None:
        save_tensors(path, {"values": self.values.detach().cpu()}, {"kind": "steering", "layer": self.layer})
