"""What `cca problems` prints: the problems of a source, or a verdict on each of its templates."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cca.errors import InputError
from cca.grading.answers import GRADERS, final_text
from cca.problems.sources import Source, is_annotated, open_source
from cca.problems.templates.annotated import TemplateCheck, check, read_templates


class Listed(NamedTuple):
    """At most so many distinct problems of a template, a JSON object each; or why there are none."""

    template: str
    lines: tuple[str, ...]
    error: str = ""


def listed(source: Source, count: int, seed: int) -> Iterator[Listed]:
    """The problems of each template. One of which a problem is wrong gives none."""
    for template in source.templates:
        try:
            yield Listed(template, tuple(_lines(source, template, count, seed)))
        except InputError as error:
            yield Listed(template, (), str(error))


def _lines(source: Source, template: str, count: int, seed: int) -> Iterator[str]:
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


def verdicts(name: str, count: int, seed: int) -> Iterator[TemplateCheck]:
    """One verdict a template of the source called `name`: distinct instances, each with the answer that its solution
    ends with; an annotated one gives its published question and answer as well.

    Raises:
        InputError: there is no such source, or it cannot be read. An annotated template that is wrong is a verdict.
    """
    if is_annotated(Path(name)):
        for template, found in read_templates(name).items():
            if isinstance(found, InputError):
                yield TemplateCheck(template, 0, None, (str(found),), ())
            else:
                yield check(found, count, seed)
        return
    source = open_source(name)
    for template in source.templates:
        items = list(islice(source.instances(template, seed), count))
        wrong = [i for i in items if not GRADERS["exact"](final_text(i.solution), i.answer).correct]
        failures = [
            f"the solution of {w.question[:60]!r} ends with {final_text(w.solution)!r}, not {w.answer!r}" for w in wrong
        ]
        if not items:
            failures.append("no instances")
        yield TemplateCheck(template, len(items), None, tuple(failures), ())
