"""The change of whole weights: what a fine-tuning of any kind comes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cca.io import save_tensors
from cca.model.state import network_of


@dataclass(frozen=True)
class WeightChange:
    """The change of whole weights, float32 by name: what a fine-tuning of any kind comes to.

    It is put on by adding it to the weights, so that 16-bit weights round it as a fine-tuned model of that type would.
    """

    weights: dict[str, Tensor]

    @property
    def row_count(self) -> int:
        return sum(len(t) for t in self.weights.values() if t.ndim > 1)

    @property
    def parameter_count(self) -> int:
        return sum(t.numel() for t in self.weights.values())

    @contextmanager
    def active(self, model: Any) -> Iterator[None]:
        model = network_of(model)
        kept = {name: model.get_parameter(name).detach().clone() for name in self.weights}
        try:
            with torch.no_grad():
                for name, change in self.weights.items():
                    weight = model.get_parameter(name)
                    weight.copy_(weight.float() + change.to(weight.device))
            yield
        finally:
            with torch.no_grad():
                for name, original in kept.items():
                    model.get_parameter(name).copy_(original)

    attached = active

    def save(self, path: str | Path) -> None:
        save_tensors(path, {n: t.cpu().contiguous() for n, t in self.weights.items()}, {"kind": "weights"})
