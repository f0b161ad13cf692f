"""Texts with slots: where values go in a template's question and solution, and how they are written there."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cca.problems.templates.expressions import Expression, Pair, Value, number

_SLOT = re.compile(r"\{([^{}]*)\}")
# GSM8K's calculator annotations; published templates close one with a single > and follow one by a second =.
_CALCULATOR = re.compile(r"<<(?:\{[^{}]*\}|[^{}<>])*>>?=?")
_SENTENCE_START = re.compile(r"(?:[.?!][\"')]?\s+|\n\s*)$")
_DEFAULT_NUMBER = re.compile(r"-?(\d[\d,]*)(?:\.(\d+))?(%?)")
_CURRENCIES = tuple("$€£¥")


class Slot(NamedTuple):
    """A place in a text: what stands there, its published default, and how a number is written."""

    expression: Expression
    default: str
    starts_sentence: bool
    places: int  # decimals that a number with decimals has at least
    commas: bool  # 1,200 rather than 1200
    suffix: str  # the % of a default such as 60%
    ratio: bool  # 3/4 rather than 0.75
    times: int = 1  # 100 where a share such as 0.6 is shown as 60%

    def write(self, value: Value) -> str:
        """`value` as text; a pair by its wording."""
        if isinstance(value, str | Pair):
            text = value.text if isinstance(value, Pair) else value
        else:
            text = number_text(number(value) * self.times, self.places, self.commas, self.ratio) + self.suffix
        return text[:1].upper() + text[1:] if self.starts_sentence else text


Pieces = tuple[str | Slot, ...]


def read_slots(
    text: str, read: Callable[[str], tuple[Expression, str]], fractions: frozenset[str], *, shows_value: bool = False
) -> Pieces:
    """`text` cut at its slots, without calculator annotations.

    read: the expression and the default of what stands between two braces. fractions: the variables whose values are
    written as fractions. shows_value: a slot whose default is ``60%`` shows the 60 alone, as solutions need.
    """
    text = _CALCULATOR.sub("", text.strip())
    pieces: list[str | Slot] = []
    end = 0
    for match in _SLOT.finditer(text):
        between = text[end : match.start()]
        end = match.end()
        before = between.rstrip() or (pieces[-1] if pieces else "")
        money = (before.default if isinstance(before, Slot) else before).endswith(_CURRENCIES)
        expression, default = read(match[1])
        written = _DEFAULT_NUMBER.fullmatch(default)
        units, decimals, suffix = written.groups("") if written else ("", "", "")
        pieces += [between] if between else []
        pieces.append(
            Slot(
                expression,
                default,
                starts_sentence=not pieces or bool(_SENTENCE_START.search(between)),
                places=max(len(decimals), 2 * money),
                commas="," in units,
                suffix="" if shows_value else suffix,
                ratio=not money and ("Fraction" in expression.calls or not fractions.isdisjoint(expression.names)),
            )
        )
    return (*pieces, text[end:])


def slots(pieces: Pieces) -> Iterator[Slot]:
    """The slots of a text, in order."""
    return (piece for piece in pieces if isinstance(piece, Slot))


def fill(pieces: Pieces, value: Callable[[Slot], Value]) -> str:
    """The text with `value` of each slot in its place."""
    return "".join(piece if isinstance(piece, str) else piece.write(value(piece)) for piece in pieces).strip()


def number_text(value: Value, places: int = 0, commas: bool = False, ratio: bool = False) -> str:
    """A number as people write it: an integer, a decimal of up to 6 places, else a fraction.

    A decimal has at least `places` places; `ratio` prefers ``3/4`` to ``0.75``.
    """
    value = number(value)
    if isinstance(value, int):
        return f"{value:,}" if commas else str(value)
    exact = next((p for p in range(1, 7) if 10**p % value.denominator == 0), None)
    if ratio or exact is None:
        return str(value)
    units, rest = divmod(abs(value) * 10**exact, 10**exact)
    return f"{'-' * (value < 0)}{number_text(units, commas=commas)}.{str(rest).zfill(exact).ljust(places, '0')}"
