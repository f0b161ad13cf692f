"""Where the problems of a run come from, under one name.

``gsm-symbolic``: reasoning-gym's generators. ``reasoning-gym:NAME``: another of its skills. A folder of annotated
templates, a file or a folder of JSON lines, CSV or Parquet, or ``owner/name[:config]`` on the hub.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from cca.errors import InputError
from cca.problems import files, skills
from cca.problems.formats import is_template
from cca.problems.gsm_symbolic import ALL_TEMPLATES, Worked, generators, reserved_instances
from cca.problems.rows import Columns, Row, same_question
from cca.problems.templates.annotated import read_templates
from cca.records import Split

GSM_SYMBOLIC = "gsm-symbolic"
REASONING_GYM = "reasoning-gym:"


@dataclass(frozen=True)
class Source:
    """Problems by template.

    Attributes:
        name: as `open_source` was asked for it.
        templates: their names.
        instances: the distinct instances of a template, in an order that a seed fixes.
        rows: those that somebody wrote, where the instances are such rows, so that there are no more to be drawn.
        left_out: where the rows stand that prompts show.
    """

    name: str
    templates: tuple[str, ...]
    instances: Callable[[str, int], Iterator[Worked]]
    rows: tuple[Row, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_rows(self) -> bool:
        return bool(self.rows)

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """Which split the source itself gives a question; empty where it gives none."""
        return {row.worked.question: row.split for row in self.rows if row.split}

    def only(self, templates: Sequence[str | int] | Literal["all"]) -> "Source":
        """The same source with those templates alone.

        Raises:
            InputError: it has no such template.
        """
        if isinstance(templates, str) and templates != "all":
            raise InputError(f'templates={templates!r} is no list; give [{templates!r}] or "all"')
        if templates == "all":
            return self
        chosen = tuple(dict.fromkeys(map(str, templates)))
        known = tuple(map(str, sorted(generators()))) if self.name == GSM_SYMBOLIC else self.templates
        for template in chosen:
            if template not in known:
                some = ", ".join(known[:5]) + (f" ... {known[-1]}" if len(known) > 5 else "")
                raise InputError(f"{self.name} has no template {template}; it has {some}")
        return replace(self, templates=chosen, rows=tuple(r for r in self.rows if r.worked.template in chosen))

    def without(self, questions: Iterable[str]) -> "Source":
        """The same source without the problems that ask one of `questions`."""
        shown = frozenset(map(same_question, questions))

        def others(template: str, seed: int) -> Iterator[Worked]:
            return (item for item in self.instances(template, seed) if same_question(item.question) not in shown)

        kept = tuple(row for row in self.rows if same_question(row.worked.question) not in shown)
        left_out = tuple(row.place for row in self.rows if same_question(row.worked.question) in shown)
        if self.rows and not kept:
            raise InputError(f"the examples of the prompt are all problems of {self.name}; show others, or fewer")
        return replace(self, instances=others, rows=kept, left_out=left_out)


def open_source(
    name: str | Path,
    templates: Sequence[str | int] | Literal["all"] = "all",
    max_number: float | None = None,
    columns: Columns | None = None,
    grader: str = "number",
) -> Source:
    """The source called `name`.

    Args:
        name: ``gsm-symbolic``, ``reasoning-gym:NAME``, a file or folder, or ``owner/name[:config]`` of the hub.
        templates: of these templates alone.
        max_number: bound on the numbers of gsm-symbolic's instances; None: no bound.
        columns: which column of its rows holds what.
        grader: by which the answers of rows are compared that ask the same.

    Raises:
        InputError: there is no such source, it has no such template, or it cannot be read.
    """
    name = str(name)
    source = _open(name, max_number, columns or Columns(), grader)
    if max_number is not None and name != GSM_SYMBOLIC:
        raise InputError(f"problems.max_number bounds the numbers of gsm-symbolic, not of {name}; set it to 0")
    if not source.is_rows:
        refuse_columns(name, columns)
    return source.only(templates)


def _open(name: str, max_number: float | None, columns: Columns, grader: str) -> Source:
    if name == GSM_SYMBOLIC:

        def generated(template: str, seed: int) -> Iterator[Worked]:
            return reserved_instances(int(template), seed, max_number)

        return Source(name, tuple(map(str, ALL_TEMPLATES)), generated)
    if name.startswith(REASONING_GYM):
        skill = name.removeprefix(REASONING_GYM)
        skills.check_skill(skill)
        return Source(name, (skill,), skills.reserved_skill_instances)
    path = Path(name)
    if name and is_annotated(path):
        return _annotated(name, path)
    if name and _exists(path):
        return source_of_rows(name, files.read_rows(path, columns, grader))
    if files.is_hub_name(name) and path.suffix not in (*files.SUFFIXES, ".json"):
        return source_of_rows(name, files.read_rows(files.download(name), columns, grader))
    raise InputError(
        f"no problems at {name!r}; name {GSM_SYMBOLIC}, {REASONING_GYM}NAME, a file "
        f"({', '.join((*files.SUFFIXES, '.json'))}), a folder of such files or of annotated templates, or a dataset of "
        "the hub (owner/name:config)"
    )


def refuse_columns(name: str, columns: Columns | None) -> None:
    """Raises InputError where `columns` are named of a source that has none."""
    if columns not in (None, Columns()):
        raise InputError(f"problems.columns names columns of rows, and {name} has none; leave it out")


def is_annotated(path: Path) -> bool:
    """Whether `path` is a folder of annotated templates, or one of them.

    Raises:
        InputError: it is a folder of both templates and rows.
    """
    if not _exists(path):
        return False
    if not path.is_dir():
        return path.suffix.lower() == ".json" and is_template(path)
    template = next(filter(is_template, sorted(path.glob("*.json"))), None)
    rows = next((file for file in sorted(path.iterdir()) if file.suffix.lower() in files.SUFFIXES), None)
    if template and rows:
        raise InputError(
            f"{path} holds annotated templates ({template.name}) and rows ({rows.name}); name one of the files, or put "
            "the templates into a folder of their own"
        )
    return template is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name
        return False


def _annotated(name: str, path: Path) -> Source:
    """Annotated templates as a source; one that is wrong is an error once instances of it are asked for."""
    found = read_templates(path)

    def drawn(template: str, seed: int) -> Iterator[Worked]:
        one = found[template]
        try:
            if isinstance(one, InputError):
                raise one
            yield from one.instances(seed)
        except InputError as error:
            raise InputError(f"{error}{'; or leave it out of problems.templates' * (len(found) > 1)}") from None

    return Source(name, tuple(found), drawn)


def source_of_rows(name: str, rows: Sequence[Row]) -> Source:
    """Rows as a source."""
    by_template: dict[str, list[Worked]] = {}
    for row in rows:
        by_template.setdefault(row.worked.template, []).append(row.worked)

    def shuffled(template: str, seed: int) -> Iterator[Worked]:
        items = list(by_template[template])
        random.Random(f"file:{template}:{seed}").shuffle(items)
        return iter(items)

    return Source(name, tuple(by_template), shuffled, rows=tuple(rows))
