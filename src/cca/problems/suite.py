"""The problems of a run: splits by instance, whole templates held out, and the other skills."""

import random
from collections.abc import Sequence
from itertools import islice

from cca.errors import InputError
from cca.problems.gsm_symbolic import Worked, reserved_instances
from cca.problems.skills import reserved_skill_instances
from cca.records import Problem


def held_out_templates(templates: Sequence[int], share: float, seed: int) -> frozenset[int]:
    """The templates that are kept out of traces and update entirely."""
    count = round(len(templates) * share)
    return frozenset(random.Random(f"held-out:{seed}").sample(sorted(templates), count))


def build_problems(
    *,
    templates: Sequence[int],
    max_number: float | None,
    train: int,
    validation: int,
    test: int,
    held_out: float,
    skills: Sequence[str],
    per_skill: int,
    seed: int,
) -> list[Problem]:
    """Draw all problems of a run; instances of a template are distinct, so splits are disjoint.

    A template with too few distinct instances gives each split its share of those there are.

    Raises:
        InputError: there is nothing to train on or evaluate, or a template is unknown or has next to no instances.
    """
    kept_out = held_out_templates(templates, held_out, seed)
    if not templates or len(kept_out) == len(templates):
        raise InputError("no template is left to train on; list more problems.templates or lower problems.held_out")
    for name, count in (("train", train), ("validation", validation), ("test", test)):
        if count == 0:
            raise InputError(f"problems.{name} is 0, so there are no {name} problems; set it to at least 1")
    problems: list[Problem] = []
    try:
        for template in templates:
            plan = (
                {"held_out": test} if template in kept_out else {"train": train, "validation": validation, "test": test}
            )
            items = list(islice(reserved_instances(template, seed, max_number), sum(plan.values())))
            splits = [split for split, count in scaled(plan, len(items), template).items() for _ in range(count)]
            problems += [_problem(item, i, split) for i, (item, split) in enumerate(zip(items, splits, strict=False))]
        for skill in skills:
            items = islice(reserved_skill_instances(skill, seed), per_skill)
            problems += [_problem(item, i, f"skill:{skill}") for i, item in enumerate(items)]
    except ValueError as error:
        raise InputError(str(error)) from error
    return problems


def scaled(plan: dict[str, int], available: int, template: int) -> dict[str, int]:
    """`plan`, or where fewer instances are `available`, its splits in proportion, each at least 1.

    Raises:
        InputError: there are not even that many.
    """
    wanted = sum(plan.values())
    if available >= wanted:
        return plan
    if available < len(plan):
        raise InputError(
            f"template {template} has only {available} distinct instances; leave it out of problems.templates or "
            "raise problems.max_number"
        )
    return {split: max(1, count * available // wanted) for split, count in plan.items()}


def _problem(item: Worked, number: int, split: str) -> Problem:
    name = f"{item.template}-{number}"
    return Problem(name, item.template, number, split, item.question, item.answer, item.solution)
