"""Graders: what answer a text gives, and whether it equals the gold answer."""

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[-−]?[$£€]?\d[\d,]*(?:\.\d+)?|[-−]?[$£€]?\.\d+")


def last_number(text: str) -> str:
    """The last number in `text`, commas, currency signs and a trailing ``.0`` removed; empty if there is none.

    This is the heuristic GSM-Symbolic (arXiv 2410.05229) was graded with. A minus sign counts only where it is
    not a subtraction, that is, not directly after a digit, letter, percent sign or closing bracket.
    """
    found = ""
    for match in _NUMBER.finditer(text):
        start, token = match.start(), match[0]
        if token[0] in "-−" and start and (text[start - 1].isalnum() or text[start - 1] in "%)]"):
            token = token[1:]
        found = token
    return normal_number(found)


def normal_number(text: str) -> str:
    """`text` as a plain decimal (``-1,200.50`` -> ``-1200.5``); `text` stripped where it is not a number."""
    cleaned = re.sub(r"[,$£€%\s]", "", text).replace("−", "-")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return text.strip()
    if not value.is_finite():
        return text.strip()
    plain = format(value, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def final_text(text: str) -> str:
    """What follows the last ``####``, or the whole text, stripped."""
    return text.rsplit("####", 1)[-1].strip()


def grade_number(text: str, gold: str) -> tuple[str, bool]:
    """The answer that `text` gives by `last_number`, and whether it equals `gold` as a number."""
    answer = last_number(text)
    return answer, answer != "" and answer == normal_number(gold)


def grade_exact(text: str, gold: str) -> tuple[str, bool]:
    """The final text, compared as it stands (numbers by value, case and outer space ignored)."""
    answer = final_text(text)
    return answer, answer != "" and normal_number(answer).casefold() == normal_number(gold).casefold()


GRADERS = {"number": grade_number, "exact": grade_exact}
