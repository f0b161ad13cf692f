"""What `cca problems` prints: the problems of a source, or a verdict on each of its templates."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cca.errors import InputError
from cca.grading.answers import Grader, final_text
from cca.grading.graders import load_grader
from cca.problems.gsm_symbolic import Worked
from cca.problems.rows import Columns
from cca.problems.sources import Source, is_annotated, open_source, refuse_columns
from cca.problems.templates.annotated import TemplateCheck, check, read_templates

FEW = 3
"""Problems of a template that are named."""
_TEMPLATES = 20
"""Templates of a file that have a verdict each."""


class Listed(NamedTuple):
    """Some distinct problems of a template, a JSON object each; or why there are none."""

    template: str
    lines: tuple[str, ...]
    error: str = ""


def listed(source: Source, count: int | None, seed: int) -> Iterator[Listed]:
    """At most `count` problems of each template (None: all there are). One of which a problem is wrong gives none."""
    for template in source.templates:
        try:
            yield Listed(template, tuple(_lines(source, template, count, seed)))
        except InputError as error:
            yield Listed(template, (), str(error))


def _lines(source: Source, template: str, count: int | None, seed: int) -> Iterator[str]:
    for number, item in enumerate(islice(source.instances(template, seed), count)):
        record = {
            "question": item.question,
            "answer": item.answer,
            "solution": item.solution,
            "template": item.template,
            "instance": number,
        }
        if item.question in source.splits:
            record["split"] = source.splits[item.question]
        yield json.dumps(record, ensure_ascii=False)


def verdicts(
    name: str, count: int, seed: int, columns: Columns | None = None, grader: str = "number"
) -> Iterator[TemplateCheck]:
    """One verdict a template of the source called `name`: distinct instances, each with an own solution that the grader
    of a run takes for right; an annotated one gives its published question and answer as well.

    Args:
        name: as of `open_source`.
        count: instances of a template that are drawn. Rows are all looked at; those of many templates together.
        seed: of what is drawn.
        columns: which column of a row holds what.
        grader: its name.

    Raises:
        InputError: there is no such source or grader, or it cannot be read. An annotated template that is wrong is a
            verdict.
    """
    if is_annotated(Path(name)):
        refuse_columns(name, columns)
        for template, found in read_templates(name).items():
            if isinstance(found, InputError):
                yield TemplateCheck(template, 0, None, (str(found),), ())
            else:
                yield check(found, count, seed)
        return
    source, grade = open_source(name, columns=columns, grader=grader), load_grader(grader)
    if not source.is_rows:
        for template in source.templates:
            items = [("", item) for item in islice(source.instances(template, seed), count)]
            yield _verdict(template, items, grade, grader)
        return
    together = len(source.templates) > _TEMPLATES
    for template in [None] if together else source.templates:
        items = [(f"{row.place}: ", row.worked) for row in source.rows if template in (None, row.worked.template)]
        yield _verdict(template or f"{name} ({len(source.templates)} templates)", items, grade, grader)


def _verdict(name: str, items: Sequence[tuple[str, Worked]], grade: Grader, grader: str) -> TemplateCheck:
    """items: each with where it stands."""
    wrong = [(place, item) for place, item in items if not grade(item.solution, item.answer).correct]
    failures = [place + _contradiction(item, grader) for place, item in wrong[:FEW]]
    if len(wrong) > FEW:
        failures.append(f"and {len(wrong) - FEW} more, {len(wrong)} in all")
    if not items:
        failures.append("no instances")
    unsolved = sum(_is_bare(item) for _, item in items)
    note = f"{unsolved} of them have no worked solution; of these it was seen that the grader reads the answer"
    return TemplateCheck(name, len(items), None, tuple(failures), (note,) if unsolved else ())


def _is_bare(item: Worked) -> bool:
    return item.solution in (item.answer, f"#### {item.answer}")


def _contradiction(item: Worked, grader: str) -> str:
    ends = final_text(item.solution)
    said = f"the solution of {item.question[:60]!r} ends with {ends[-60:]!r}"
    if _is_bare(item):
        return f"the grader {grader} cannot read the answer {ends[-60:]!r} of {item.question[:60]!r}; choose another"
    if ends == item.answer:
        return f"{said}, which the grader {grader} does not take for right; choose another grader"
    return f"{said}, not {item.answer[:60]!r}"
