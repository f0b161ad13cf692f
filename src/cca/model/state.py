"""What a caller's network is left in: as it was."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within the context all modules are in evaluation mode and no weight takes gradients; afterwards as before."""
    modes = [(module, module.training) for module in network.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)


_numbers = itertools.count()


@contextmanager
def registered(registry: Any, prefix: str, function: Callable[..., Any], base: str = "") -> Iterator[str]:
    """Within the context transformers finds `function` in `registry`, under the name that this gives.

    A name of its own for each context, so that contexts may be inside one another, and nothing stays that would keep
    what the function refers to. It ends with `base`, for transformers tells by names what flash attention is.
    """
    name = f"{prefix}{next(_numbers)}_{base}"
    registry.register(name, function)
    try:
        yield name
    finally:
        registry._global_mapping.pop(name, None)  # it has no public way out


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Within the context `hook` sees, and may replace, the output of `module`."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def network_of(model: Any) -> Any:
    """The network itself, of a `cca.model.open.Model` or of a network."""
    return getattr(model, "network", model)
