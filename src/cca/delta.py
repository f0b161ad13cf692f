"""Row deltas: the change of a circuit's weight rows, as indices and float32 values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_ROWS, _VALUES = ".rows", ".values"


@dataclass(frozen=True)
class Rows:
    """Which rows (n,) of one weight change, and by how much (n, E) in float32."""

    index: Tensor
    values: Tensor


@dataclass(frozen=True)
class Delta:
    """The change of some rows of some weights, by weight name."""

    weights: dict[str, Rows]

    @classmethod
    def zeros(cls, model: nn.Module, rows: Mapping[str, Tensor]) -> "Delta":
        """A delta that changes nothing yet, on the device of the model. `rows`: weight name -> row numbers."""
        weights: dict[str, Rows] = {}
        for name, index in rows.items():
            weight = model.get_parameter(name)
            values = torch.zeros(len(index), weight.shape[1], dtype=torch.float32, device=weight.device)
            weights[name] = Rows(index.to(weight.device), values)
        return cls(weights)

    @property
    def row_count(self) -> int:
        return sum(len(rows.index) for rows in self.weights.values())

    @property
    def parameter_count(self) -> int:
        return sum(rows.values.numel() for rows in self.weights.values())

    def copy(self) -> "Delta":
        """An independent copy of the values."""
        return Delta({name: Rows(r.index, r.values.detach().clone()) for name, r in self.weights.items()})

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Within the context the model computes with base + delta, the base weights untouched.

        Each projection's output gets x @ values.T added to the delta's rows, so gradients reach `values`.
        """
        hooks = []
        try:
            for name, rows in self.weights.items():

                def add(_: nn.Module, args: tuple[Tensor], out: Tensor, rows: Rows = rows) -> Tensor:
                    change = nn.functional.linear(args[0], rows.values.to(out.dtype))
                    return out.index_add(-1, rows.index, change)

                hooks.append(model.get_submodule(name.removesuffix(".weight")).register_forward_hook(add))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the context the weights hold base + delta; afterwards the base rows are restored bit by bit."""
        saved: dict[str, Tensor] = {}
        try:
            for name, rows in self.weights.items():
                weight = model.get_parameter(name)
                with torch.no_grad():
                    saved[name] = weight[rows.index].clone()
                    weight[rows.index] = (saved[name].float() + rows.values).to(weight.dtype)
            yield
        finally:
            for name, original in saved.items():
                with torch.no_grad():
                    model.get_parameter(name)[self.weights[name].index] = original

    def save(self, path: Path) -> None:
        """Write to a safetensors file: NAME.rows (int64) and NAME.values (float32) for each weight."""
        tensors: dict[str, Tensor] = {}
        for name, rows in self.weights.items():
            tensors[name + _ROWS] = rows.index.cpu()
            tensors[name + _VALUES] = rows.values.detach().cpu().contiguous()
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> "Delta":
        """Read what `save` wrote."""
        tensors = load_file(path, device=str(device))
        names = [key.removesuffix(_ROWS) for key in tensors if key.endswith(_ROWS)]
        return cls({name: Rows(tensors[name + _ROWS], tensors[name + _VALUES]) for name in names})
