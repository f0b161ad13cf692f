"""Read any intervention from its file."""

from pathlib import Path

import torch
from torch import Tensor

from cca.controls.lora import LowRank
from cca.controls.vectors import OutputBias, Steering
from cca.controls.weights import WeightChange
from cca.errors import InputError
from cca.io import load_tensors
from cca.model.delta import Delta
from cca.model.intervention import Intervention


def load_intervention(path: str | Path, device: str | torch.device = "cpu") -> Intervention:
    """Read what any intervention's `save` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    tensors, metadata = load_tensors(path, str(device))
    kind = metadata.get("kind", "rows")
    if kind == "rows":
        return Delta.load(path, device=device)
    try:
        return _of_kind(kind, path, tensors, metadata)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} holds no whole {kind} ({error})") from error


def _of_kind(kind: str, path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Intervention:
    match kind:
        case "bias":
            return OutputBias(tensors["index"], tensors["values"])
        case "steering":
            return Steering(metadata["layer"], tensors["values"])
        case "lora":
            names = [key.removesuffix(".A") for key in tensors if key.endswith(".A")]
            down, up = {n: tensors[f"{n}.A"] for n in names}, {n: tensors[f"{n}.B"] for n in names}
            return LowRank(down, up, float(metadata["scale"]))
        case "weights":
            return WeightChange(tensors)
    raise InputError(f"{path} holds an update of unknown kind {kind!r}; it may be of a later version of cca")
