"""The only desired-minus-undesired loss in the library (paper section 3, equations of stages 2 and 3)."""

from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Literal["linear", "logistic"]


def margins(logits: Tensor, desired: Tensor, undesired: Tensor) -> Tensor:
    """logit[desired] - logit[undesired] for each pivot, in float32.

    logits (B, V); desired and undesired (B,) token ids; returns (B,).
    """
    pair = logits.gather(1, torch.stack([desired, undesired], dim=1).to(logits.device)).float()
    return pair[:, 0] - pair[:, 1]


def losses(margin: Tensor, kind: Loss) -> Tensor:
    """The loss of each pivot from its margin, (B,) to (B,).

    ``linear``: -margin, the paper's; it pays for a pivot that is long won as much as for one that is lost.
    ``logistic``: log(1 + exp(-margin)); its pull on a pivot fades as the pivot is won.
    """
    match kind:
        case "linear":
            return -margin
        case "logistic":
            return softplus(-margin)
    assert_never(kind)


def pivot_loss(logits: Tensor, desired: Tensor, undesired: Tensor) -> Tensor:
    """Mean over pivots of logit[undesired] - logit[desired]. Shapes as in `margins`; returns a scalar."""
    return losses(margins(logits, desired, undesired), "linear").mean()
