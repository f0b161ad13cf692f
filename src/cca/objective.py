"""The only desired-minus-undesired loss in the library (paper section 3, equations of stages 2 and 3)."""

from torch import Tensor


def margins(logits: Tensor, desired: Tensor, undesired: Tensor) -> Tensor:
    """logit[desired] - logit[undesired] for each pivot, in float32.

    logits (B, V); desired and undesired (B,) token ids; returns (B,).
    """
    logits = logits.float()
    return (logits.gather(1, desired[:, None]) - logits.gather(1, undesired[:, None])).squeeze(1)


def pivot_loss(logits: Tensor, desired: Tensor, undesired: Tensor) -> Tensor:
    """Mean over pivots of logit[undesired] - logit[desired]. Shapes as in `margins`; returns a scalar."""
    return -margins(logits, desired, undesired).mean()
