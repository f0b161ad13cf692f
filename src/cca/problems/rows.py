"""A row as a problem: its columns, what their values may be, and what is the same problem twice."""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real
from typing import Any, Literal, NamedTuple

from cca.errors import InputError
from cca.grading.answers import GRADERS
from cca.grading.graders import load_grader
from cca.options import Options
from cca.problems.gsm_symbolic import Worked
from cca.records import NO_TEMPLATE, Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "validation"),
    **dict.fromkeys(("dev", "development", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""What people call their splits, and what they are here."""
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_MAX_DIGITS = 400
"""Of a number as an answer: every float has fewer."""
_NOISE = 4
"""Digits by which a float is shorter when rounded to 15 if the rest is an error of arithmetic (0.30000000000000004)."""


class Columns(Options):
    """Which column of a row holds what."""

    question: str = "question"
    answer: str = "answer"
    solution: str = "solution"
    template: str = "template"
    split: str = "split"

    def model_post_init(self, _: Any) -> None:
        """Raises InputError where one column would be both question and answer."""
        if self.question == self.answer:
            raise InputError(f"columns: {self.question!r} cannot be both question and answer; name another for one")


class Row(NamedTuple):
    """A problem of a file, the split that the file gives it, if any, and where it stands."""

    worked: Worked
    split: Split | None
    place: str


def same_question(question: str) -> str:
    """What two questions share that differ in case and white space alone."""
    return " ".join(question.split()).casefold()


def row_of(values: Mapping[str, Any], place: str, columns: Columns) -> Row:
    """The problem that a row is.

    Raises:
        InputError: it has no question or answer, or a value of it is neither text nor, of an answer, a number.
    """

    def cell(key: str, numbers: Literal["none", "whole", "all"]) -> str:
        column = getattr(columns, key)
        if column in values:
            return "" if _is_missing(values[column]) else cell_text(values[column], f"{place}: its {column}", numbers)
        if column == key and key not in ("question", "answer"):
            return ""
        raise InputError(
            f"{place} has no {column}; it has {_some(values)}: "
            'say which column is which: problems.columns = {question = "...", answer = "..."}'
        )

    question = _filled(cell("question", "none"), columns.question, place)
    text = _filled(_CALCULATOR.sub("", cell("answer", "all")), columns.answer, place)
    work, marker, gold = text.rpartition("####")
    answer = gold.strip() if marker else text
    if not answer:
        raise InputError(f"{place} has nothing after ####, so no answer; add the gold answer there")
    solution = cell("solution", "all").strip() or (text if work.strip() else f"#### {answer}")
    template = cell("template", "whole").strip()
    if not template and columns.template == Columns().template:
        template = _numbered(values, place)
    split = cell("split", "none").strip()
    if split and split.casefold() not in SPLITS:
        raise InputError(f"{place}: unknown split {split!r}; known: {', '.join(SPLITS)}")
    return Row(
        Worked(template or NO_TEMPLATE, question, answer, solution), SPLITS[split.casefold()] if split else None, place
    )


def _some(values: Mapping[str, Any]) -> str:
    names = [str(name) for name in values]
    return ", ".join(names[:12]) + " ..." * (len(names) > 12) or "nothing"


def _filled(text: str, column: str, place: str) -> str:
    if not text.strip():
        raise InputError(f"{place} has no {column}: there is nothing in it; fill it in or leave the row out")
    return text.strip()


def _numbered(values: Mapping[str, Any], place: str) -> str:
    """The template of a row of GSM-Symbolic, which calls it ``id`` beside ``instance``."""
    if any(_is_missing(values.get(key)) for key in ("id", "instance")):
        return ""
    number, _ = (cell_text(values[key], f"{place}: its {key}", "whole") for key in ("id", "instance"))
    return number.strip()


# ---- values ----


def _is_missing(value: Any) -> bool:
    """Nothing, or what pandas puts where there is nothing."""
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, Real) and not isinstance(value, Rational):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def cell_text(value: Any, what: str, numbers: Literal["none", "whole", "all"] = "none") -> str:
    """A value of a row as text, exactly as it stands.

    Args:
        value: text, or a number.
        what: it is, for messages, such as ``own.jsonl, row 3: its answer``.
        numbers: which numbers are taken.

    Raises:
        InputError: it is something else, or text that cannot be written to a file.
    """
    if isinstance(value, str):
        text = str.__str__(value)
        if "\0" in text or text != text.encode(errors="ignore").decode():
            raise InputError(f"{what} holds a NUL character or half a surrogate pair; write it in whole characters")
        return text
    number = None if numbers == "none" else plain_number(value, what)
    if number is None or (numbers == "whole" and not number.lstrip("-").isdecimal()):
        wanted = {"none": "text", "whole": "text or a whole number", "all": "text or a finite number"}[numbers]
        raise InputError(f"{what} is {_shown(value)}, of type {type(value).__name__}; give {wanted}")
    return number


def plain_number(value: Any, what: str) -> str | None:
    """A finite number as people write it (``5``, ``0.25``, ``100000000000000000000``); None where it is none.

    Raises:
        InputError: it has more digits than an answer may have.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Rational):
        exact = Fraction(int(value.numerator), int(value.denominator))
        if max(abs(exact.numerator), exact.denominator) >= 10**_MAX_DIGITS:
            raise InputError(f"{what} has more than {_MAX_DIGITS} digits; write it as text")
        return str(exact)
    if isinstance(value, Real) and math.isfinite(value):
        value = _without_noise(float(value)) if isinstance(value, float) else Decimal(str(value))
    if not isinstance(value, Decimal) or not value.is_finite():
        return None
    if len(value.as_tuple().digits) > _MAX_DIGITS or (value and abs(value.adjusted()) > _MAX_DIGITS):
        raise InputError(f"{what} has more than {_MAX_DIGITS} digits; write it as text")
    plain = format(value, "f") if value else "0"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _without_noise(value: float) -> Decimal:
    exact, rounded = Decimal(repr(value)), Decimal(format(value, ".15g")).normalize()
    shorter = len(exact.normalize().as_tuple().digits) - len(rounded.as_tuple().digits)
    return rounded if shorter >= _NOISE else exact


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # a repr of somebody else's, or of a number of thousands of digits
        return "something"


# ---- duplicates ----


def distinct(rows: Iterable[Row], where: str, grader: str = "number") -> list[Row]:
    """The rows, of those that ask the same in the same split and with the same answer the first alone.

    Where some rows have a split, those without one are for training.

    Args:
        rows: of one source.
        where: they are from, for messages.
        grader: by which a run compares answers.

    Raises:
        InputError: there are none, or two ask the same in two splits or with two answers.
    """
    rows = list(rows)
    if any(row.split for row in rows):
        rows = [row._replace(split=row.split or "train") for row in rows]
    found: dict[str, Row] = {}
    clashes: list[str] = []
    for row in rows:
        first = found.setdefault(same_question(row.worked.question), row)
        asks = f"{row.place} asks what {first.place} asks"
        if row.split != first.split:
            clashes.append(f"{asks}, one in {row.split} and one in {first.split}; leave one of them out")
        elif not _same_answer(row.worked.answer, first.worked.answer, grader):
            answers = f"{reprlib.repr(row.worked.answer)} and {reprlib.repr(first.worked.answer)}"
            clashes.append(f"{asks}, but their answers are {answers}; mend one of them, or leave it out")
    if clashes:
        raise InputError(clashes[0] + f" (and so in {len(clashes) - 1} more cases)" * (len(clashes) > 1))
    if not found:
        raise InputError(f"{where} holds no problems; each row needs a question and an answer")
    return list(found.values())


def _same_answer(one: str, other: str, grader: str) -> bool:
    if one == other or GRADERS["exact"](one, other).correct:
        return True
    return load_grader(grader)(f"#### {one}", other).correct
