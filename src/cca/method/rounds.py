"""Further rounds: trace again with the updated model, find new pivots and a new circuit, and update on top."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from cca.errors import NothingToLearnError
from cca.model.delta import Delta
from cca.model.open import Model


class Round(NamedTuple):
    """What one round changed, on top of the rounds before. `best_step` 0: it did not help."""

    delta: Delta
    best_step: int


class Rounds(NamedTuple):
    """The sum of the deltas of all rounds that helped, and what was lacking where that ended them (else None)."""

    total: Delta
    lacking: str | None


def further_rounds(model: Model, first: Round, again: Callable[[int, Delta], Round], rounds: int) -> Rounds:
    """At most `rounds` rounds, each from the model as the rounds before left it.

    Ends with the first round whose update does not raise validation accuracy, or that finds nothing more to learn from.

    Args:
        model: put into the state that the rounds before left it in while a round works, and back.
        first: the first round, done.
        again: does a round, given its number and the sum of the deltas before it, on the model as it then is.
        rounds: at most so many in all.
    """
    total, last = first.delta, first
    for number in range(2, rounds + 1):
        if last.best_step == 0:
            break
        try:
            with total.active(model), model.engine.changed(total) if model.engine.apart else nullcontext():
                last = again(number, total)
        except NothingToLearnError as error:
            return Rounds(total, f"round {number - 1} was the last: {error}")
        if last.best_step > 0:
            total = total.plus(last.delta)
    return Rounds(total, None)
