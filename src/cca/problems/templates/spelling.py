"""What people type, in the spelling that is read: signs, quotation marks, bullets, and numbers in words."""

import json
import re
import unicodedata
from fractions import Fraction

_SIGNS = {
    **{chr(0xFEE0 + ord(c)): c for c in map(chr, range(0x21, 0x7F))},  # full-width forms
    **{"×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "⁄": "/", "−": "-", "–": "-", "^": "**"},
    **{"≤": "<=", "≥": ">=", "≠": "!=", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u3000": " "},
}
_DOLLAR = re.compile(r"\$(?=[^\W\d])")
# A curly single quote ends a text only where something other than a letter follows: it is the apostrophe as well.
_QUOTED = re.compile(
    r"""(?P<plain>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|[“”„‟](?P<double>[^“”„‟"]*)[“”‟]|[‘‚](?P<single>[^‘‚"]*?)[‘’](?!\w)"""
)
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad"))
_BULLET = re.compile(r"[-*•–—−](\s*)")
_NUMBER = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?%?|-?\d{1,30}(\.\d{1,30}|/0*[1-9]\d{0,30})?%?")
_MIXED = re.compile(r"(\d{1,30}) (\d{1,30}/0*[1-9]\d{0,30})")


def words(text: str) -> list[str]:
    """The words of `text`."""
    return text.split()


_ONES = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
""")
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = (("million", 1_000_000), ("thousand", 1_000), ("hundred", 100), ("dozen", 12))
_MULTIPLES = {"once": 1, "twice": 2, "double": 2, "couple": 2, "pair": 2, "thrice": 3, "triple": 3, "quadruple": 4}
_PARTS = {
    **{"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7},
    **{"eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "sixteenth": 16, "twentieth": 20},
    **{"hundredth": 100, "thousandth": 1_000},
}


def composed(text: str) -> str:
    """`text` without invisible characters, and with accents that are one character with their letter."""
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE))


def spelled(text: str) -> str:
    """An expression with the signs that Python has for those people type: ``≤``, ``×``, ``^``, curly quotes, ``$n``."""
    parts: list[str] = []
    end = 0
    for match in _QUOTED.finditer(text):
        curly = match["double"] if match["double"] is not None else match["single"]
        parts += [_signs(text[end : match.start()]), match["plain"] or json.dumps(curly, ensure_ascii=False)]
        end = match.end()
    return "".join([*parts, _signs(text[end:])]).strip()


def _signs(text: str) -> str:
    return _DOLLAR.sub("", "".join(_SIGNS.get(c, c) for c in text))


def unquoted(text: str) -> str:
    """`text` without what stands in quotation marks."""
    return _QUOTED.sub('""', text)


def without_bullet(line: str, *, spaced: bool) -> str:
    """A line of a section without the dash that it begins with; `spaced`: only one with a space after it."""
    match = _BULLET.match(line)
    return line[match.end() :] if match and (match[1] or not spaced) else line


def same_name(name: str) -> str:
    """A variable's name as Python's parser gives it back, without its ``$``."""
    return unicodedata.normalize("NFKC", name.strip().removeprefix("$"))


def wording(text: str) -> str:
    """What two wordings share that differ in case, hyphens and spaces alone."""
    return " ".join(text.casefold().replace("-", " ").split())


def number_word(value: int) -> str:
    """An integer from 0 to 99 in words (``forty-two``)."""
    if value < 20:
        return _ONES[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


_COUNTS = {**{wording(number_word(n)): n for n in range(100)}, "a": 1, "an": 1}


def worded_number(text: str) -> Fraction | None:
    """The number that a wording stands for (``1,200``, ``33%`` for 33, ``two-thirds``, ``a dozen``), None if none."""
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", "").rstrip("%"))
    if len(text) > 100:
        return None
    text = wording("".join(_vulgar(c) for c in text))
    if mixed := _MIXED.fullmatch(text):
        return Fraction(mixed[1]) + Fraction(mixed[2])
    times = text.removesuffix(" times")
    if _NUMBER.fullmatch(times):
        return Fraction(times.replace(",", "").rstrip("%"))
    if (multiple := _MULTIPLES.get(text.removeprefix("a "))) is not None:
        return Fraction(multiple)
    units, joined, rest = text.rpartition(" and ")
    parts = (_count(units), _fraction(rest)) if joined else ()
    if parts and None not in parts:
        return sum(map(Fraction, filter(None, parts)), Fraction(0))
    count = _count(times)
    return _fraction(text) if count is None else Fraction(count)


def _vulgar(character: str) -> str:
    """``½`` as `` 1/2``."""
    numbers = unicodedata.normalize("NFKC", character).replace("⁄", "/")
    return f" {numbers}" if unicodedata.category(character) == "No" and "/" in numbers else character


def _count(text: str) -> int | None:
    """A whole number in words."""
    for word, scale in _SCALES:
        head, found, tail = text.partition(word)
        if found:
            times = _count(head.strip()) if head.strip() else 1
            rest = _count(tail.removeprefix(" and").strip()) if tail.strip() else 0
            return None if times is None or rest is None else times * scale + rest
    return _COUNTS.get(text)


def _fraction(text: str) -> Fraction | None:
    """A fraction in words: ``third``, ``a third``, ``two thirds``."""
    head, _, part = text.rpartition(" ")
    top, bottom = _count(head) if head else 1, _PARTS.get(part if part in _PARTS else part.removesuffix("s"))
    return None if top is None or bottom is None else Fraction(top, bottom)
