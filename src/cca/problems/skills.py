"""Other skills from reasoning-gym, at settings that a very small model can learn.

They are what must not move when the target skill is amplified: arithmetic neighbours of the target
(`chain_sum`, `simple_equations`, `leg_counting`, `gcd`) and unrelated ones (`rotate_matrix`).
"""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from cca.problems.gsm_symbolic import Worked, is_reserved

SKILLS: dict[str, dict[str, Any]] = {
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=6, operators_weights=[0.5, 0.5, 0.0]),
    "gcd": dict(min_numbers=2, max_numbers=2, min_value=2, max_value=30),
    "leg_counting": dict(min_animals=1, max_animals=2, min_instances=1, max_instances=2),
    "family_relationships": dict(min_family_size=3, max_family_size=3),
    "needle_haystack": dict(min_num_statements=2, max_num_statements=3),
    "rotate_matrix": dict(min_n=2, max_n=2, min_rotations=1, max_rotations=2),
}
"""reasoning-gym settings by skill."""

LEARNED = ("chain_sum", "simple_equations", "gcd", "leg_counting", "rotate_matrix")
"""Those that the bundled model learned; it was trained on the others in vain."""


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
    """Distinct problems of `skill` that no bundled model was trained on, in an order fixed by `seed`.

    Ends where 2,000 draws in a row gave nothing new.
    """
    rng = random.Random(f"{skill}:{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 2_000:
        item = sample_skill(skill, rng)
        if is_reserved(item.question) and item.question not in seen:
            seen.add(item.question)
            misses = 0
            yield item
        else:
            misses += 1
