"""What answer a text gives, and whether it equals the gold answer, by reading alone (no sympy, no torch)."""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple


class Graded(NamedTuple):
    """The answer that a text gives (empty: none) and whether it is the gold one."""

    answer: str
    correct: bool


Grader = Callable[[str, str], Graded]
"""From a text and its gold answer."""

_CURRENCY = r"\\?[$£€¥₹]"
# an exponent of four digits would write a decimal of thousands of zeros, one of ten would fill the memory
_EXPONENT = r"[eE][-+−]?\d{1,3}(?!\w)"
# ".5" is a number of its own only after a space or a sign: not in "1.2.5", "wait...5" or "end of sentence.5"
_NUMBER = re.compile(rf"([-−]?)(?:{_CURRENCY})?((?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)(?:{_EXPONENT})?)")
_VALUE = re.compile(
    rf"(?:{_CURRENCY}\s?)?([-+−]?)(?:{_CURRENCY}\s?)?"
    rf"((?:(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d*)?|\.\d+)(?:{_EXPONENT})?)\s?(?:\\?%|{_CURRENCY})?"
)
_FRACTION = re.compile(
    r"([-−]?)(?:\\[dtc]?frac\{(\d{1,18})\}\{(\d{1,18})\}|(?<![\d.,/])(\d{1,18})\s?/\s?(\d{1,18})(?![\d/]))"
)
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!])(?=\d{3})")
_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")


def last_number(text: str) -> str:
    """The last number in `text` as a plain decimal, without commas, currency and a trailing ``.0``; empty if none.

    This is the heuristic GSM-Symbolic (arXiv 2410.05229, appendix) was graded with: all commas go, so "12,34" is 1234
    and "1, 2 and 3" ends with 3; "2/3" ends with 3 and "75%" is 75. A minus sign counts only where it is not a
    subtraction, that is, not directly after a digit, letter, percent sign or closing bracket. Beyond the heuristic,
    "1.5e3" and LaTeX's "1{,}234" are one number each.
    """
    match = _last(_NUMBER, _LATEX_COMMA.sub("", text))
    return _decimal(_sign(match), match[2]) if match else ""


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def _sign(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    return "-" if match[1] and not (before.isalnum() or before in tuple("%)]}")) else ""


def _decimal(sign: str, digits: str) -> str:
    """The decimal without exponent and needless zeros."""
    plain = format(Decimal(sign.replace("−", "-") + digits.replace(",", "").replace("−", "-")), "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


def normal_number(text: str) -> str:
    """`text` as a plain decimal (``-$1,200.50`` -> ``-1200.5``); `text` stripped where it is not one number.

    Commas count only between thousands, so that "1,2" stays what it is.
    """
    match = _VALUE.fullmatch(text.strip())
    return _decimal(match[1], match[2]) if match else text.strip()


def final_text(text: str) -> str:
    r"""What follows the last ``####``, or the whole text, stripped; of that, what the last ``\boxed{}`` holds."""
    text = text.rsplit("####", 1)[-1]
    if box := _last(_BOX, text):
        text, depth = text[box.end() :], 1
        for brace in re.finditer(r"[{}]", text):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                text = text[: brace.start()]
                break
    return text.strip()


def _fraction(match: re.Match[str] | None) -> Fraction | None:
    above, below = (int(match[2] or match[4]), int(match[3] or match[5])) if match else (0, 0)
    return Fraction(-above if match and _sign(match) else above, below) if below else None


def grade_number(text: str, gold: str) -> Graded:
    """The answer that `text` gives by `last_number`, and whether it equals the one number that `gold` holds.

    Where `gold` is a fraction ("3/4", LaTeX's too), a fraction at the end of `text` is read as one and compared by
    value. A gold answer with no number or with several ("1 1/2", "2:30") equals nothing.
    """
    gold = _LATEX_COMMA.sub("", final_text(gold))
    wanted = _fraction(_FRACTION.fullmatch(gold.strip("$ .")))
    if wanted is None:
        answer, numbers = last_number(text), len(list(_NUMBER.finditer(gold)))
        return Graded(answer, answer != "" and numbers == 1 and answer == last_number(gold))
    match = _last(_FRACTION, text)
    value = _fraction(match)
    if match and value is not None and not _NUMBER.search(text, match.end()):
        return Graded(str(value), value == wanted)
    answer = last_number(text)
    return Graded(answer, 0 < len(answer) < 100 and Fraction(answer) == wanted)  # int() refuses thousands of digits


def grade_exact(text: str, gold: str) -> Graded:
    """The final text, compared with the final text of `gold` as it stands.

    A number is compared by value; case and outer space are ignored.
    """
    answer = final_text(text)
    same = normal_number(answer).casefold() == normal_number(final_text(gold)).casefold()
    return Graded(answer, answer != "" and same)


GRADERS: dict[str, Grader] = {"number": grade_number, "exact": grade_exact}
