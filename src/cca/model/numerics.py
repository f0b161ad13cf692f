"""Stop at the first number that is not finite, and say where it came from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

REMEDIES = {
    torch.float16: "float16 ends at 65504; try --set model.dtype=bfloat16, or float32",
    torch.bfloat16: "try --set model.dtype=float32, or a lower learning rate",
    torch.float32: "look at the model's weights, or try a lower learning rate",
}


def check_finite(values: Tensor, what: str, model: nn.Module, again: Callable[[], Any] | None = None) -> None:
    """Do nothing where all `values` are finite. `again` runs the pass that gave them once more, to find the module.

    Raises:
        FloatingPointError: they are not; the message names the module and its type.
    """
    if not bool(torch.isfinite(values).all()):
        where = first_not_finite(model, again) if again else ""
        remedy = REMEDIES.get(next(model.parameters()).dtype, REMEDIES[torch.float32])
        raise FloatingPointError(f"{what} not finite{where}; {remedy}")


def first_not_finite(model: nn.Module, again: Callable[[], Any]) -> str:
    """Which module is the first to give a value that is not finite, as a part of a message; nothing where none does."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, out: Any) -> None:
            tensor = out[0] if isinstance(out, tuple) else out
            if not found and isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
                found.append(f", first after {name} ({type(module).__name__}, {tensor.dtype})".replace("torch.", ""))

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            again()
    finally:
        for hook in hooks:
            hook.remove()
    return "".join(found)
