"""Other skills from reasoning-gym: the target's neighbours, and what must not move when the target is amplified."""

import random
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from cca.errors import InputError
from cca.problems.gsm_symbolic import Worked, distinct_reserved

_NOT_MIRRORS = ["w_rotate", "w_map", "w_crop", "w_remove_every_nth_row", "w_remove_every_nth_col", "w_zero_divisible"]

SKILLS: dict[str, dict[str, Any]] = {
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=6, operators_weights=[0.5, 0.5, 0.0]),
    "leg_counting": dict(min_animals=1, max_animals=2, min_instances=1, max_instances=2),
    "rotate_matrix": dict(min_n=2, max_n=2, min_rotations=1, max_rotations=2),
    "manipulate_matrix": dict(max_rows=2, max_cols=2, max_transforms=1, **dict.fromkeys(_NOT_MIRRORS, -99)),
}
"""Settings that a very small model can learn, by skill; any other skill has reasoning-gym's own. The weights of
`manipulate_matrix` are logarithms: -99 is never."""


@cache
def _dataset(skill: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(skill, seed=0, size=10**9, **SKILLS.get(skill, {}))


def check_skill(skill: str) -> None:
    """See that reasoning-gym has `skill`.

    Raises:
        InputError: it has not.
    """
    from reasoning_gym.factory import DATASETS

    if skill not in DATASETS:
        near = get_close_matches(skill, DATASETS, 3) or list(SKILLS)
        raise InputError(f"reasoning-gym has no skill {skill!r}; it has for example {', '.join(near)}")


def sample_skill(skill: str, rng: random.Random) -> Worked:
    """Draw one problem of `skill`. There is no worked solution: the solution is the answer itself.

    Raises:
        InputError: the skill is unknown.
    """
    check_skill(skill)
    entry = _dataset(skill)[rng.randrange(10**9)]
    answer = str(entry["answer"]).strip()
    return Worked(skill, entry["question"].strip(), answer, answer)


def reserved_skill_instances(skill: str, seed: int) -> Iterator[Worked]:
    """Distinct problems of `skill` that no bundled model was trained on, in an order fixed by `seed`."""
    rng = random.Random(f"{skill}:{seed}")
    return distinct_reserved(lambda: sample_skill(skill, rng))
