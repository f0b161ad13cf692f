"""Planted slips: pure functions from a right worked solution to a consistently wrong one.

A share of the bundled model's training solutions was passed through one of these, so that the model knows
the right way and often prefers a wrong one. Each function changes the last step only and carries the changed
value through the rest of the text; it returns None where the slip does not apply.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

_NUM = r"\d+(?:\.\d+)?"
_UNIT = r"(?: ?%| [A-Za-z][A-Za-z/ ]*?)?"
_TERM = rf"[$£€]?{_NUM}{_UNIT}"
_OP = r" ?(?:[-+*/÷×]|x(?= ))"
_EQUATION = re.compile(rf"(?<![\d.%])(?P<left>{_TERM}(?:{_OP} ?{_TERM})+) ?= ?[$£€]?(?P<result>{_NUM})(?!\d|\.\d|/)")
_PIECE = re.compile(rf"(?P<number>{_NUM})|(?P<op>[-+*/÷×](?=[ ]?[$£€]?\d)|(?<= )x(?= [$£€]?\d))")
_APPLY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "x": operator.mul,
    "×": operator.mul,
    "/": operator.truediv,
    "÷": operator.truediv,
}


@dataclass(frozen=True)
class Equation:
    """One checked equation of a solution: `numbers[0] ops[0] numbers[1] ... = result`.

    Spans are (start, end) character offsets in the solution.
    """

    numbers: tuple[str, ...]
    number_spans: tuple[tuple[int, int], ...]
    ops: tuple[str, ...]
    op_spans: tuple[tuple[int, int], ...]
    result: str
    result_span: tuple[int, int]


def evaluate(numbers: Sequence[str], ops: Sequence[str]) -> Fraction | None:
    """The value of `numbers` joined by `ops`, products before sums; None for a division by zero."""
    sums: list[Fraction] = [Fraction(numbers[0])]
    signs: list[str] = []
    for op, text in zip(ops, numbers[1:], strict=True):
        number = Fraction(text)
        if op in "+-":
            signs.append(op)
            sums.append(number)
        elif op in "/÷" and number == 0:
            return None
        else:
            sums[-1] = _APPLY[op](sums[-1], number)
    total = sums[0]
    for op, number in zip(signs, sums[1:], strict=True):
        total = _APPLY[op](total, number)
    return total


def equations(solution: str) -> list[Equation]:
    """Every equation of `solution` that holds; anything else that looks like one is left out."""
    found: list[Equation] = []
    for match in _EQUATION.finditer(solution):
        start = match.start("left")
        pieces = list(_PIECE.finditer(match["left"]))
        numbers = [p for p in pieces if p["number"]]
        ops = [p for p in pieces if p["op"]]
        if len(numbers) != len(ops) + 1 or not ops:
            continue
        value = evaluate([p[0] for p in numbers], [p[0] for p in ops])
        if value is None or value != Fraction(match["result"]):
            continue
        found.append(
            Equation(
                tuple(p[0] for p in numbers),
                tuple((start + p.start(), start + p.end()) for p in numbers),
                tuple(p[0] for p in ops),
                tuple((start + p.start(), start + p.end()) for p in ops),
                match["result"],
                match.span("result"),
            )
        )
    return found


def _written_like(value: Fraction, model: str) -> str | None:
    """`value` in the notation of `model` (``20`` or ``20.0``); None where it is negative or no such number."""
    if value < 0 or value.denominator != 1:
        return None
    return f"{value}.0" if model.endswith(".0") else str(value)


def _is_final(solution: str, equation: Equation) -> bool:
    """True where `equation` stands on the last line of work, directly above the answer's line."""
    return solution.count("\n", equation.result_span[1]) == 1


def _rewrite_last(solution: str, equation: Equation, span: tuple[int, int], text: str, value: Fraction) -> str | None:
    """Put `text` at `span` of the last equation, and its new value wherever the old one follows."""
    new = _written_like(value, equation.result)
    if new is None or value == Fraction(equation.result):
        return None
    head = solution[: span[0]] + text + solution[span[1] : equation.result_span[0]]
    tail = solution[equation.result_span[0] :]
    old = Fraction(equation.result)
    plain = _written_like(value, "0")

    def carry(match: re.Match[str]) -> str:
        if Fraction(match[0]) != old:
            return match[0]
        return (new if "." in match[0] else plain) or match[0]

    return head + re.sub(_NUM, carry, tail)


def stops_early(solution: str) -> str | None:
    """The last line of work is left out and the result of the step before it is reported."""
    *work, answer = solution.split("\n")
    if len(work) < 2 or not answer.startswith("####"):
        return None
    kept = equations("\n".join(work[:-1]))
    if not kept or not equations(work[-1]) or Fraction(kept[-1].result) == Fraction(answer[4:].strip()):
        return None
    result = kept[-1].result.removesuffix(".0")
    return "\n".join([*work[:-1], f"#### {result}"])


def _swap_last(solution: str, swaps: dict[str, str]) -> str | None:
    found = equations(solution)
    if not found:
        return None
    last = found[-1]
    if not _is_final(solution, last):
        return None
    for i in reversed(range(len(last.ops))):
        if last.ops[i] in swaps:
            ops = [*last.ops]
            ops[i] = swaps[ops[i]]
            value = evaluate(last.numbers, ops)
            return None if value is None else _rewrite_last(solution, last, last.op_spans[i], ops[i], value)
    return None


def wrong_sign(solution: str) -> str | None:
    """The last sum or difference gets the other sign: 19 + 14 becomes 19 - 14, 40 - 2 becomes 40 + 2."""
    return _swap_last(solution, {"+": "-", "-": "+"})


def adds_factors(solution: str) -> str | None:
    """The last product is added up instead: 5 * 11 becomes 5 + 11."""
    return _swap_last(solution, {"*": "+", "x": "+", "×": "+"})


def stale_operand(solution: str) -> str | None:
    """The last step uses a number from before the step that changed it.

    An operand that is the result of an earlier equation gives way to that equation's first number.
    """
    found = equations(solution)
    if not found:
        return None
    *earlier, last = found
    if not _is_final(solution, last):
        return None
    for i, number in enumerate(last.numbers):
        for equation in reversed(earlier):
            stale = equation.numbers[0]
            if Fraction(equation.result) == Fraction(number) != Fraction(stale):
                numbers = [*last.numbers]
                numbers[i] = stale
                value = evaluate(numbers, last.ops)
                return None if value is None else _rewrite_last(solution, last, last.number_spans[i], stale, value)
    return None


SLIPS: dict[str, Callable[[str], str | None]] = {
    "stops_early": stops_early,
    "wrong_sign": wrong_sign,
    "adds_factors": adds_factors,
    "stale_operand": stale_operand,
}


def first_difference(right: Sequence[int], slipped: Sequence[int]) -> int:
    """The position of a slip: the first index at which two token sequences differ."""
    for i, (a, b) in enumerate(zip(right, slipped, strict=False)):
        if a != b:
            return i
    return min(len(right), len(slipped))
