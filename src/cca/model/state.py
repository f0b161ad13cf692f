"""What a caller's network is left in: as it was."""

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
