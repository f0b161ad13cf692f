"""What stage 2 left in circuit.safetensors, as arrays: to look at it takes no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cca.errors import InputError
from cca.folder import RunFolder
from cca.io import header_of
from cca.records import KINDS


@dataclass(frozen=True)
class Gate:
    """A component with the gate it ended with. selected: it is in the circuit."""

    layer: int
    kind: str
    number: int
    gate: float
    selected: bool


@dataclass(frozen=True)
class CircuitView:
    """A learned circuit of C components in L layers.

    gates: (C,) float32. history: (epochs, C), the gates after each epoch. losses: (steps,) mean margin loss of each
    step's batch. sizes: (L, 4), how many query, key and value heads and neurons each layer has, in which order the
    gates stand. stopped: why stage 2 ended.
    """

    gates: NDArray[np.float32]
    history: NDArray[np.float32]
    losses: NDArray[np.float32]
    sizes: NDArray[np.int64]
    stopped: str

    @classmethod
    def load(cls, path: Path) -> "CircuitView":
        """Read the file that `Circuit.save` wrote.

        Raises:
            InputError: the file cannot be read, or holds something else.
        """
        try:
            with safe_open(path, "np") as file:
                gates, history, losses, sizes = map(file.get_tensor, ("gates", "history", "losses", "sizes"))
                stopped = header_of(file).get("stopped", "")
        except (OSError, SafetensorError, InputError) as error:
            raise InputError(f"cannot read a circuit from {path} ({error})") from error
        if gates.ndim != 1 or sizes.ndim != 2 or sizes.shape[1] != 4 or sizes.sum() != len(gates) or losses.ndim != 1:
            raise InputError(f"{path} holds tensors that are no circuit")
        if history.ndim != 2 or history.shape[1] != len(gates):
            raise InputError(f"{path} holds tensors that are no circuit")
        return cls(gates, history, losses, sizes, stopped)

    @property
    def selected(self) -> NDArray[np.bool_]:
        """The circuit: a (C,) mask of the gates that round to 1."""
        return self.gates > 0.5

    @property
    def density(self) -> float:
        """The circuit's share of all components, computed in float32 as stage 2 does."""
        return float(self.selected.astype(np.float32).mean())

    def by_layer(self) -> list[list[NDArray[np.float32]]]:
        """The gates of each layer: its query (H,), key (K,) and value heads (K,) and neurons (I,)."""
        parts = np.split(self.gates, self.sizes.flatten().cumsum()[:-1])
        return [parts[i : i + 4] for i in range(0, len(parts), 4)]

    def components(self) -> Iterator[Gate]:
        """All components, in the order of `gates`."""
        for layer, parts in enumerate(self.by_layer()):
            for kind, part in zip(KINDS, parts, strict=True):
                for number, gate in enumerate(part.tolist()):
                    yield Gate(layer, kind, number, gate, gate > 0.5)

    def members(self) -> dict[str, dict[int, list[int]]]:
        """Kind -> layer -> numbers of the components in the circuit."""
        found: dict[str, dict[int, list[int]]] = {kind: {} for kind in KINDS}
        for component in self.components():
            if component.selected:
                found[component.kind].setdefault(component.layer, []).append(component.number)
        return found


def circuit_of(folder: RunFolder) -> CircuitView:
    """The circuit of a run.

    Raises:
        InputError: it has none yet, or none that can be read.
    """
    path = folder.file("circuit.safetensors")
    if not path.exists() and not folder.finished("circuit"):
        raise InputError(f"{folder.path} has no circuit yet; learn it with: cca circuit {folder.path}")
    return folder.artifact(path.name, CircuitView.load)
