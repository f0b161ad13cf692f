"""Problems for the stages of one's own script: from anything that `open_source` knows, or from rows in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cca.errors import InputError
from cca.options import check_seed
from cca.problems.files import rows_in_memory
from cca.problems.gsm_symbolic import Worked
from cca.problems.rows import Columns
from cca.problems.sources import Source, open_source, source_of_rows
from cca.problems.splits import Plan, by_instance, check_splits, dealt, how_split, marked, numbered
from cca.records import Problem, Split

PAPER_SHARES: Plan = {"train": 52, "validation": 8, "test": 40}
"""Per cent of each template's instances (paper section 4)."""


def load_problems(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    templates: Sequence[str | int] | Literal["all"] = "all",
    n: int = 50,
    max_number: float | None = None,
    held_out: float = 0.0,
    columns: Columns | Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Problem]:
    """Problems with their splits, ready for `cca.trace`, `cca.update` and `cca.evaluate`.

    Args:
        source: ``gsm-symbolic``, ``reasoning-gym:NAME``, a folder of annotated templates, a file or folder of JSON
            lines, CSV or Parquet, ``owner/name[:config]`` of the hub; or the rows themselves, mappings with
            ``question`` and ``answer`` and optionally ``solution``, ``template`` and ``split``.
        templates: of these templates alone.
        n: instances of each template that are drawn, at most. Of rows, those of a file or in memory, all are taken.
        max_number: of ``gsm-symbolic``, no number in a question or solution is above this; None: no bound.
        held_out: share of the templates that are only evaluated, with all their instances.
        columns: which column of a row holds what, where it is called otherwise:
            ``{"question": "prompt", "answer": "target"}``.
        seed: of draws and splits.

    Returns:
        The problems. Splits that the source gives are kept where it has training problems (those of rows in memory
        always), rows without one go to training, and if it has no validation problems some of training are taken. Else
        52% of each template's instances go to training, 8% to validation and 40% to test (the paper's shares), each
        split at least one.

    Raises:
        InputError: there is no such source or template, a row is no problem or two contradict each other (they are
            named), a template has fewer than three instances to split, or an argument is out of range.
    """
    if not isinstance(n, int) or n < 1:
        raise InputError(f"n={n!r} asks for no problems; give a number, at least 1")
    if not 0 <= held_out < 1:
        raise InputError(f"held_out={held_out} is no share of the templates; give one from 0 to below 1")
    check_seed(seed)
    opened = _open(source, templates, max_number or None, Columns.of(columns, {}))
    try:
        own = opened.splits and (not isinstance(source, str | Path) or how_split(opened, None) == "source")
        if own:
            if held_out:
                raise InputError(f"{opened.name} says which problems are for what; leave out held_out={held_out}")
            problems = list(_as_marked(opened, seed))
        else:
            drawn = partial(_all_of, limit=None if opened.is_rows else n)
            problems = list(by_instance(opened, PAPER_SHARES, held_out, seed, drawn))
    except ValueError as error:
        raise InputError(str(error)) from error
    check_splits(problems, whole_templates=False)
    return problems


def _open(
    source: Any, templates: Sequence[str | int] | Literal["all"], max_number: float | None, columns: Columns
) -> Source:
    if isinstance(source, str | Path):
        return open_source(source, templates, max_number, columns)
    if max_number is not None:
        raise InputError("max_number bounds the numbers of gsm-symbolic, not of rows in memory; leave it out")
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputError(f"problems are a name, a path or a list of rows, not of type {type(source).__name__}")
    return source_of_rows("the list of rows", rows_in_memory(source, columns)).only(templates)


def _as_marked(source: Source, seed: int) -> Iterator[Problem]:
    """All problems in the source's own splits; validation problems are taken from training where it has none."""
    lacking = "validation" not in source.splits.values()
    for template in source.templates:
        found: dict[Split, Sequence[Worked]] = {**marked(source, template, seed)}
        pool = found.get("train", [])
        if lacking and len(pool) > 1:
            del found["train"]
            kept: Plan = {split: PAPER_SHARES[split] for split in ("train", "validation")}
            found = {**dealt(pool, proportional(kept, len(pool), template)), **found}
        yield from numbered(found)


def _all_of(source: Source, template: str, plan: Plan, seed: int, limit: int | None) -> Iterator[Problem]:
    """All instances of a template, at most `limit`, in the proportions of `plan`."""
    items = list(islice(source.instances(template, seed), limit))
    return numbered(dealt(items, proportional(plan, len(items), template)))


def proportional(weights: Plan, count: int, template: str) -> Plan:
    """`count` instances of `template` in proportion to `weights`, each split at least one (one by one to the split that
    lacks most).

    Raises:
        InputError: there are fewer instances than splits.
    """
    if count < len(weights):
        raise InputError(
            f"template {template} has only {count} instances, too few for {', '.join(weights)}; leave it out, raise n "
            "or max_number, or give each row its split"
        )
    total = sum(weights.values())
    plan: dict[Split, int] = dict.fromkeys(weights, 1)
    for _ in range(count - len(weights)):
        plan[max(plan, key=lambda split: weights[split] * count / total - plan[split])] += 1
    return plan
