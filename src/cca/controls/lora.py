"""LoRA trained on pivots: the usual adapter, on the matrices whose rows components own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cca.errors import InputError
from cca.io import save_tensors
from cca.model.delta import row_view
from cca.model.sampling import stream
from cca.model.state import network_of


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
                    f"{name} holds the weights of several experts, for which cca has no LoRA; leave that method out"
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

    def dropping(self, share: float, seed: int, step: int) -> "LowRank":
        """What a training step goes through with dropout; its parameters are these."""
        return Dropping(self.down, self.up, self.scale, share, seed, step)

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        with self._attached(model, lambda _, x: x):
            yield

    active = attached

    @contextmanager
    def _attached(self, model: Any, given: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """given: what the adapter of a weight gets of the input to its matrix."""

        def adding(name: str):
            def add(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
                low = nn.functional.linear(given(name, args[0]), self.down[name].to(args[0]))
                return out + self.scale * nn.functional.linear(low, self.up[name].to(low))

            return add

        with ExitStack() as stack:
            for name in self.down:
                module = network_of(model).get_submodule(name.rpartition(".")[0])
                stack.callback(module.register_forward_hook(adding(name)).remove)
            yield

    def save(self, path: str | Path) -> None:
        tensors = {name: tensor.detach().cpu() for name, tensor in self.parameters.items()}
        save_tensors(path, tensors, {"kind": "lora", "scale": repr(self.scale)})


@dataclass(frozen=True)
class Dropping(LowRank):
    """Adapters in a training step, in which each number of their input is left out with the chance `share`.

    What is left out depends on seed, step, the number of the pass in the step, the weight and the place in the row of
    tokens alone: a training that goes on after a kill leaves out the same, and so does a layer that is computed again
    in the backward pass. What the prefixes of a pass share stands there once, so that they share that too. `active`
    leaves out nothing.
    """

    share: float
    seed: int
    step: int

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        passes = 0

        def begun(*_: Any) -> None:
            nonlocal passes
            passes += 1

        def given(name: str, x: Tensor) -> Tensor:
            key = int(stream(self.seed, "dropout", self.step, passes, name).integers(2**63))
            generator = torch.Generator(x.device).manual_seed(key)
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.share
            return x * kept / (1 - self.share)

        counting = network_of(model).register_forward_pre_hook(begun)  # not called where layers are computed again
        try:
            with self._attached(model, given):
                yield
        finally:
            counting.remove()
