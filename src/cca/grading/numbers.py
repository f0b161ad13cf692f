"""Numbers in text: the first and the last one, and whether a text is one number and what it is."""

import re
from decimal import Decimal
from fractions import Fraction

from cca.grading.characters import plain

_CURRENCY = r"\\?[$£€¥฿₠-₿]"
# an exponent of four digits would write a decimal of thousands of zeros, one of ten would fill the memory
_EXPONENT = r"[eE][-+]?\d{1,3}(?!\w)"
# ".5" is a number of its own only after a space or a sign: not in "1.2.5", "wait...5" or "end of sentence.5"
_BARE_DECIMAL = r"(?<![\w.])\.\d+"
_NUMBER = re.compile(rf"(-?)(?:{_CURRENCY}\s?)?((?:\d[\d,]*(?:\.\d+)?|{_BARE_DECIMAL})(?:{_EXPONENT})?)")
_VALUE = re.compile(
    rf"(?:{_CURRENCY}\s?)?([-+]?)\s?(?:{_CURRENCY}\s?)?"
    rf"((?:(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d*)?|\.\d+)(?:{_EXPONENT})?)\s?(?:\\?%|{_CURRENCY})?"
)
# a whole number before it makes it a mixed one ("1 1/2")
_FRACTION = re.compile(
    r"(-?)(?:(?:(?<![\d.,/])(\d{1,18}) ?)?\\[dtc]?frac\{(\d{1,18})\}\{(\d{1,18})\}"
    r"|(?:(?<![\d.,/])(\d{1,18}) )?(?<![\d.,/])(\d{1,18})\s?[/⁄]\s?(\d{1,18})(?![\d/]))"
)
_BRIEF_FRACTION = re.compile(  # \frac12, \frac 1 2, \frac{-1}2
    r"(-?)\\([dtc]?frac) ?(?:\{ ?(-?)(\d{1,18}) ?\}|(\d)) ?(?:\{ ?(\d{1,18}) ?\}|(\d))"
)
_WORDS_IN_LATEX = re.compile(r"\\(?:text(?:bf|rm|it|normal)?|math(?:rm|bf|it)|mbox)\s?\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\(?:[,;: ]|q?quad(?![A-Za-z]))")
# where an answer begins, a minus with a space after it is no list's bullet and no subtraction
_SPACED_MINUS = re.compile(
    rf"((?:####|\\f?boxed\s?\{{|=)\s*(?:\$\s*)?|\A(?=\s*-\s*[\d.,]+\s*\Z)\s*)-\s+(?=(?:{_CURRENCY}\s?)?[\d.\\])"
)
_UNIT = (
    r"(?:[kcdmnµμ]?[mgslL]|[kmMGT]?(?:V|W|J|N|A|Wh|Pa|Hz)|[kKMGT]B|h|K|C|F|Ω|in|ft|yd|mi|lbs?|oz|pt|qt|gal|hrs?|min|secs?"
    r"|wks?|mos?|yrs?|[aApP][mM]|st|nd|rd|th|mph|kph|kmh|rpm|bpm|cal|mol|deg|pcs?|px|ha|sq)(?![^\W\d_])"
)
_POWERED = r"(?:[kcdmnµμ]?m|s|sec|in|ft|yd|mi)"
_UNIT_POWER = re.compile(
    rf"((?<![A-Za-z\\]){_POWERED}(?=\^)|\d\s{{0,3}}[A-Za-z]{{4,}}(?=\^))\^(?:\{{[1-4]\}}|[1-4])(?![\w.]*\d)"
    rf"|((?<![A-Za-z\\]){_UNIT}(?=\^))\^(?:\{{-[1-4]\}}|-[1-4])(?![\w.]*\d)"
    rf"|((?:\d\s{{0,3}}|/\s?){_POWERED})[23](?![\w.]*\d)"
)
_NAME = re.compile(r"\A\s*\$?\s*[A-Za-z]\w*\s*=(?!=)")
_ESCAPED = re.compile(r"\\(?:([$%&#])|(?:left|right|displaystyle)(?![A-Za-z])|[()\[\]!])")
_DEGREES = re.compile(r"\^(?:\\circ|\{ ?\\circ ?\})|\\degree(?![A-Za-z])")
# the one number of a gold answer: commas only between its thousands
_ONE = re.compile(
    rf"(?:{_CURRENCY}\s?)?(-?)(?:{_CURRENCY}\s?)?(?<!\d)"
    rf"((?:(?:\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}|\d++)(?!,?\d)(?:\.\d*)?|{_BARE_DECIMAL})(?:{_EXPONENT})?)"
)
_LETTER = r"[A-Za-zΑ-ω](?![^\W\d_])"
# what makes a gold answer, with 0 for its number, more than that number and words: other signs than those of prose,
# operators, variables and functions, a pair or an interval, words that change the value
_MORE = re.compile(
    r"""[^\w\s.,;:'"’“”?()%‰$£€¥฿₠-₿¢°·/{}-]|_"""
    rf"|(?<!\w)-|-(?![^\W\d_])|/\s?(?!{_UNIT}){_LETTER}|/(?!\s?[^\W\d_])"
    rf"|0(?!{_UNIT})[A-Za-zΑ-ω]{{1,3}}(?![^\W\d_])|0\s+(?!{_UNIT}){_LETTER}\s*\Z"
    r"|(?<![^\W\d_])(?:[A-Za-zΑ-ω]|[B-Zb-zΑ-ω]\s+)0"
    r"|[^\W\d_]\s?\([^)]*0|\([^)]*0[^)]*,|\([^)]*,[^)]*0"
    r"|(?<![^\W\d_])(?i:sqrt|root|log|ln|exp|sin|cos|tan|pi|abs|mod|factorial|squared|cubed|choose|minus|negative|plus"
    r"|half|halves|dozens?|hundreds?|thousands?|[mbtr]+illions?|lakhs?|crores?)(?![^\W\d_])"
)


def last_number(text: str, *, fractions: bool = False) -> str:
    """The last number in `text` as a plain decimal, without commas, currency and a trailing ``.0``; empty if none.

    This is the heuristic GSM-Symbolic (arXiv 2410.05229, appendix) was graded with: all commas go, so "12,34" is 1234
    and "1, 2 and 3" ends with 3; "2/3" ends with 3 and "75%" is 75. A minus sign counts only where it is not a
    subtraction, that is, not directly after a digit, letter, percent sign or closing bracket. Beyond the heuristic,
    "1.5e3" and LaTeX's "1{,}234" are one number each, digits and dashes of any script count, the exponent of a unit
    ("12 cm^2") does not, and "½" is 1/2.

    Args:
        text: any.
        fractions: whether "2/3" at the end is a fraction, and "1 2/3" one.
    """
    text = _readable(text)
    if fractions or "⁄" in text:
        match = last_match(_FRACTION, text)
        value = _fraction(match) if match and (fractions or "⁄" in match[0]) else None
        if match and value is not None and not _NUMBER.search(text, match.end()):
            return str(value)
    match = last_match(_NUMBER, text)
    return _decimal(_sign(match), match[2]) if match else ""


def first_number(text: str) -> str:
    """The first number in `text`, an answer, as `last_number` writes it. A fraction is always read as one."""
    text = _readable(f"####{text}").removeprefix("####")
    match, fraction = _NUMBER.search(text), _FRACTION.search(text)
    if match and fraction and fraction.start() <= match.start(2) and (value := _fraction(fraction)) is not None:
        return str(value)
    return _decimal(_sign(match), match[2]) if match else ""


def one_number(text: str) -> str:
    """The number that all of `text` is, but for words, a unit and a name ("x = $1,200 per day"); else empty.

    A plain decimal, or a fraction as it is written ("6/8"; a mixed number is "3/2"). Of other mathematics ("5!",
    "2^3", "3x", "(1, 2)", "5 million") no part is taken for the whole.
    """
    text = _readable(f"####{text}").removeprefix("####")
    text = _DEGREES.sub("°", _ESCAPED.sub(r"\1", _NAME.sub("", text))).strip().removeprefix("+")
    match = _FRACTION.search(text) or _ONE.search(text)
    if not match or (match[1] and not _sign(match)):
        return ""
    around = text[: match.start()] + "0" + text[match.end() :]
    pair = "," in match[0] and "(" in around
    # _MORE looks from each bracket to the next, and no one number stands in a thousand characters
    if pair or len(around) > 1000 or sum(c.isdecimal() for c in around) > 1 or _MORE.search(around):
        return ""
    return _written(match) if match.re is _FRACTION else _decimal(_sign(match), match[2])


def normal_number(text: str) -> str:
    """`text` as a plain decimal (``-$1,200.50`` -> ``-1200.5``); `text` stripped where it is not one number.

    Commas count only between thousands, so that "1,2" stays what it is.
    """
    text = plain(text).strip()
    match = _VALUE.fullmatch(text)
    return _decimal(match[1], match[2]) if match else text


def same_number(a: str, b: str) -> bool:
    """Whether two results of `last_number` or `one_number` are one value."""
    if a == b or "/" not in a + b:
        return a == b
    return 0 < len(a) < 100 > len(b) > 0 and Fraction(a) == Fraction(b)  # int() refuses thousands of digits


def improper(text: str) -> str:
    """`text` with each mixed number that is written with a slash ("1 1/2") as a fraction ("3/2")."""
    return _FRACTION.sub(lambda m: m[1] + _written(m).lstrip("-") if m[5] and _written(m) else m[0], text)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of `pattern` in `text`."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def unwrap(text: str) -> str:
    r"""`text` without the LaTeX around words (``\text{apples}``)."""
    return _WORDS_IN_LATEX.sub(r"\1", text)


def _readable(text: str) -> str:
    text = _BRIEF_FRACTION.sub(_full_fraction, unwrap(plain(text)))
    return _UNIT_POWER.sub(r"\1\2\3", _LATEX_SPACE.sub(" ", _SPACED_MINUS.sub(r"\1-", text)))


def _full_fraction(match: re.Match[str]) -> str:
    sign, command, inner, *parts = match.groups("")
    above, below = parts[0] or parts[1], parts[2] or parts[3]
    return match[0] if sign and inner else f"{sign or inner}\\{command}{{{above}}}{{{below}}}"


def _sign(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    return "-" if match[1] and not (before.isalnum() or before in tuple("%)]}")) else ""


def _decimal(sign: str, digits: str) -> str:
    """The decimal without exponent and needless zeros."""
    plain_digits = format(Decimal(sign + digits.replace(",", "")), "f")
    plain_digits = plain_digits.rstrip("0").rstrip(".") if "." in plain_digits else plain_digits
    return "0" if plain_digits == "-0" else plain_digits


def _written(match: re.Match[str]) -> str:
    """The fraction that `match` of `_FRACTION` is, unreduced; empty where it is none."""
    whole, above, below = match[2] or match[5], int(match[3] or match[6]), int(match[4] or match[7])
    if not below or (whole and above >= below):
        return ""
    return f"{_sign(match)}{int(whole or 0) * below + above}/{below}"


def _fraction(match: re.Match[str]) -> Fraction | None:
    return Fraction(written) if (written := _written(match)) else None
