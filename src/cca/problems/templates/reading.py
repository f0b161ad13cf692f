"""A template file read: its sections, its lists and conditions, and the slots of its texts.

Every complaint names the file, the section and the line in it. What people type in place of what the format says is
read as it is meant where there is one way to mean it (`spelling`), and else refused.
"""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cca.errors import InputError
from cca.problems.templates.draws import Condition, Draws, Step
from cca.problems.templates.expressions import (
    MAX_ITEMS,
    Expression,
    ExpressionError,
    Pair,
    Permutations,
    items,
    parse,
    plain,
    scalar,
)
from cca.problems.templates.slots import Pieces, read_slots, slots
from cca.problems.templates.spelling import composed, same_name, spelled, unquoted, without_bullet, worded_number
from cca.problems.templates.tables import HELPERS, Lists, writable

MAX_LINES = 200
"""Lines of a section."""
MAX_TEXT = 20_000
"""Characters of one of the two texts."""
MAX_OPTIONS = 500_000
"""Items of all lists under #init together."""

_HEADER = re.compile(r"#+\s*(init|condition|answer)s?\b\s*[:：=]?\s*(.*)", re.IGNORECASE)
_UNKNOWN_HEADER = re.compile(r"#+\s*\w+\s*[:：=]?")
_NAME = r"\$?[^\W\d]\w*"
_ASSIGNMENT = re.compile(rf"({_NAME}(?:\s*,\s*{_NAME})*)\s*=(?!=)\s*(.+)")
_LITERAL = re.compile(r"""[+-]?\d+(\.\d+)?|"[^"\\]*"|'[^'\\]*'""")
_DIFFERENCE = re.compile(r"\[?\s*(\d+)\s*-\s*(\d+)\s*\]?")
_SPLIT_THOUSANDS = re.compile(r"(?<![\w.])\d{1,3}(,0\d\d)+(?![\w.])")

Lines = list[tuple[str, str]]
"""The place to name in errors, and the line."""


@dataclass(frozen=True)
class Parts:
    """What a template file says.

    Attributes:
        name: its file's name without ``.json``.
        question, solution: its annotated texts, cut at their slots.
        answer: the expression of #answer.
        draws: the variables, their lists and conditions.
        published: the question and the answer of the problem that it was made from, where it gives them.
        notes: oddities that do no harm.
    """

    name: str
    question: Pieces
    solution: Pieces
    answer: Expression
    draws: Draws
    published: Mapping[str, str]
    notes: tuple[str, ...]


def read(text: str, name: str, lists: Lists) -> Parts:
    """The JSON text of a template, read.

    Raises:
        InputError: names the file, the line that is wrong and what is expected there.
    """
    return _Reader(f"{name}.json", lists).read(text, name)


class _Reader:
    def __init__(self, file: str, lists: Lists):
        self.file, self.lists = file, lists

    def read(self, text: str, name: str) -> Parts:
        record = self.record(text)
        question, lines = self.sections(record["question_annotated"])
        notes: list[str] = []
        groups = self.groups(lines["init"], notes)
        known = [name for group in groups for name in group.names]
        checks = [self.condition(place, line, known) for place, line in lines["condition"] if line != "True"]
        if len(lines["answer"]) != 1:
            raise InputError(f"{self.file}: expected one line `#answer: expression`, found {len(lines['answer'])}")
        place, line = lines["answer"][0]
        answer = self.expression(place, re.sub(r"\{([^{}]*)\}", r"(\1)", line), known)
        asked, worked = self.texts(question, record["answer_annotated"], groups, notes)
        used = {name for slot in slots((*asked, *worked)) for name in slot.expression.names} | answer.names
        used = used.union(*(check.holds.names for check in checks))
        groups = [group for group in groups if used.intersection(group.names)]
        published = {key: record[key] for key in ("question", "answer") if key in record}
        return Parts(name, asked, worked, answer, Draws.ordered(groups, checks), published, tuple(notes))

    def record(self, text: str) -> dict[str, str]:
        """The texts of the file."""
        try:
            record: Any = json.loads(text, strict=False)  # a text may be broken over lines
            found = {key: record[key] for key in ("question_annotated", "answer_annotated")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.file} is not a template ({error!r}); it is a JSON object with the texts question_annotated "
                "and answer_annotated"
            ) from None
        found |= {key: record[key] for key in ("question", "answer") if record.get(key) is not None}
        for key, value in found.items():
            if key == "answer" and type(value) in (int, float):
                value = str(value)
            if not isinstance(value, str):
                raise InputError(f"{self.file}, {key}: is of type {type(value).__name__}; write it as text")
            if len(value) > MAX_TEXT:
                raise InputError(f"{self.file}, {key}: has {len(value)} characters; at most {MAX_TEXT} are read")
            try:
                found[key] = composed(writable(value))
            except ValueError as error:
                raise InputError(f"{self.file}, {key}: {error}; write the whole character") from None
        return found

    def sections(self, annotated: str) -> tuple[str, dict[str, Lines]]:
        """The question, and the lines of the three sections."""
        found: dict[str, Lines] = {"init": [], "condition": [], "answer": []}
        question: list[str] = []
        section = ""
        for line in map(str.strip, annotated.splitlines()):
            header = _HEADER.fullmatch(line)
            if header:
                section, line = header[1].lower(), header[2] and f"- {header[2]}"
            shown = "conditions" if section == "condition" else section
            if not section:
                question.append(line)
                continue
            if _UNKNOWN_HEADER.fullmatch(line):
                raise InputError(f"{self.file}: there is no section {line}; they are #init, #conditions and #answer")
            bare = without_bullet(line, spaced=section == "answer").rstrip(",; ")
            if not bare or bare.startswith("#"):  # nothing, or a comment
                continue
            place = f"{self.file}, #{shown} line {len(found[section]) + 1} `{_short(bare)}`"
            if section == "condition" and re.match(r"-\d", line):
                raise InputError(f"{place}: write `- {line}` where a minus is meant, else put a space after the -")
            if bare == line.rstrip(",; ") and section != "answer":
                raise InputError(f"{place}: a line under #{shown} begins with a -, and is not broken into two")
            if len(found[section]) == MAX_LINES:
                raise InputError(f"{place}: a section has at most {MAX_LINES} lines; leave some out")
            found[section].append((place, bare))
        if not "".join(question):
            raise InputError(
                f"{self.file}, question_annotated: there is no question before the sections; begin with it"
            )
        return "\n".join(question), found

    def groups(self, lines: Lines, notes: list[str]) -> list[Step]:
        """The lines of #init. Of two that set one name the last counts."""
        matches = [(place, _ASSIGNMENT.fullmatch(line)) for place, line in lines]
        variables = {same_name(name) for _, match in matches if match for name in match[1].split(",")}
        found: list[Step] = []
        left = MAX_OPTIONS
        for place, match in matches:
            if not match:
                raise InputError(
                    f"{place}: expected `name = list`, such as `$n = range(2, 10)` or `who = sample(names)`"
                )
            group = self.group(place, match, variables)
            left -= 0 if isinstance(group.options, Permutations) else len(group.options)
            if left < 0:
                raise InputError(f"{place}: the lists have more than {MAX_OPTIONS} items together; give a range a step")
            for earlier in [one for one in found if set(one.names) & set(group.names)]:
                again = ", ".join(sorted(set(earlier.names) & set(group.names)))
                if not set(earlier.names) <= set(group.names):
                    raise InputError(f"{place}: {again} is set twice, once with other names; rename one of the two")
                notes.append(f"#init sets {again} twice; the last line counts")
                found.remove(earlier)
            found.append(group)
        return found

    def group(self, place: str, match: re.Match[str], variables: set[str]) -> Step:
        """The names that an #init line sets together, and what they are drawn from."""
        names = tuple(map(same_name, match[1].split(",")))
        wrong = next((name for name in names if keyword.iskeyword(name) or names.count(name) > 1), None)
        if wrong:
            raise InputError(f"{place}: {wrong} stands twice or is a word of the format; choose another name")
        text = spelled(match[2])
        if _DIFFERENCE.fullmatch(text):
            raise InputError(f"{place}: is a difference, not a list; write range(first, last + 1)")
        others = sorted(variables.intersection(re.findall(r"[^\W\d]\w*", unquoted(text))) - self.lists.keys())
        if others:
            raise InputError(
                f"{place}: no name {others[0]} here, where only lists are known; give a list to draw from, and "
                "put what relates variables under #conditions"
            )
        try:
            pool = self.expression(place, match[2], list(self.lists), MAX_ITEMS)(self.lists)
            pool = [pool] if _LITERAL.fullmatch(text) else pool
            options = pool if isinstance(pool, Permutations) else list(dict.fromkeys(items(pool)))
            if not isinstance(options, Permutations) and type(options[0]) is not tuple:
                options = [(scalar(item),) for item in options]
        except (ExpressionError, TypeError, IndexError) as error:
            why = "the list is empty" if isinstance(error, IndexError) else error
            raise InputError(f"{place}: {why}; expected a list, or sample(list, k) for k names") from None
        if len(options[0]) != len(names):
            raise InputError(f"{place}: sets {len(names)} names from {len(options[0])} items; draw one item a name")
        return Step(names, options)

    def condition(self, place: str, line: str, known: Sequence[str]) -> Condition:
        if re.search(r"(?<![=!<>])=(?![=<>])", unquoted(line)):
            raise InputError(f"{place}: write == for equals, and <= or >= for bounds")
        holds = self.expression(place, line, known)
        if not holds.names:
            raise InputError(f"{place}: names no variable; the variables are {', '.join(known)}")
        return Condition(place, holds)

    def texts(self, question: str, solution: str, groups: Sequence[Step], notes: list[str]) -> tuple[Pieces, Pieces]:
        """The question and the solution, cut at their slots."""
        known = [name for group in groups for name in group.names]
        fractions = frozenset(name for group in groups for name in group.names if _worded_fractions(group))

        def asks(inside: str) -> tuple[Expression, str]:
            name, _, default = (part.strip() for part in inside.partition(","))
            place = f"{self.file}, question_annotated, slot {{{_short(inside)}}}"
            if same_name(name) not in known:
                raise InputError(f"{place}: expected {{name,default}}; the names are {', '.join(known)}")
            return self.expression(place, same_name(name), known), default

        asked = read_slots(question, asks, fractions)
        shares = _shown_as_per_cent(asked, groups)
        asked = tuple(
            p._replace(times=100) if not isinstance(p, str) and p.expression.text in shares else p for p in asked
        )
        defaults: dict[str, str] = {}
        for slot in slots(asked):
            first = defaults.setdefault(slot.expression.text, slot.default) or slot.default
            defaults[slot.expression.text] = first
            values = worded_number(first), worded_number(slot.default)
            if None not in values and values[0] != values[1]:
                notes.append(f"{slot.expression.text} has two defaults, {first} and {slot.default}; the first counts")

        def works(inside: str) -> tuple[Expression, str]:
            place = f"{self.file}, answer_annotated, slot {{{_short(inside)}}}"
            return self.expression(place, inside, known), defaults.get(inside.strip(), "")

        worked = read_slots(solution, works, fractions, shows_value=True)
        if not re.search(r"^#### *\S.*\Z", solution.strip(), re.MULTILINE):
            raise InputError(f"{self.file}, answer_annotated: its last line must be `#### {{expression}}`")
        for key, pieces in (("question_annotated", asked), ("answer_annotated", worked)):
            for piece in pieces:
                stray = re.search(r".{0,30}([{}]|<<).{0,30}", piece) if isinstance(piece, str) else None
                if stray:
                    raise InputError(f"{self.file}, {key}: {stray[1]} without its partner at `{stray[0]}`; close it")
        return asked, worked

    def expression(self, place: str, text: str, known: Sequence[str], max_items: int | None = None) -> Expression:
        text = spelled(text)
        thousands = _SPLIT_THOUSANDS.search(unquoted(text))
        if thousands:
            raise InputError(f"{place}: {thousands[0]} is two numbers; write {thousands[0].replace(',', '')}")
        try:
            return parse(text, known, HELPERS, *([max_items] if max_items else []))
        except ExpressionError as error:
            raise InputError(f"{place}: {error}") from None


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _worded_fractions(group: Step) -> bool:
    pool = [group.options.pool] if isinstance(group.options, Permutations) else group.options
    return any(isinstance(item, Pair) and isinstance(item.value, Fraction) for option in pool for item in option)


def _shown_as_per_cent(asked: Pieces, groups: Sequence[Step]) -> set[str]:
    """The variables drawn from shares such as 0.6 that the question shows as ``60%``."""
    found: set[str] = set()
    for slot in slots(asked):
        default = worded_number(slot.default) if slot.suffix else None
        group = next(group for group in groups if slot.expression.text in group.names)
        if default is not None and not isinstance(group.options, Permutations):
            place = group.names.index(slot.expression.text)
            options = {value for option in group.options if not isinstance(value := plain(option[place]), str)}
            if default not in options and options and (default / 100 in options or max(options) <= 1 < default):
                found.add(slot.expression.text)
    return found
