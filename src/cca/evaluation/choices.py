"""What a model makes of pivots."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from cca.method.objective import too_long
from cca.model.memory import Halving
from cca.model.numerics import check_finite
from cca.model.read import by_budget, common_start, last_logits
from cca.records import Choice, Pivot, Which


@torch.no_grad()
def choices(
    network: PreTrainedModel,
    pivots: Sequence[Pivot],
    *,
    model: Which,
    batch: int,
    progress: Callable[[int], None] | None = None,
) -> list[Choice]:
    """How probable a model finds the two tokens of each of `pivots`.

    Args:
        network: computes as it is; call this within ``delta.active(network)`` for the updated model.
        pivots: in any order.
        model: which of the two this is, for the records.
        batch: pivots read together, at most.
        progress: told after each batch how many tokens of prefixes it read.

    Returns:
        A choice for each pivot, in their order.

    Raises:
        FloatingPointError: a probability is not finite.
        TooLargeError: a pivot alone does not fit in memory.
    """
    found: dict[int, Choice] = {}
    prefixes = [p.prefix for p in pivots]
    shared = common_start(prefixes, min(map(len, prefixes), default=1) - 1)

    def add(rows: Sequence[int]) -> None:
        chunk = [pivots[i] for i in rows]
        with last_logits(network, [prefixes[i] for i in rows]) as logits:
            tokens = torch.tensor([[p.desired, p.undesired] for p in chunk], device=logits.device)
            both = logits.float().log_softmax(-1).gather(1, tokens)
        check_finite(both, "the probabilities of a pivot are", network)
        for i, pivot, (desired, undesired) in zip(rows, chunk, both.tolist(), strict=True):
            found[i] = Choice(model, pivot.problem, desired, undesired)
        if progress:
            progress(sum(len(p.prefix) for p in chunk))

    passes = Halving[int](lambda i: len(prefixes[i]) - shared, lambda i: too_long(pivots[i]))
    passes.run(by_budget(range(len(pivots)), lambda i: len(prefixes[i]) - shared, network, batch, shared), add)
    return [found[i] for i in range(len(pivots))]
