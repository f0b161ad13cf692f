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


def missed(trials: Sequence[Trial], target: float) -> str:
    """What to say of a search that found no density near the wanted one."""
    best = best_trial(trials, target)
    said = f"no lambda gave a density within a tenth of {target:.2%}: {best.penalty:g} gives {best.density:.2%}"
    if _stuck(trials, target):
        low, *_, high = sorted(t.penalty for t in trials[-3:])
        said += f"; it does not move between lambda {low:g} and {high:g}, so the search was given up"
    return said


def _stuck(trials: Sequence[Trial], target: float) -> bool:
    """Whether the target lies below all trials, of which the last three gave one density. (One that is empty grows as
    the penalty falls.)"""
    return len(trials) > 2 and min(t.density for t in trials) > target and len({t.density for t in trials[-3:]}) == 1


def next_penalty(trials: Sequence[Trial], start: float, target: float | None, limit: int = 12) -> float | None:
    """The penalty to try next for a circuit of density `target`; None once one is near it, or where none will be.

    `start` is tried first; it is doubled or halved until the target lies between two, whose geometric mean is tried
    then, until they are within a hundredth of each other: a higher penalty gives a sparser circuit. Where a doubling
    does not move the density, ten times the penalty is tried, and where that does not either, the search ends. Without
    a target, `start` alone is tried.
    """
    if not trials:
        return start
    if target is None or len(trials) >= limit or any(is_near(t.density, target) for t in trials):
        return None
    if _stuck(trials, target):
        return None
    factor = 10 if len(trials) > 1 and trials[-1].density == trials[-2].density else 2
    dense = [t.penalty for t in trials if t.density > target]
    sparse = [t.penalty for t in trials if t.density < target]
    if not dense:
        return min(sparse) / factor
    if not sparse:
        return max(dense) * factor or 0.01
    low, high = max(dense), min(sparse)
    return (low * high) ** 0.5 if 0 < low * 1.01 < high else None


def best_trial(trials: Sequence[Trial], target: float | None) -> Trial:
    """The trial whose density is nearest to the wanted one; the last where none is wanted."""
    return trials[-1] if target is None else min(trials, key=lambda t: abs(t.density - target))
