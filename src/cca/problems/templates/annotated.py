"""GSM-Symbolic problems from templates in the annotated format in which GSM-Symbolic was published.

A template is a question with slots, the lists its variables are drawn from, the conditions on them and a worked
solution with expressions in it (`docs/templates.md`). Here it is read, filled in with its default values or with
drawn ones, and checked. All arithmetic is exact.
"""

import difflib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cca.errors import InputError
from cca.grading.answers import final_text, grade_number
from cca.grading.numbers import normal_number
from cca.problems.gsm_symbolic import Worked
from cca.problems.templates import reading
from cca.problems.templates.draws import MAX_TRIED, Draws, Variables
from cca.problems.templates.expressions import ExpressionError, Pair, Value, number, plain
from cca.problems.templates.slots import fill, number_text, slots
from cca.problems.templates.spelling import worded_number, wording
from cca.problems.templates.tables import LISTS, Lists, load_lists

MAX_REPEATS = 2_000
"""Repeated questions in a row after which a template that is too large to list counts as exhausted."""
MAX_COMPARED = 5
"""Instances of which `check` looks for a second answer to the same question."""


class TemplateCheck(NamedTuple):
    """What `check` found; `maximum` is None where there are too many instances to list.

    `failures` are what is wrong, `notes` are oddities of the template that do no harm.
    """

    name: str
    distinct: int
    maximum: int | None
    failures: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Template(reading.Parts):
    """A template that has been read."""

    @classmethod
    def parse(cls, text: str, name: str, lists: Lists = LISTS) -> "Template":
        """Read the JSON text of a template; `name` is its file's name without ``.json``.

        Raises:
            InputError: names the file, the line that is wrong and what is expected there.
        """
        return cls(**vars(reading.read(text, name, lists)))

    @cached_property
    def maximum(self) -> int | None:
        """The exact number of distinct questions, or None where there are too many assignments to list."""
        return None if self._all is None else len(self._all)

    def default(self) -> Worked:
        """The instance with the published values.

        Raises:
            InputError: a value is not given and no condition fixes it, or an expression has no value.
        """
        values = self.default_values()
        return self._worked(self._default_question(values), values)

    def sample(self, rng: random.Random) -> Worked:
        """Draw one instance, all assignments that meet the conditions being equally likely.

        Raises:
            InputError: conditions rejected `draws.MAX_DRAWS` draws in a row; names the one that rejected most.
        """
        variables = self.draws.draw(rng)
        return self._worked(self._question(variables), variables)

    def instances(self, seed: int) -> Iterator[Worked]:
        """Instances with distinct questions in an order fixed by `seed`, ending when there are no more.

        Raises:
            InputError: as `sample`.
        """
        return (item for item, _ in self.worked(seed))

    def worked(self, seed: int) -> Iterator[tuple[Worked, Variables]]:
        """`instances` with their variables."""
        rng = random.Random(f"annotated:{self.name}:{seed}")
        if self._all:
            listed = list(self._all.items())
            rng.shuffle(listed)
            yield from ((self._worked(question, variables), variables) for question, variables in listed)
            return
        seen: set[str] = set()
        repeats = 0
        while repeats < MAX_REPEATS:
            variables = self.draws.draw(rng)
            question = self._question(variables)
            repeats = repeats + 1 if question in seen else 0
            if not repeats:
                seen.add(question)
                yield self._worked(question, variables), variables

    def default_values(self) -> Variables:
        """The published values by name; a pair keeps its wording.

        Raises:
            InputError: one is not given and no condition fixes it, or it is no number where one is needed.
        """
        texts = {s.expression.text: s.default for s in reversed(list(slots(self.question))) if s.default}
        variables = {name: self._value(name, text) for name, text in texts.items()}
        for name in (name for name in self.draws.names if name not in texts):
            variables[name] = self._fixed(name, variables)
        return variables

    def _value(self, name: str, text: str) -> Value:
        """A default as the value it stands for: ``twice`` is 2 where the variable is a number."""
        options = self.draws.options(name)
        for option in options:
            if isinstance(option, str | Pair) and _wording(option) == wording(text):
                return option
        if any(isinstance(option, str) for option in options):
            return text
        value = worded_number(text)
        if value is None:
            raise InputError(f"{self.name}.json, question_annotated: {name} is a number, and its default {text} is not")
        times = next(slot.times for slot in slots(self.question) if slot.expression.text == name)
        return number(value / times) if text[-1] in "0123456789%" else Pair(text, number(value))

    def _fixed(self, name: str, variables: Variables) -> Value:
        """The value of a variable without a default: the first that meets the conditions on it."""
        known = {*variables, name}
        checks = [c for c in self.draws.conditions if name in c.holds.names and c.holds.names <= known]
        try:
            solved = [c.holds.equals[name]()(variables) for c in checks if name in c.holds.equals]
        except ExpressionError:
            solved = []
        for value in [*solved, *self.draws.options(name), *range(1_001)]:
            if checks and all(check.met({**variables, name: value}) for check in checks):
                return value
        raise InputError(f"{self.name}.json: the question has no default for {name}, and no condition fixes it")

    def another_answer(self, item: Worked, variables: Variables) -> str | None:
        """Another answer to the question of `item`, where the variables that it does not show leave one."""
        shown = {slot.expression.text for slot in slots(self.question)}
        if self.answers_wrongly or self.draws.decide(shown):
            return None
        steps = []
        for step in self.draws.steps:
            options = step.options
            if not shown.isdisjoint(step.names):
                here = [(i, variables[name]) for i, name in enumerate(step.names) if name in shown]
                drawn = len(here) == len(step.names) or len(options) > MAX_TRIED
                pool = [tuple(variables[name] for name in step.names)] if drawn else options
                options = [option for option in pool if all(option[i] == value for i, value in here)]
            steps.append(step._replace(options=options))
        answers = (self._solved(found)[1] for found in Draws(tuple(steps)).listed or ())
        return next((answer for answer in answers if answer != item.answer), None)

    @cached_property
    def _all(self) -> dict[str, Variables] | None:
        """Every distinct question with its values, or None where there are too many."""
        listed = self.draws.listed
        return None if listed is None else {self._question(variables): variables for variables in listed}

    @cached_property
    def answers_wrongly(self) -> bool:
        """Whether #answer misses the published answer where the worked solution ends with it.

        One published template has such a slip; its answers are what its solution ends with. A published answer to a
        question with other numbers decides nothing.
        """
        if "answer" not in self.published:
            return False
        try:
            values = self.default_values()
            solution, answer = self._solved(values)
        except InputError:  # `default` and `check` say so; instances can be drawn all the same
            return False
        question = self._default_question(values)
        if _numbers(self.published.get("question", question)) != _numbers(question):
            return False
        gold = normal_number(final_text(self.published["answer"]))
        return normal_number(answer) != gold == normal_number(final_text(solution))

    def _default_question(self, values: Variables) -> str:
        """The question with its defaults as they stand there."""
        return "".join(
            piece if isinstance(piece, str) else piece.write(piece.default or values[piece.expression.text])
            for piece in self.question
        )

    def _question(self, variables: Variables) -> str:
        return fill(self.question, lambda slot: variables[slot.expression.text])

    def _worked(self, question: str, variables: Variables) -> Worked:
        solution, answer = self._solved(variables)
        answer = final_text(solution) if self.answers_wrongly else answer
        for contradiction in self._contradictions(question, solution, answer):
            raise InputError(contradiction)
        return Worked(self.name, question, answer, solution)

    def _contradictions(self, question: str, solution: str, answer: str) -> list[str]:
        ends = final_text(solution)
        if grade_number(ends, answer).correct:
            return []
        where = f"{self.name}.json contradicts itself: of {question[:60]!r}"
        return [f"{where} the solution ends with {ends}, not {answer}, the value of #answer; mend one of them"]

    def _solved(self, variables: Variables) -> tuple[str, str]:
        """The worked solution, without blank lines, and the value of #answer."""
        try:
            solution = fill(self.solution, lambda slot: slot.expression(variables))
            answer = number_text(self.answer(variables))
        except (ExpressionError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}.json, answer: {error}; exclude such values under #conditions") from None
        return "\n".join(line.rstrip() for line in solution.splitlines() if line.strip()), answer


def _wording(value: str | Pair) -> str:
    return wording(value.text if isinstance(value, Pair) else value)


def _numbers(text: str) -> list[Fraction]:
    """The numbers in a text, those in words too, from the smallest."""
    words = re.findall(r"\d+(?:[,.]\d+)*|[^\W\d]+", text)
    return sorted(
        n for n in (worded_number(word) for word in words if word not in ("a", "an", "A", "An")) if n is not None
    )


def template_files(path: Path) -> list[Path]:
    """The template files of a folder, or the one file that is named.

    Raises:
        InputError: there is none.
    """
    files = [path]
    if path.is_dir():
        files = [f for f in sorted(path.glob("*.json")) if f.is_file() and f.name[0] != "." and f.name != "tables.json"]
    if not files:
        raise InputError(f"{path} has no templates (*.json); name a folder of annotated templates, or one of them")
    return files


def read_templates(path: str | Path) -> dict[str, Template | InputError]:
    """The templates of a folder by name, or that of one file; in place of one that is wrong, what is wrong with it.

    In a folder, JSON objects that have nothing of a template (``dataset_info.json``) are left out.

    Raises:
        InputError: there is none, or the tables beside them are wrong.
    """
    files = template_files(Path(path))
    lists = load_lists(files[0].parent)
    found: dict[str, Template | InputError] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
            if file == Path(path) or not _is_of_something_else(text):
                found[file.stem] = Template.parse(text, file.stem, lists)
        except InputError as error:
            found[file.stem] = error
        except (OSError, UnicodeDecodeError) as error:
            found[file.stem] = InputError(f"cannot read {file} ({error}); a template is a file of UTF-8 text")
    if not found:
        raise InputError(f"{path} has no templates: its *.json have no question_annotated; name another folder")
    return found


def _is_of_something_else(text: str) -> bool:
    try:
        record = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    words = ("question", "answer", "annotated")
    return isinstance(record, dict) and record != {} and not any(w in k.lower() for w in words for k in record)


def load_templates(path: str | Path) -> list[Template]:
    """The templates of a folder (its ``*.json`` in order of name, but for ``tables.json``), or that of one file.

    Raises:
        InputError: there is none, or one is wrong.
    """
    templates: list[Template] = []
    for found in read_templates(path).values():
        if isinstance(found, InputError):
            raise found
        templates.append(found)
    return templates


def check(template: Template, n: int = 50, seed: int = 0) -> TemplateCheck:
    """See that `template` gives `n` distinct instances (or all there are), each with the answer that its solution ends
    with, and what of its published instance it gives.
    """
    notes = list(template.notes)
    failures = _of_default(template, notes)
    distinct, odd, maximum = 0, 0, None
    try:
        maximum = template.maximum
        for item, variables in islice(template.worked(seed), n):
            distinct += 1
            odd += not item.answer.isdigit()
            other = template.another_answer(item, variables) if distinct <= MAX_COMPARED else None
            if other is not None:
                failures.append(
                    f"{item.question[:60]!r} has the answers {item.answer} and {other}; no condition decides"
                )
                break
    except InputError as error:
        failures += [] if failures else [str(error)]
    if odd:
        notes.append(f"{odd} of {distinct} answers are negative or not whole")
    if distinct < n and not failures:
        notes.append(f"has only {distinct} distinct instances")
    return TemplateCheck(template.name, distinct, maximum, tuple(failures), tuple(notes))


def _of_default(template: Template, notes: list[str]) -> list[str]:
    """What is wrong with the instance that has the defaults, which must be right only where it could be drawn."""
    try:
        values = template.default_values()
        asked = template._default_question(values)
        outside = [name for name in values if _is_outside(values[name], template.draws.options(name))]
        unmet = [condition for condition in template.draws.conditions if not condition.met(values)]
    except InputError as error:
        notes.append(f"its published instance is not looked at: {error}")
        return []
    if outside:
        notes.append(f"defaults that are not among their options: {', '.join(outside)}")
    notes += [f"{condition.place} does not hold for the defaults" for condition in unmet]
    try:
        solution, answer = template._solved(values)
    except InputError as error:
        failures, answer = [str(error)], None
    else:
        answer = final_text(solution) if template.answers_wrongly else answer
        failures = template._contradictions(asked, solution, answer)
    if outside or unmet:
        notes += failures
        failures = []
    if template.answers_wrongly:
        notes.append("its #answer misses the published answer; what its solution ends with is taken instead")
    question, gold = (template.published.get(key) for key in ("question", "answer"))
    if question is not None and question.split() != asked.split():
        notes.append(f"its annotated question differs from its question: {_difference(question, asked)}")
    if gold is None or answer is None or normal_number(final_text(gold)) == normal_number(answer):
        return failures
    missed = f"the default answer is {answer}, not {final_text(gold)}"
    if question is None or re.findall(r"\w+", question.casefold()) == re.findall(r"\w+", asked.casefold()):
        return [missed, *failures]
    notes.append(f"renders, but its default is of another question: {missed}")
    return failures


def _is_outside(value: Value, options: list[Value]) -> bool:
    """Whether a number is none of the options; a default wording never needs to be one."""
    numbers = [plain(option) for option in options]
    return not isinstance(value, str) and plain(value) not in numbers


def _difference(published: str, annotated: str) -> str:
    """The words of the one that the other has not, such as ``Twenty -> 20``."""
    old, new = published.split(), annotated.split()
    parts = [
        f"{' '.join(old[a:b]) or '(nothing)'} -> {' '.join(new[c:d]) or '(nothing)'}"
        for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if kind != "equal"
    ]
    return "; ".join(parts)
