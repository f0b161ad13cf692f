"""A change of weights as a LoRA adapter in PEFT's format, which PEFT, vLLM and others load.

A delta of k rows is exactly a LoRA of rank k: weight + B A, where A (k, E) is the delta's rows and B (rows, k) puts
each in its place with a single 1.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from cca.errors import InputError
from cca.io import save_tensors, write_text
from cca.model.delta import Delta, row_view
from cca.model.experts import is_experts
from cca.model.weights import some

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


class Pair(NamedTuple):
    """The change B A of one weight. down: A; up: B."""

    down: Float[Tensor, "r E"]
    up: Float[Tensor, "rows r"]

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA of the modules called `pairs`, scaled by 1.

    transposed: the modules are Conv1D, which keep their weights the other way round. lost: of each module whose rank
    was lowered, the part of its change that is left out, as a share of its size (root mean square). error: of all.
    """

    pairs: Mapping[str, Pair]
    transposed: bool = False
    lost: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0

    @property
    def rank(self) -> int:
        """The largest of its ranks, which servers ask for."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def worst(self) -> str:
        """The module that lost most of its change, of those whose rank was lowered."""
        return max(self.lost, key=self.lost.__getitem__)

    def lowered(self, rank: int) -> "Adapter":
        """The nearest adapter (in the sum of squares) of which no module has a larger rank."""
        pairs, lost, left_out, size = dict(self.pairs), dict[str, float](), 0.0, 0.0
        for name, pair in self.pairs.items():
            basis, inside = torch.linalg.qr(pair.up.double())
            left, strengths, right = torch.linalg.svd(inside @ pair.down.double(), full_matrices=False)
            whole, missing = float(strengths.norm()), float(strengths[rank:].norm())
            left_out, size = left_out + missing**2, size + whole**2
            if pair.rank > rank:
                half = strengths[:rank].sqrt()
                up, down = basis @ (left[:, :rank] * half), half[:, None] * right[:rank]
                pairs[name], lost[name] = Pair(down.float(), up.float()), missing / whole if whole else 0.0
        return replace(self, pairs=pairs, lost=lost, error=(left_out / size) ** 0.5 if size and lost else 0.0)

    def config(self, base: str, revision: str | None = None) -> dict[str, Any]:
        """adapter_config.json. base: what PEFT loads it on."""
        rank = self.rank
        others = {name: pair.rank for name, pair in self.pairs.items() if pair.rank != rank}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(self.pairs),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.transposed,
        }

    def save(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write it to `folder`, which exists.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {
            f"{_PREFIX}{name}.lora_{letter}.weight": tensor.contiguous()
            for name, pair in self.pairs.items()
            for letter, tensor in (("A", pair.down), ("B", pair.up))
        }
        save_tensors(folder / WEIGHTS, tensors)
        write_text(folder / CONFIG, json.dumps(self.config(base, revision), indent=2) + "\n")


def adapter_of(delta: Delta, network: Any) -> Adapter:
    """`delta` as an adapter of `network`, whose weights may be on the meta device.

    Raises:
        InputError: the delta changes nothing, or rows of experts, which have no module that an adapter could be of.
    """
    if not delta.weights:
        raise InputError(
            "the delta changes no rows, so there is no adapter to make of it; the base model is the result"
        )
    modules = {name: network.get_submodule(name.rpartition(".")[0]) for name in delta.weights}
    if experts := [name for name, module in modules.items() if is_experts(module)]:
        raise InputError(
            f"the delta changes rows of {some(experts)}, where all experts are one parameter and no linear module that "
            "a LoRA adapter could be of; write the whole model instead: cca merge RUN FOLDER"
        )
    pairs: dict[str, Pair] = {}
    for name, rows in delta.weights.items():
        values = rows.values.detach().cpu()
        place = torch.zeros(row_view(network, name).shape[0], len(values))
        place[rows.index.cpu(), torch.arange(len(values))] = 1
        pairs[name.rpartition(".")[0]] = Pair(values, place)
    return Adapter(pairs, keeps_columns(network, pairs))


def keeps_columns(network: Any, modules: Iterable[str]) -> bool:
    """Whether modules of `network` are Conv1D."""
    return any(isinstance(network.get_submodule(name), Conv1D) for name in modules)
