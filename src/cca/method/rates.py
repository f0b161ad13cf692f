"""Learning rates of an update that is told none. Nothing here needs torch or pydantic."""

from typing import Literal

OF_ADAM = {"lora-pivots": 0.003, "lora": 0.0001, "finetune": 0.00001}
"""What Adam trains, and not plain gradient descent: its steps are of much the same size on every model."""
OF_THE_BUNDLED_MODEL = 0.2
"""Gradient descent's, chosen on validation problems of other seeds."""


def default_rate(method: str) -> float | Literal["auto"]:
    """What `method` of `UpdateOptions` has on any model: a rate of gradient descent says nothing about another."""
    return OF_ADAM.get(method, "auto")
