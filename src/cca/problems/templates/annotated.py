"""GSM-Symbolic problems from templates in the annotated format in which GSM-Symbolic was published.

A template is a question with slots, the lists its variables are drawn from, the conditions on them and a worked
solution with expressions in it (`docs/templates.md`). Here it is read, filled in with its default values or with
drawn ones, and checked. All arithmetic is exact.
"""

import difflib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cca.errors import InputError
from cca.grading.answers import final_text, normal_number
from cca.problems.gsm_symbolic import Worked
from cca.problems.templates.draws import Condition, Draws, Step, Variables
from cca.problems.templates.expressions import (
    Expression,
    ExpressionError,
    Pair,
    Permutations,
    Value,
    items,
    number,
    parse,
    plain,
    scalar,
)
from cca.problems.templates.slots import Pieces, fill, number_text, read_slots, slots
from cca.problems.templates.tables import HELPERS, LISTS, Lists, load_lists, number_word

MAX_REPEATS = 2_000
"""Repeated questions in a row after which a template that is too large to list counts as exhausted."""
MAX_LINES = 200
"""Lines of a section."""

_HEADER = re.compile(r"#\s*(init|conditions|answer)\b\s*[:=]?\s*(.*)")
_ASSIGNMENT = re.compile(r"(\$?[A-Za-z_]\w*(?:\s*,\s*\$?[A-Za-z_]\w*)*)\s*=(?!=)\s*(.+)")
_DOLLAR = re.compile(r"""("[^"]*"|'[^']*')|\$(?=[A-Za-z_])""")
_NUMBER = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?%?|-?\d{1,30}(\.\d{1,30}|/[1-9]\d{0,30})?%?")


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
class Template:
    """A template that has been read; `published` is its file's record."""

    name: str
    question: Pieces
    solution: Pieces
    answer: Expression
    draws: Draws
    lists: Lists
    published: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, name: str, lists: Lists = LISTS) -> "Template":
        """Read the JSON text of a template; `name` is its file's name without ``.json``.

        Raises:
            InputError: names the file, the line that is wrong and what is expected there.
        """
        return _Reader(name, lists).read(text)

    @cached_property
    def maximum(self) -> int | None:
        """The exact number of distinct questions, or None where there are too many assignments to list."""
        return None if self._all is None else len(self._all)

    def default(self) -> Worked:
        """The instance with the published values.

        Raises:
            InputError: a value is not given and no condition fixes it, or an expression has no value.
        """
        return self._worked(fill(self.question, lambda slot: slot.default), self.default_values())

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
        rng = random.Random(f"annotated:{self.name}:{seed}")
        if self._all:
            listed = list(self._all.items())
            rng.shuffle(listed)
            yield from (self._worked(question, variables) for question, variables in listed)
            return
        seen: set[str] = set()
        repeats = 0
        while repeats < MAX_REPEATS:
            variables = self.draws.draw(rng)
            question = self._question(variables)
            repeats = repeats + 1 if question in seen else 0
            if not repeats:
                seen.add(question)
                yield self._worked(question, variables)

    def default_values(self) -> Variables:
        """The published values by name; a pair keeps its wording."""
        texts = {s.expression.text: s.default for s in reversed(list(slots(self.question)))}
        variables = {name: self._value(name, text) for name, text in texts.items()}
        for name in (name for name in self.draws.names if name not in texts):
            variables[name] = self._fixed(name, variables)
        return variables

    def _value(self, name: str, text: str) -> Value:
        """A default as the value it stands for: ``twice`` is 2 where the variable is a number."""
        options = self.draws.options(name)
        for option in options:
            if isinstance(option, str | Pair) and _wording(option) == _wording(text):
                return option
        if any(isinstance(option, str) for option in options):
            return text
        if _NUMBER.fullmatch(text):
            return number(Fraction(text.replace(",", "").rstrip("%")))
        words: dict[str, Value] = {_wording(number_word(n)): n for n in range(100)}
        words |= {_wording(p): p.value for pool in self.lists.values() for p in pool if isinstance(p, Pair)}
        if _wording(text) not in words:
            raise InputError(f"{self.name}.json, question_annotated: {name} is a number, and its default {text} is not")
        return Pair(text, words[_wording(text)])

    def _fixed(self, name: str, variables: Variables) -> Value:
        """The value of a variable that the question does not show: the first that meets the conditions on it."""
        known = {*variables, name}
        checks = [c for c in self.draws.conditions if name in c.holds.names and c.holds.names <= known]
        for value in [*self.draws.options(name), *range(1_001)]:
            if checks and all(check.met({**variables, name: value}) for check in checks):
                return value
        raise InputError(f"{self.name}.json: the question has no default for {name}, and no condition fixes it")

    @cached_property
    def _all(self) -> dict[str, Variables] | None:
        """Every distinct question with its values, or None where there are too many."""
        listed = self.draws.listed
        return None if listed is None else {self._question(variables): variables for variables in listed}

    @cached_property
    def answers_wrongly(self) -> bool:
        """Whether #answer misses the published answer where the worked solution ends with it.

        One published template has such a slip; its answers are what its solution ends with.
        """
        if "answer" not in self.published:
            return False
        try:
            solution, answer = self._solved(self.default_values())
        except InputError:  # `default` and `check` say so; instances can be drawn all the same
            return False
        gold = normal_number(final_text(self.published["answer"]))
        return normal_number(answer) != gold == normal_number(final_text(solution))

    def _question(self, variables: Variables) -> str:
        return fill(self.question, lambda slot: variables[slot.expression.text])

    def _worked(self, question: str, variables: Variables) -> Worked:
        solution, answer = self._solved(variables)
        return Worked(self.name, question, final_text(solution) if self.answers_wrongly else answer, solution)

    def _solved(self, variables: Variables) -> tuple[str, str]:
        """The worked solution, without blank lines, and the value of #answer."""
        try:
            solution = fill(self.solution, lambda slot: slot.expression(variables))
            answer = number_text(self.answer(variables))
        except (ExpressionError, TypeError) as error:
            raise InputError(f"{self.name}.json, answer: {error}") from None
        return "\n".join(line.rstrip() for line in solution.splitlines() if line.strip()), answer


def _wording(value: str | Pair) -> str:
    return (value.text if isinstance(value, Pair) else value).casefold().replace("-", " ")


_Lines = list[tuple[str, str]]  # the place to name in errors, and the line


class _Reader:
    """Reads one template file; every error names the file, the section and the line in it."""

    def __init__(self, name: str, lists: Lists):
        self.file, self.name, self.lists = f"{name}.json", name, lists

    def read(self, text: str) -> Template:
        try:
            record = json.loads(text)
            question, solution = (str(record[key]) for key in ("question_annotated", "answer_annotated"))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.file} is not a template ({error!r}); it is a JSON object with the texts question_annotated "
                "and answer_annotated"
            ) from None
        question, lines = self.sections(question)
        groups = [self.group(place, line) for place, line in lines["init"]]
        known = [name for group in groups for name in group.names]
        twice = next((name for name in known if known.count(name) > 1), None)
        if twice:
            raise InputError(f"{self.file}, #init: {twice} is set twice; rename one of the two")
        checks = [Condition(place, self.expression(place, line, known)) for place, line in lines["conditions"]]
        constant = next((check for check in checks if not check.holds.names), None)
        if constant:
            raise InputError(f"{constant.place}: names no variable; the variables are {', '.join(known)}")
        if len(lines["answer"]) != 1:
            raise InputError(f"{self.file}: expected one line `#answer: expression`, found {len(lines['answer'])}")
        place, line = lines["answer"][0]
        answer = self.expression(place, line.removeprefix("{").removesuffix("}"), known)
        fractions = frozenset(name for group in groups for name in group.names if _worded_fractions(group))

        def asks(inside: str) -> tuple[Expression, str]:
            place = f"{self.file}, question_annotated, slot {{{inside}}}"
            name, _, default = (part.strip() for part in inside.partition(","))
            if name not in known or not default:
                raise InputError(f"{place}: expected {{name,default}}; the names are {', '.join(known)}")
            return self.expression(place, name, known), default

        asked = read_slots(question, asks, fractions)
        defaults = {slot.expression.text: slot.default for slot in reversed(list(slots(asked)))}

        def works(inside: str) -> tuple[Expression, str]:
            place = f"{self.file}, answer_annotated, slot {{{inside}}}"
            return self.expression(place, inside, known), defaults.get(inside.strip(), "")

        worked = read_slots(solution, works, fractions, shows_value=True)
        if not re.search(r"^#### *\S.*\Z", solution.strip(), re.MULTILINE):
            raise InputError(f"{self.file}, answer_annotated: its last line must be `#### {{expression}}`")
        used = {name for slot in slots((*asked, *worked)) for name in slot.expression.names} | answer.names
        used = used.union(*(check.holds.names for check in checks))
        groups = [group for group in groups if used.intersection(group.names)]
        published = {key: str(record[key]) for key in ("question", "answer") if key in record}
        return Template(self.name, asked, worked, answer, Draws.ordered(groups, checks), self.lists, published)

    def sections(self, annotated: str) -> tuple[str, dict[str, _Lines]]:
        """The question, and the lines of the three sections."""
        found: dict[str, _Lines] = {"init": [], "conditions": [], "answer": []}
        question: list[str] = []
        section = ""
        for line in map(str.strip, annotated.splitlines()):
            header = _HEADER.fullmatch(line)
            if header:
                section, line = header[1], header[2] and f"- {header[2]}"
            if not section:
                question.append(line)
            elif line:
                place = f"{self.file}, #{section} line {len(found[section]) + 1} `{line.removeprefix('-').strip()}`"
                if not line.startswith("-"):
                    raise InputError(f"{place}: a line under #{section} begins with a -")
                if len(found[section]) == MAX_LINES:
                    raise InputError(f"{place}: a section has at most {MAX_LINES} lines; leave some out")
                found[section].append((place, line.removeprefix("-").strip()))
        return "\n".join(question), found

    def group(self, place: str, line: str) -> Step:
        """The names that an #init line sets together, and what they are drawn from."""
        match = _ASSIGNMENT.fullmatch(line)
        if not match:
            raise InputError(f"{place}: expected `name = list`, such as `$n = range(2, 10)` or `who = sample(names)`")
        names = tuple(name.strip().removeprefix("$") for name in match[1].split(","))
        try:
            pool = self.expression(place, match[2], list(self.lists))(self.lists)
            options = pool if isinstance(pool, Permutations) else list(dict.fromkeys(items(pool)))
            if not isinstance(options, Permutations) and type(options[0]) is not tuple:
                options = [(scalar(item),) for item in options]
        except (ExpressionError, TypeError, IndexError) as error:
            why = "the list is empty" if isinstance(error, IndexError) else error
            raise InputError(f"{place}: {why}; expected a list, or sample(list, k) for k names") from None
        if len(options[0]) != len(names):
            raise InputError(f"{place}: sets {len(names)} names from {len(options[0])} items; draw one item a name")
        return Step(names, options)

    def expression(self, place: str, text: str, known: Sequence[str]) -> Expression:
        try:
            return parse(_DOLLAR.sub(lambda match: match[1] or "", text), known, HELPERS)
        except ExpressionError as error:
            raise InputError(f"{place}: {error}") from None


def _worded_fractions(group: Step) -> bool:
    pool = [group.options.pool] if isinstance(group.options, Permutations) else group.options
    return any(isinstance(item, Pair) and isinstance(item.value, Fraction) for option in pool for item in option)


def template_files(path: Path) -> list[Path]:
    """The template files of a folder, or the one file that is named.

    Raises:
        InputError: there is none.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    files = [file for file in files if file.name != "tables.json"]
    if not files:
        raise InputError(f"{path} has no templates (*.json); name a folder of annotated templates, or one of them")
    return files


def load_templates(path: str | Path) -> list[Template]:
    """The templates of a folder (its ``*.json`` in order of name, but for ``tables.json``), or that of one file.

    Raises:
        InputError: there is none, or one is wrong.
    """
    files = template_files(Path(path))
    lists = load_lists(files[0].parent)
    try:
        return [Template.parse(file.read_text(encoding="utf-8"), file.stem, lists) for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read a template: {error}; name a folder of annotated templates") from None


def check(template: Template, n: int = 50, seed: int = 0) -> TemplateCheck:
    """See that `template` gives its published instance and `n` distinct ones (or all there are), each with the answer
    that its solution ends with.
    """
    failures: list[str] = []
    notes: list[str] = []
    distinct, maximum = 0, None
    try:
        item, values = template.default(), template.default_values()
        question, gold = (template.published.get(key) for key in ("question", "answer"))
        if question is not None and question.split() != item.question.split():
            notes.append(f"its annotated question differs from its question: {_difference(question, item.question)}")
        if gold is not None and normal_number(final_text(gold)) != normal_number(item.answer):
            failures.append(f"the default answer is {item.answer}, not {final_text(gold)}")
        failures += _unfinished(item)
        if template.answers_wrongly:
            notes.append("its #answer misses the published answer; what its solution ends with is taken instead")
        outside = [name for name in values if _is_outside(values[name], template.draws.options(name))]
        if outside:
            notes.append(f"defaults that are not among their options: {', '.join(outside)}")
        notes += [f"{c.place} does not hold for the defaults" for c in template.draws.conditions if not c.met(values)]
        maximum = template.maximum
        odd = 0
        for item in islice(template.instances(seed), n):
            distinct += 1
            odd += not item.answer.isdigit()
            failures += _unfinished(item)
        if odd:
            notes.append(f"{odd} of {distinct} answers are negative or not whole")
    except InputError as error:
        failures.append(str(error))
    if distinct < n and not failures:
        (notes if maximum == distinct else failures).append(f"has only {distinct} distinct instances")
    return TemplateCheck(template.name, distinct, maximum, tuple(failures), tuple(notes))


def _unfinished(item: Worked) -> list[str]:
    ends = final_text(item.solution)
    return [] if ends == item.answer else [f"{item.question[:60]!r}: the solution ends with {ends}, not {item.answer}"]


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
