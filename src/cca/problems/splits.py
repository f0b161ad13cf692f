"""The problems of a run and their splits: by instance, by whole template, or as the source itself has them."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from cca.errors import InputError
from cca.problems.files import same_question
from cca.problems.gsm_symbolic import Worked
from cca.problems.skills import reserved_skill_instances
from cca.problems.sources import Source
from cca.records import Problem

SplitBy = Literal["instance", "template", "source"]
Plan = Mapping[str, int]
"""Instances a template by split."""


def held_out_templates(templates: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The templates that are kept out of traces and update entirely."""
    count = round(len(templates) * share)
    return frozenset(random.Random(f"held-out:{seed}").sample(sorted(templates, key=_natural), count))


def _natural(template: str) -> tuple[int, str]:
    return (int(template), "") if template.isdigit() else (-1, template)


def how_split(source: Source, split_by: SplitBy | None) -> SplitBy:
    """`split_by`, by default the source's own splits where it has training problems, else by instance."""
    return split_by or ("source" if "train" in source.splits.values() else "instance")


def build_problems(
    source: Source,
    *,
    split_by: SplitBy | None = None,
    train: int,
    validation: int,
    test: int,
    held_out: float,
    transfer: Sequence[str] = (),
    retention: Sequence[str] = (),
    per_skill: int = 0,
    seed: int,
) -> list[Problem]:
    """Draw all problems of a run.

    split_by: ``instance``: each template's instances go to training, validation and test, and a share `held_out` of
    the templates to nothing but evaluation; ``template``: a whole template goes to one of the three, so that every
    test template is new; ``source``: as the source says. The counts are instances a template; a template with fewer
    distinct instances gives each split its share of those there are.

    Raises:
        InputError: there is nothing to train on or evaluate, or a template has next to no instances.
    """
    wanted = {"train": train, "validation": validation, "test": test}
    for name, count in wanted.items():
        if count == 0:
            raise InputError(f"problems.{name} is 0, so there are no {name} problems; set it to at least 1")
    problems: list[Problem] = []
    try:
        match how_split(source, split_by):
            case "instance":
                problems += _by_instance(source, wanted, held_out, seed)
            case "template":
                problems += _by_template(source, wanted, seed)
            case "source":
                problems += _by_source(source, wanted, seed)
        for kind, skills in (("transfer", transfer), ("retention", retention)):
            for skill in skills:
                items = islice(reserved_skill_instances(skill, seed), per_skill)
                problems += [_problem(item, i, f"{kind}:{skill}") for i, item in enumerate(items)]
    except ValueError as error:
        raise InputError(str(error)) from error
    check_splits(problems, whole_templates=how_split(source, split_by) == "template")
    return problems


def _by_instance(source: Source, wanted: Plan, held_out: float, seed: int) -> Iterator[Problem]:
    kept_out = held_out_templates(source.templates, held_out, seed)
    if len(kept_out) == len(source.templates):
        raise InputError("no template is left to train on; list more problems.templates or lower problems.held_out")
    for template in source.templates:
        yield from _drawn(source, template, {"held_out": wanted["test"]} if template in kept_out else wanted, seed)


def _by_template(source: Source, wanted: Plan, seed: int) -> Iterator[Problem]:
    order = sorted(source.templates, key=_natural)
    if len(order) < len(wanted):
        raise InputError(f"{source.name} has {len(order)} templates, too few; set problems.split_by to instance")
    random.Random(f"split-by-template:{seed}").shuffle(order)
    train, validation = (max(1, round(wanted[s] * len(order) / sum(wanted.values()))) for s in ("train", "validation"))
    split_of = dict.fromkeys(order, "test")
    split_of |= dict.fromkeys(order[:train], "train") | dict.fromkeys(order[train : train + validation], "validation")
    for template in source.templates:
        yield from _drawn(source, template, {split_of[template]: sum(wanted.values())}, seed)


def _by_source(source: Source, wanted: Plan, seed: int) -> Iterator[Problem]:
    """Validation is taken from training where the source has none; test problems must be there."""
    own = Counter(source.splits.values())
    for split in ("train", "test"):
        if not own[split]:
            raise InputError(f"{source.name} has no {split} split; set problems.split_by to instance or template")
    for template in source.templates:
        items = list(source.instances(template, seed))
        by_split: dict[str, list[Worked]] = {}
        for item in items:
            by_split.setdefault(source.splits.get(item.question, "train"), []).append(item)
        if not own["validation"]:
            pool = by_split.pop("train", [])
            plan = {split: wanted[split] for split in ("train", "validation")}
            counts = scaled(plan, len(pool), f"training problems of template {template}:") if pool else {}
            for split, count in counts.items():
                by_split[split], pool = pool[:count], pool[count:]
        number = 0
        for split, found in by_split.items():
            for item in found[: wanted[split]]:
                yield _problem(item, number, split)
                number += 1


def _drawn(source: Source, template: str, plan: Plan, seed: int) -> Iterator[Problem]:
    items = list(islice(source.instances(template, seed), sum(plan.values())))
    counts = scaled(plan, len(items), f"distinct instances of template {template}:")
    splits = [split for split, count in counts.items() for _ in range(count)]
    for i, (item, split) in enumerate(zip(items, splits, strict=False)):
        yield _problem(item, i, split)


def scaled(plan: Plan, available: int, what: str) -> Plan:
    """`plan`, or where fewer are `available`, its splits in proportion, each at least 1.

    Raises:
        InputError: there are not even that many. `what` says of what.
    """
    wanted = sum(plan.values())
    if available >= wanted:
        return plan
    if available < len(plan):
        raise InputError(
            f"only {available} {what} too few for {', '.join(plan)}; leave it out of problems.templates, raise "
            "problems.max_number or choose a source with more"
        )
    return {split: max(1, count * available // wanted) for split, count in plan.items()}


def _problem(item: Worked, number: int, split: str) -> Problem:
    name = f"{item.template}-{number}"
    return Problem(name, item.template, number, split, item.question, item.answer, item.solution)


def check_splits(problems: Sequence[Problem], *, whole_templates: bool) -> None:
    """See that no two problems are the same and that templates kept out of the update are in no other split.

    Raises:
        InputError: two problems have one name or one question. It names them.
    """
    names: dict[str, Problem] = {}
    questions: dict[str, Problem] = {}
    splits: dict[str, set[str]] = {}
    for problem in problems:
        if problem.id in names:
            raise InputError(f"two problems are called {problem.id}; rename template {problem.template}")
        names[problem.id] = problem
        asked = same_question(problem.question)
        if asked in questions and ":" not in problem.split:
            raise InputError(
                f"{problem.id} ({problem.split}) asks what {questions[asked].id} ({questions[asked].split}) asks; "
                "leave one of them out, or the splits would not be disjoint"
            )
        questions[asked] = problem
        splits.setdefault(problem.template, set()).add(problem.split)
    for template, found in splits.items():
        if len(found) > 1 and (whole_templates or "held_out" in found):
            raise InputError(f"template {template} is in {', '.join(sorted(found))}, and should be in one split alone")


def describe_splits(problems: Sequence[Problem]) -> dict[str, Any]:
    """Problems and templates of each split, for the manifest."""
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.split, []).append(problem)
    return {
        split: {"problems": len(items), "templates": sorted({p.template for p in items}, key=_natural)}
        for split, items in found.items()
    }
