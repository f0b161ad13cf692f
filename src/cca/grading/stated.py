"""The number that a text states first as its answer, and what a ``\\boxed{}`` holds."""

import re

from cca.grading.characters import plain
from cca.grading.numbers import first_number, unwrap

BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")
_STATES = re.compile(  # "isn't" is no "is"
    rf"(?i:(?<![a-z])answer\s+is\b(?!\s+not\b)|(?<![a-z])answer[\"']?\s{{0,9}}:|####)|{BOX.pattern}"
)
_BEFORE = re.compile(r"(?:[^\w.!?]|\.{2,}|_)*")
"""What may stand between those words and the answer, line breaks too."""
_WORD = re.compile(r"(?<!\\)(?!(?:Rs|US|USD|EUR|GBP|INR)\b)[^\W\d_]{2}")
_END = re.compile(  # not in "3.5", "Rs. 5" and "5! = 120"
    r"(?<!=)(?<!= )\n(?!\s{0,9}=)"
    r"|(?:(?<=\d)\.(?!\d)|(?<!\bRs)(?<!\bNo)(?<!\bapprox)\.(?![\w.])|(?<!\\)[!?])(?!\s*=)"
)
_CLAUSE = re.compile(
    r"[,;]\s|(?<=\w)\s\(|[\s(](?:and|as|because|but|for|from|given|if|or|since|so|though|when|where|which|while|with)\b",
    re.I,
)
_EQUALS = re.compile(r"(?<![<>=!])=(?![=>])")
_DIGIT = re.compile(r"\d")


def stated_number(text: str) -> str:
    r"""The number of the first statement in `text` that holds one, as `first_number` writes it; empty if there is none.

    A statement follows "answer is" (but no "not"), "answer:" or ``####``, in any case, up to the end of its sentence or
    line, or is what a ``\boxed{}`` holds, also one inside a sentence. Of a calculation it is the number after the last
    ``=``, else the first one: 12 in "3 * 4 = 12", in "12 for 3 children" and in "12, since x = 3". After ``####``,
    "answer:" or a new line the number comes before any other word, or else they are a heading (``#### Step 1``).
    """
    text = unwrap(plain(text))
    place = 0
    while marker := _STATES.search(text, place):
        said, place = _statement(text, marker)
        if found := _number(said):
            return found
    return ""


def _statement(text: str, marker: re.Match[str]) -> tuple[str, int]:
    """What `marker` begins, and where to look for the next one."""
    if marker[0].endswith("{"):
        said = held(text, marker.end())
        return said, marker.end() + len(said)
    begin = _BEFORE.match(text, marker.end())
    assert begin
    if (not marker[0].endswith(("s", "S")) or "\n" in begin[0]) and _WORD.match(text, begin.end()):
        return "", marker.end()
    end = _END.search(text, begin.end())
    stop = end.start() if end else len(text)
    if box := BOX.search(text, marker.end(), stop):
        said = held(text, box.end())
        return said, max(stop, box.end() + len(said))
    return text[marker.end() : stop], stop


def held(text: str, start: int) -> str:
    """`text` from `start`, behind an opening brace, up to the one that closes it."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : brace.start()]
    return text[start:]


def _number(said: str) -> str:
    digit = _DIGIT.search(said)
    if not digit:
        return ""
    clause = _CLAUSE.search(said, digit.end())
    parts = _EQUALS.split(said[: clause.start()] if clause else said)
    return next((first_number(part) for part in reversed(parts) if _DIGIT.search(part)), "")
