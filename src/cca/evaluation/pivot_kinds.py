"""What a pivot chooses between, read from its two tokens, and what the update made of the choice."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from cca.grading.characters import plain
from cca.records import Choice, Pivot

if TYPE_CHECKING:
    from cca.problems.prompts import Prompter

Kind = Literal["first token", "digit", "operator", "end", "word", "punctuation"]
PIVOT_KINDS: dict[Kind, str] = {
    "first token": "how the answer begins",
    "word": "two words, or a word and a mark",
    "punctuation": "marks, white space or the signs of a list",
    "digit": "a number in either token",
    "operator": "a sign of arithmetic in either token, and no number",
    "end": "whether to stop",
}
CARRIERS: tuple[Kind, ...] = ("digit", "operator", "end")
"""The kinds at which a calculation is done rather than told."""
Outcome = Literal["mended", "already preferred", "broken", "still not preferred", "not evaluated"]
OUTCOMES: dict[Outcome, str] = {
    "mended": "the updated model prefers the desired token, the base model did not",
    "already preferred": "both models prefer the desired token",
    "broken": "the base model preferred the desired token, the updated one does not",
    "still not preferred": "neither model prefers the desired token",
    "not evaluated": "what the updated model makes of it is not known before cca evaluate",
}
_AHEAD = 6
"""Tokens after a pivot that are looked at: they complete a character, a LaTeX command or the sign of a list."""
_LIST = re.compile(r"(?:\A|\n)[ \t]*(?P<sign>[-*+•]|\d{1,2}[.)])[ \t]+(?=\S)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_OPERATORS = re.compile(
    r"\\(?:times|div|cdot|ast|[dtc]?frac|sqrt|pm|mp|leq?|geq?|neq?|lt|gt|approx|sum|prod|[bp]?mod)(?![A-Za-z])"
    r"|(?<![^\W\d_])[xX](?![^\W\d_])"
)
_TAG = re.compile(r"</?[^<>\s]*\w[^<>]*>")
# arrows, the ends of a tag, and signs that are doubled or drawn as a line: Markdown, rules, << >> around a calculation
_LAYOUT = re.compile(r"([-*/<>~_#])\1+|={3,}|[-=]+>|<-+|</|/>")
_PROSE = dict.fromkeys(map(ord, "‐‑‒–—―"), ",")
"""Dashes that are no minus."""
_DOUBTFUL = "-*/<>·"
"""Signs that are also part of words, such as ``-based`` and ``/or``."""


def _is_sign(c: str) -> bool:
    return c in "-*/%^·" or (unicodedata.category(c) == "Sm" and c not in "|~" and not "←" <= c <= "⇿")


def says(text: str) -> Kind:
    r"""What a token's text is by itself: ``digit``, ``operator``, ``word`` or ``punctuation``.

    Anything with a number of any script in it is a digit (``12th``, ``1,``, ``½``). An operator is a sign of
    arithmetic, a lone ``x`` or a LaTeX command such as ``\times``; a sign inside a word (``-based``) is none, nor is
    one that is doubled (``**``, ``----``) or an arrow. A number in words is a word.
    """
    text = _LAYOUT.sub(" ", _TAG.sub("a", _OPERATORS.sub("×", plain(text.translate(_PROSE)))))
    kinds = [unicodedata.category(c)[0] for c in text]
    if "N" in kinds:
        return "digit"
    word = "L" in kinds or "M" in kinds or "\ufffd" in text
    if any(_is_sign(c) and not (word and c in _DOUBTFUL) for c in text):
        return "operator"
    return "word" if word else "punctuation"


def kind_of(desired: str, undesired: str, *, position: int, stops: bool) -> Kind:
    """The kind of a pivot.

    What is more particular goes first: a number against a word is a ``digit``, a sign against a mark an ``operator``;
    ``punctuation`` are only those of which both tokens are.

    Args:
        desired: the text of one token.
        undesired: that of the other.
        position: of the pivot in its trace.
        stops: whether exactly one of them ends the answer.
    """
    if position == 0:
        return "first token"
    if stops:
        return "end"
    said = {says(desired), says(undesired)}
    order: tuple[Kind, ...] = ("digit", "operator", "word")
    return next((kind for kind in order if kind in said), "punctuation")


def token_text(decode: Callable[[list[int]], str], before: Sequence[int], after: Sequence[int]) -> str:
    """The text of the first token of `after`, where it stands after `before`.

    Part of a character is read as that character, part of a LaTeX command as that command. The sign or the number that
    begins an item of a list says nothing, as tokens that are no text (a chat marker).
    """
    head, upto, whole = (decode([*before, *after[:count]]) for count in (0, 1, _AHEAD))
    head, read = head.rstrip("\ufffd"), upto.rstrip("\ufffd")
    start, end = len(head), len(read) + (read != upto)
    if not (
        read.startswith(head) and whole.startswith(read)
    ):  # a tokenizer that writes a token otherwise after another
        return decode([after[0]])
    text = whole[start:end]
    left, right = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    if left >= right:
        return text
    line = max(0, head.rfind("\n"))
    if any(m.start("sign") <= left and right <= m.end("sign") for m in _LIST.finditer(whole, line)):
        return ""
    inside = [m.span() for m in _COMMAND.finditer(whole, line) if m.start() < right and left < m.end()]
    return whole[min([start, *(a for a, _ in inside)]) : max([end, *(b for _, b in inside)])]


class Between(NamedTuple):
    """What a pivot chooses between. answers: with its desired token the text begins with the gold answer itself."""

    kind: Kind
    desired: str
    undesired: str
    answers: bool


def between(pivot: Pivot, prompter: "Prompter", gold: str) -> Between:
    """What `pivot` of a run chooses between.

    Args:
        pivot: found in a trace.
        prompter: of the run, whose tokenizer writes the texts; its end tokens and stop strings end an answer.
        gold: the answer of its problem.
    """
    before = list(pivot.prefix[len(pivot.prefix) - pivot.position :])
    sides = [(pivot.desired, *pivot.after_desired[1:]), (pivot.undesired, *pivot.after_undesired[1:])]
    desired, undesired = (token_text(prompter.decode, before, side) for side in sides)
    ends = [side[0] in prompter.end_tokens or prompter.stopped([*before, side[0]]) for side in sides]
    kind = kind_of(desired, undesired, position=pivot.position, stops=ends[0] != ends[1])
    begins = re.compile(rf"[\W_]*{re.escape(gold.strip())}(?!\w)", re.IGNORECASE)
    answers = bool(gold.strip()) and pivot.position == 0 and bool(begins.match(prompter.decode(sides[0])))
    return Between(kind, desired, undesired, answers)


def counted(kinds: Sequence[Kind]) -> dict[Kind, int]:
    """How many there are of each kind, all kinds, the commonest first."""
    found = Counter(kinds)
    return {kind: found[kind] for kind in sorted(PIVOT_KINDS, key=lambda kind: -found[kind])}


def outcome(base: Choice | None, updated: Choice | None) -> Outcome:
    """What became of a pivot, from what both models make of it."""
    if base is None or updated is None:
        return "not evaluated"
    before, after = base.desired > base.undesired, updated.desired > updated.undesired
    if after:
        return "already preferred" if before else "mended"
    return "broken" if before else "still not preferred"
