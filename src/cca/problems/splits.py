"""The problems of a run and their splits: by instance, by whole template, or as the source itself has them."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field

from cca.errors import InputError
from cca.options import CountOrNone, Options, Share
from cca.problems.files import natural_order
from cca.problems.gsm_symbolic import SMALL_TEMPLATES, Worked
from cca.problems.rows import Columns, same_question
from cca.problems.skills import reserved_skill_instances
from cca.problems.sources import GSM_SYMBOLIC, Source, open_source
from cca.records import Problem, ProblemSizes, Split, SplitSize

SplitBy = Literal["instance", "template", "source"]
Plan = Mapping[Split, int]
"""Instances a template by split."""
Drawn = Callable[[Source, str, Plan, int], Iterator[Problem]]
"""From a source, one of its templates, a plan and a seed: problems of that template, in the splits of the plan."""


def _for_the_bundled_model(value: Any, otherwise: Any) -> Any:
    """A default that depends on the source."""
    return Field(default_factory=lambda data: value if data.get("source") == GSM_SYMBOLIC else otherwise)


class ProblemOptions(Options):
    """Where a run's problems come from, how they are split, and how their answers are graded."""

    source: str = GSM_SYMBOLIC
    """``gsm-symbolic`` (reasoning-gym's generators), ``reasoning-gym:NAME``, a file of JSON lines, CSV or Parquet with
    ``question`` and ``answer``, a folder of such files or annotated templates, or ``owner/name:config`` of the hub."""
    columns: Columns = Columns()
    """Which column of a file's rows holds what. To name some is enough: ``{answer = 'target'}``."""
    templates: tuple[str | int, ...] | Literal["all"] = _for_the_bundled_model(SMALL_TEMPLATES, "all")
    """Names of templates, or ``all`` of the source."""
    max_number: Annotated[float, Field(ge=0)] = _for_the_bundled_model(60, 0)
    """Of ``gsm-symbolic``: no number in a question or solution is above this, or else the instance is redrawn. 0: no
    bound."""
    split_by: SplitBy | None = None
    """``instance``: a template's instances go to training, validation and test (the paper's); ``template``: whole
    templates do, so that every test template is new; ``source``: as the file says. Default: ``source`` where it has
    training problems or several splits, else ``instance``."""
    train: CountOrNone = 14
    """Instances per template that give pivots."""
    validation: CountOrNone = 8
    """Instances per template that choose the step of the update."""
    test: CountOrNone = 28
    """Instances per template that are only evaluated."""
    held_out: Share = 0.2
    """Share of the templates that are kept out of the update entirely and only evaluated; for ``instance`` alone."""
    grader: str = "number"
    """``number`` (the last one, as GSM-Symbolic does), ``stated`` (the one after the first "answer is", "answer:" or
    ``####`` or in the first box, else the last), ``exact``, ``math-verify`` or your own ``module:function``."""

    def counts(self) -> dict[Split, int]:
        """Instances a template by split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def chosen_source(options: ProblemOptions) -> Source:
    """The source that `options` name, of it the templates that they name.

    Raises:
        InputError: as `open_source`.
    """
    max_number = options.max_number or None
    return open_source(options.source, options.templates, max_number, options.columns, options.grader)


def held_out_templates(templates: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The templates that are kept out of traces and update entirely."""
    count = round(len(templates) * share)
    return frozenset(random.Random(f"held-out:{seed}").sample(sorted(templates, key=natural_order), count))


def how_split(source: Source, split_by: SplitBy | None) -> SplitBy:
    """`split_by`, by default the source's own splits where it has training problems or several, else by instance."""
    own = set(source.splits.values())
    return split_by or ("source" if "train" in own or len(own) > 1 else "instance")


def build_problems(
    source: Source,
    options: ProblemOptions,
    *,
    transfer: Sequence[str] = (),
    retention: Sequence[str] = (),
    per_skill: int = 0,
    shown: Collection[str] = (),
    seed: int,
) -> list[Problem]:
    """Draw all problems of a run.

    Args:
        source: where the target's problems come from (`chosen_source`).
        options: how they are split. Their counts are instances a template; a template with fewer distinct instances
            gives each split its share of those there are. By instance, each template's instances go to training,
            validation and test, and a share `held_out` of the templates to nothing but evaluation; by template, a whole
            template goes to one of the three, so that every test template is new; by source, as the source says.
        transfer: skills of reasoning-gym that neighbour the target.
        retention: skills that must not move.
        per_skill: problems a skill.
        shown: questions that no problem of a skill may ask, since prompts show them.
        seed: of every draw.

    Raises:
        InputError: there is nothing to train on or evaluate, or a template has next to no instances.
    """
    wanted: Plan = options.counts()
    for name, count in wanted.items():
        if count == 0:
            raise InputError(f"problems.{name} is 0, so there are no {name} problems; set it to at least 1")
    problems: list[Problem] = []
    asked = set(map(same_question, shown))
    try:
        match how_split(source, options.split_by):
            case "instance":
                problems += by_instance(source, wanted, options.held_out, seed, counted)
            case "template":
                problems += _by_template(source, wanted, seed)
            case "source":
                problems += _by_source(source, wanted, seed)
        skills: dict[Split, Sequence[str]] = {"transfer": transfer, "retention": retention}
        for split, names in skills.items():
            for skill in names:
                fresh = (i for i in reserved_skill_instances(skill, seed) if same_question(i.question) not in asked)
                items = islice(fresh, per_skill)
                problems += [new_problem(item, i, split, skill) for i, item in enumerate(items)]
    except ValueError as error:
        raise InputError(str(error)) from error
    check_splits(problems, whole_templates=how_split(source, options.split_by) == "template")
    return problems


def by_instance(source: Source, wanted: Plan, held_out: float, seed: int, drawn: Drawn) -> Iterator[Problem]:
    """Each template's instances in the splits of `wanted`; those of a share `held_out` of the templates are kept out.

    Raises:
        InputError: no template is left to train on, or as `drawn`.
    """
    kept_out = held_out_templates(source.templates, held_out, seed)
    if len(kept_out) == len(source.templates):
        raise InputError("no template is left to train on; list more problems.templates or lower problems.held_out")
    for template in source.templates:
        plan: Plan = {"held_out": wanted["test"]} if template in kept_out else wanted
        yield from drawn(source, template, plan, seed)


def _by_template(source: Source, wanted: Plan, seed: int) -> Iterator[Problem]:
    order = sorted(source.templates, key=natural_order)
    if len(order) < len(wanted):
        raise InputError(f"{source.name} has {len(order)} templates, too few; set problems.split_by to instance")
    random.Random(f"split-by-template:{seed}").shuffle(order)
    train, validation = (max(1, round(wanted[s] * len(order) / sum(wanted.values()))) for s in ("train", "validation"))
    place = {template: number for number, template in enumerate(order)}
    for template in source.templates:
        early: Split = "train" if place[template] < train else "validation"
        split: Split = early if place[template] < train + validation else "test"
        yield from counted(source, template, {split: sum(wanted.values())}, seed)


def _by_source(source: Source, wanted: Plan, seed: int) -> Iterator[Problem]:
    """Validation is taken from training where the source has none; test problems must be there."""
    own = Counter(source.splits.values())
    for split in ("train", "test"):
        if not own[split]:
            raise InputError(f"{source.name} has no {split} split; set problems.split_by to instance or template")
    for template in source.templates:
        by_split = marked(source, template, seed)
        if not own["validation"]:
            pool = by_split.pop("train", [])
            plan: Plan = {"train": wanted["train"], "validation": wanted["validation"]}
            counts = scaled(plan, len(pool), f"training problems of template {template}:") if pool else {}
            for split, count in counts.items():
                by_split[split], pool = pool[:count], pool[count:]
        yield from numbered({split: found[: wanted[split]] for split, found in by_split.items()})


def marked(source: Source, template: str, seed: int) -> dict[Split, list[Worked]]:
    """A template's instances by the split that the source gives them, which is training where it gives none."""
    by_split: dict[Split, list[Worked]] = {}
    for item in source.instances(template, seed):
        by_split.setdefault(source.splits.get(item.question, "train"), []).append(item)
    return by_split


def counted(source: Source, template: str, plan: Plan, seed: int) -> Iterator[Problem]:
    """As many instances of a template as `plan` says, or where there are fewer, each split's share of them.

    Raises:
        InputError: as `scaled`.
    """
    items = list(islice(source.instances(template, seed), sum(plan.values())))
    return numbered(dealt(items, scaled(plan, len(items), f"distinct instances of template {template}:")))


def dealt(items: Sequence[Worked], plan: Plan) -> dict[Split, Sequence[Worked]]:
    """The first items for the first split of `plan`, the next for the next."""
    found: dict[Split, Sequence[Worked]] = {}
    start = 0
    for split, count in plan.items():
        found[split] = items[start : start + count]
        start += count
    return found


def numbered(by_split: Mapping[Split, Sequence[Worked]]) -> Iterator[Problem]:
    """One template's instances as problems, numbered through."""
    number = 0
    for split, items in by_split.items():
        for item in items:
            yield new_problem(item, number, split)
            number += 1


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


def new_problem(item: Worked, number: int, split: Split, skill: str | None = None) -> Problem:
    """Instance `number` of its template as a problem."""
    name = f"{item.template}-{number}"
    return Problem(name, item.template, number, split, item.question, item.answer, item.solution, skill)


def check_splits(problems: Sequence[Problem], *, whole_templates: bool) -> None:
    """See that no two problems are the same and that templates kept out of the update are in no other split.

    Raises:
        InputError: two problems have one name or one question. It names them.
    """
    names: dict[str, Problem] = {}
    questions: dict[str, Problem] = {}
    splits: dict[str, set[Split]] = {}
    for problem in problems:
        if problem.id in names:
            raise InputError(f"two problems are called {problem.id}; rename template {problem.template}")
        names[problem.id] = problem
        asked = same_question(problem.question)
        if asked in questions and problem.skill is None:
            raise InputError(
                f"{problem.id} ({problem.split}) asks what {questions[asked].id} ({questions[asked].split}) asks; "
                "leave one of them out, or the splits would not be disjoint"
            )
        questions[asked] = problem
        splits.setdefault(problem.template, set()).add(problem.split)
    for template, found in splits.items():
        if len(found) > 1 and (whole_templates or "held_out" in found):
            raise InputError(f"template {template} is in {', '.join(sorted(found))}, and should be in one split alone")


def describe_splits(problems: Sequence[Problem], source: str, split_by: SplitBy) -> ProblemSizes:
    """How many problems of which templates each set holds, by `ProblemSet.name`.

    source: where they are from. split_by: how they were split (`how_split`).
    """
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.set.name, []).append(problem)
    return ProblemSizes(
        source,
        split_by,
        {
            name: SplitSize(len(items), sorted({p.template for p in items}, key=natural_order))
            for name, items in found.items()
        },
    )
