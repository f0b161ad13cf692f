"""The only desired-minus-undesired loss in the library (paper section 3, equations of stages 2 and 3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from cca.errors import InputError
from cca.method.options import Loss
from cca.model.read import last_logits
from cca.records import Pivot


def margins(
    logits: Float[Tensor, "B V"], desired: Int[Tensor, " B"], undesired: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """logit[desired] - logit[undesired] for each pivot, in float32.

    Args:
        logits: (B, V).
        desired: (B,) token ids.
        undesired: (B,) token ids.

    Returns:
        (B,) logits.
    """
    pair = logits.gather(1, torch.stack([desired, undesired], dim=1).to(logits.device)).float()
    return pair[:, 0] - pair[:, 1]


def losses(margin: Float[Tensor, " B"], kind: Loss) -> Float[Tensor, " B"]:
    """The loss of each pivot from its margin.

    Args:
        margin: (B,) logits.
        kind: ``linear``: -margin, the paper's; it pays as much where the desired token is preferred already.
            ``logistic``: log(1 + exp(-margin)); its pull on a pivot fades as the desired token wins.

    Returns:
        (B,).
    """
    match kind:
        case "linear":
            return -margin
        case "logistic":
            return softplus(-margin)
    assert_never(kind)


def pivot_loss(
    logits: Float[Tensor, "B V"], desired: Int[Tensor, " B"], undesired: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Mean over pivots of logit[undesired] - logit[desired], a scalar. Shapes as in `margins`."""
    return losses(margins(logits, desired, undesired), "linear").mean()


@contextmanager
def last_margins(network: PreTrainedModel, pivots: Sequence[Pivot]) -> Iterator[Float[Tensor, " P"]]:
    """logit[desired] - logit[undesired] after each prefix, (P,) in the order given, in one pass.

    They, and a backward pass from them, are for use within the context.
    """
    desired, undesired = torch.tensor([p.desired for p in pivots]), torch.tensor([p.undesired for p in pivots])
    with last_logits(network, [p.prefix for p in pivots]) as logits:
        yield margins(logits, desired, undesired)


def too_long(pivot: Pivot, first: str = "") -> str:
    """What to say of a pivot that does not fit in memory even alone. first: what to set before all else."""
    return (
        f"there is too little memory for {pivot.name} alone, whose prefix has {len(pivot.prefix):,} tokens; set "
        f"{first}model.dtype to bfloat16, or model.device_map to auto"
    )


def training_pivots(network: PreTrainedModel, pivots: Sequence[Pivot]) -> list[Pivot]:
    """Those of `pivots` that may be trained on: all but those of validation problems.

    Raises:
        InputError: there are none, one is of a test problem, or a token id is outside the vocabulary.
    """
    vocabulary = network.config.get_text_config().vocab_size
    for pivot in pivots:
        if not isinstance(pivot, Pivot):
            raise InputError(f"{pivot!r:.80} is no pivot; give a list of cca.Pivot(prefix, desired, undesired)")
        largest = max(*pivot.prefix, pivot.desired, pivot.undesired)
        if largest >= vocabulary:
            raise InputError(
                f"{pivot.name} has token {largest}, but the model has only {vocabulary}; use its own tokenizer"
            )
        if pivot.split not in ("train", "validation"):
            raise InputError(f"{pivot.name} is of a {pivot.split} problem, which must not be trained on; leave it out")
    found = [p for p in pivots if p.split == "train"]
    if not found:
        raise InputError(
            f"no pivots to train on: {len(pivots)} were given"
            + (", all of validation problems" if pivots else "")
            + "; find them with cca.find_pivots, or give cca.Pivot(prefix, desired, undesired)"
        )
    return found
