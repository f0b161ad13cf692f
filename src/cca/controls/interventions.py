"""Changes of a model that are no rows of a circuit: the controls that a comparison puts beside `cca.model.delta.Delta`.

Every intervention can be put on for generation (`active`) and, where it has parameters to train, so that gradients reach
them (`attached`). Outside of these contexts the model is as it was.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cca.errors import InputError
from cca.model.delta import Delta, row_view


class Intervention(Protocol):
    """What evaluation needs of a change."""

    @property
    def row_count(self) -> int: ...
    @property
    def parameter_count(self) -> int: ...
    def active(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def attached(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def save(self, path: Path) -> None: ...


class Trainable(Intervention, Protocol):
    """What training by pivots needs besides: float32 tensors, by name, that `attached` computes with."""

    @property
    def parameters(self) -> Mapping[str, Tensor]: ...
    def copy(self) -> Self: ...


class _Vector:
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
class OutputBias(_Vector):
    """Numbers (n,) added to the logits of the tokens `index` (n,), whatever the context.

    A sceptic's control: if it does as well as the circuit, what was learned is to write a token more or less often.
    They are added to what the output embedding gives, before any soft-capping.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def zeros(cls, tokens: Tensor) -> "OutputBias":
        return cls(tokens, torch.zeros(len(tokens), device=tokens.device))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        def add(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
            return logits.index_add(
                -1, self.index.to(logits.device), self.values.to(logits).expand(*logits.shape[:-1], -1)
            )

        head = cast(nn.Module, cast(Any, model).get_output_embeddings())
        hook = head.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    active = attached

    def save(self, path: Path) -> None:
        save_file({"index": self.index.cpu(), "values": self.values.detach().cpu()}, path, metadata={"kind": "bias"})


@dataclass(frozen=True)
class Steering(_Vector):
    """A vector (E,) added to the output of the layer called `layer` at every position."""

    layer: str
    values: Tensor

    @classmethod
    def zeros(cls, layer: str, width: int, device: torch.device) -> "Steering":
        return cls(layer, torch.zeros(width, device=device))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        def add(_: nn.Module, __: Any, out: Any) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            steered = hidden + self.values.to(hidden)
            return (steered, *out[1:]) if isinstance(out, tuple) else steered

        hook = model.get_submodule(self.layer).register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    active = attached

    def save(self, path: Path) -> None:
        save_file({"values": self.values.detach().cpu()}, path, metadata={"kind": "steering", "layer": self.layer})


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): weight + scale x B A, with A (r, E) and B (rows, r) by weight name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    scale: float

    @classmethod
    def fresh(cls, model: nn.Module, weights: Mapping[str, Tensor], rank: int, scale: float, seed: int) -> "LowRank":
        """Adapters of the matrices called `weights` that change nothing yet: B is 0, A as `nn.Linear` starts.

        Raises:
            InputError: a weight is that of several experts.
        """
        generator = torch.Generator().manual_seed(seed)
        down, up = {}, {}
        for name in weights:
            if model.get_parameter(name).ndim > 2:
                raise InputError(
                    f"{name} holds the weights of several experts, for which cca has no LoRA; leave that arm out"
                )
            view = row_view(model, name)
            bound = view.shape[1] ** -0.5
            start = (torch.rand(rank, view.shape[1], generator=generator) * 2 - 1) * bound
            down[name], up[name] = start.to(view.device), torch.zeros(view.shape[0], rank, device=view.device)
        return cls(down, up, scale)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {f"{n}.A": t for n, t in self.down.items()} | {f"{n}.B": t for n, t in self.up.items()}

    @property
    def row_count(self) -> int:
        return sum(len(b) for b in self.up.values())

    @property
    def parameter_count(self) -> int:
        return sum(t.numel() for t in self.parameters.values())

    def copy(self) -> "LowRank":
        return LowRank(
            {n: t.detach().clone() for n, t in self.down.items()},
            {n: t.detach().clone() for n, t in self.up.items()},
            self.scale,
        )

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        hooks = []

        def adding(name: str):
            def add(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
                low = nn.functional.linear(args[0], self.down[name].to(args[0]))
                return out + self.scale * nn.functional.linear(low, self.up[name].to(low))

            return add

        try:
            for name in self.down:
                hooks.append(model.get_submodule(name.rpartition(".")[0]).register_forward_hook(adding(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    active = attached

    def save(self, path: Path) -> None:
        tensors = {name: tensor.detach().cpu() for name, tensor in self.parameters.items()}
        save_file(tensors, path, metadata={"kind": "lora", "scale": repr(self.scale)})


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
    def active(self, model: nn.Module) -> Iterator[None]:
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

    def save(self, path: Path) -> None:
        save_file({n: t.cpu().contiguous() for n, t in self.weights.items()}, path, metadata={"kind": "weights"})


def load_intervention(path: Path, device: str | torch.device = "cpu") -> Intervention:
    """Read what any intervention's `save` wrote."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    kind = metadata.get("kind", "rows")
    if kind == "rows":
        return Delta.load(path, device)
    tensors = load_file(path, device=str(device))
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
    raise ValueError(f"{path} holds a intervention of unknown kind {kind!r}")
