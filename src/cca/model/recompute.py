"""Compute a layer's activations again in the backward pass instead of keeping them (gradient checkpointing)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context each of `layers` keeps its inputs only.

    Memory falls from all activations to those of one layer, and for layers whose weights are offloaded from all
    weights to one layer's; a backward pass takes about a third longer. A layer must not change any state (a
    cache) in its forward pass, since that runs twice. Unlike transformers' own switch this leaves dropout off.
    """

    def twice(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = twice(layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights lie in main memory or on disk between passes (accelerate keeps them on the meta device)."""
    return any(p.device.type == "meta" for p in model.parameters())
