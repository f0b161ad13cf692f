"""Other skills from reasoning-gym, at settings that a very small model can learn.

They are what must not move when the target skill is amplified: arithmetic neighbours of the target
(`chain_sum`, `simple_equations`, `leg_counting`) and unrelated ones (`rotate_matrix`, `manipulate_matrix`).
"""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from cca.problems.gsm_symbolic import Worked, distinct_reserved

_NOT_MIRRORS = ["w_rotate", "w_map", "w_crop", "w_remove_every_nth_row", "w_remove_every_nth_col", "w_zero_divisible"]

SKILLS: dict[str, dict[str, Any]] = {
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=6, operators_weights=[0.5, 0.5, 0.0]),
    "leg_counting": dict(min_animals=1, max_animals=2, min_instances=1, max_instances=2),
    "rotate_matrix": dict(min_n=2, max_n=2, min_rotations=1, max_rotations=2),
    "manipulate_matrix": dict(max_rows=2, max_cols=2, max_transforms=1, **dict.fromkeys(_NOT_MIRRORS, -99)),
}
"""reasoning-gym settings by skill. The weights of `manipulate_matrix` are logarithms: -99 is never."""


@cache
def _dataset(skill: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(skill, seed=0, size=10**9, **SKILLS[skill])


def sample_skill(skill: str, rng: random.Random) -> Worked:
    """Draw one problem of `skill`. There is no worked solution: the solution is the answer itself.

    Raises:
        ValueError: the skill is unknown.
    """
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}; known: {', '.join(SKILLS)}")
    entry = _dataset(skill)[rng.randrange(10**9)]
    answer = str(entry["answer"]).strip()
    return Worked(skill, entry["question"].strip(), answer, answer)


def reserved_skill_instances(skill: str, seed: int) -> Iterator[Worked]:
    """Distinct problems of `skill` that no bundled model was trained on, in an order fixed by `seed`."""
    rng = random.Random(f"{skill}:{seed}")
    return distinct_reserved(lambda: sample_skill(skill, rng))
