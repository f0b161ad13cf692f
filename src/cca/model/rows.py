"""Some rows of a weight, and their change."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows (n,) of one weight change, and by how much (n, E) in float32."""

    index: Int[Tensor, " n"]
    values: Float[Tensor, "n E"]

    def at(self, weight: Tensor) -> "Rows":
        """The same, where `weight` is, and without gradients."""
        return Rows(self.index.to(weight.device), self.values.detach().to(weight.device))
