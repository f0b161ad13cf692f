"""Which penalty (lambda) gives a circuit of a wanted density: a search over whole trainings of gates."""

from collections.abc import Sequence

from cca.records import Trial

TOLERANCE = 0.1
"""A density within this share of the wanted one is as good as it."""
SPARSE = 0.02
"""The paper's circuits are below this density."""


def is_near(density: float, target: float) -> bool:
    """Whether a density is as good as the wanted one."""
    return abs(density - target) <= TOLERANCE * target


def missed(best: Trial, target: float) -> str:
    """What to say of a search whose best trial is not near the wanted density."""
    return f"no lambda gave a density within a tenth of {target:.2%}: {best.penalty:g} gives {best.density:.2%}"


def next_penalty(trials: Sequence[Trial], start: float, target: float | None, limit: int = 12) -> float | None:
    """The penalty to try next for a circuit of density `target`; None once one is near it.

    `start` is tried first; it is doubled or halved until the target lies between two, whose geometric mean is tried
    then: a higher penalty gives a sparser circuit. Without a target, `start` alone is tried.
    """
    if not trials:
        return start
    if target is None or len(trials) >= limit or any(is_near(t.density, target) for t in trials):
        return None
    dense = [t.penalty for t in trials if t.density > target]
    sparse = [t.penalty for t in trials if t.density < target]
    if not dense:
        return min(sparse) / 2
    if not sparse:
        return max(dense) * 2 or 0.01
    low, high = max(dense), min(sparse)
    return (low * high) ** 0.5 if 0 < low < high else None


def best_trial(trials: Sequence[Trial], target: float | None) -> Trial:
    """The trial whose density is nearest to the wanted one; the last where none is wanted."""
    return trials[-1] if target is None else min(trials, key=lambda t: abs(t.density - target))
