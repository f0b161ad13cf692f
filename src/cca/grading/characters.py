"""Text as graders read it: digits, signs and spaces as ASCII, and without what is no part of any answer."""

import re
import unicodedata

# what a tokenizer that does not know its special tokens leaves in a text; "<|reserved_5|>" would add a number
_SPECIAL = re.compile(
    r"<[|｜][^<>\s]{1,64}[|｜]>|</?s>"
    r"|(?i:<(?:[be]os|pad|unk|mask|sep|cls|eo[dtm]|endoftext|(?:start|end)_of_\w{1,32}|0x[0-9a-f]{2}"
    r"|(?:extra_id|unused|unused_token|reserved|reserved_token)_?\d{1,6})>)"
    r"|\[(?:[BE]OS|PAD|UNK|MASK|SEP|CLS|/?INST|control_\d{1,6})\]"
)
_DASHES = "‐‑‒–—―−⁻₋﹘﹣－˗➖"
_POWER = re.compile(r"(?<=[\d)])([⁺⁻]?[⁰¹²³⁴-⁹]+)")
_POWERS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_VULGAR = re.compile(r"(\d ?)?([¼-¾⅐-⅞↉])")
# spaces that do not break, thin ones and apostrophes; the full-width comma only among full-width digits, since among
# others it is punctuation
_THOUSANDS = re.compile(
    r"(?<![\d.,])\d{1,3}(?:(?:[\u00a0\u2007-\u200a\u202f'’٬]\d{3})+|(?:，[０-９]{3})+)(?![\d.,'’]*\d{3})(?!\d)"
)
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,?\\!|\\,)(?=\d{3})")
_FENCE = re.compile(r"^[ \t]*```[A-Za-z]*[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*`])(\*{1,3}|`{1,3})(?=[^\s*`])([^*`\n]*)(?<=[^\s])\1(?![\w*`])")


def plain(text: str) -> str:
    """`text` with the digits, dashes, spaces and separators of any script as ASCII.

    Left out are special tokens, characters without a width and what Markdown marks bold or as code. A character that
    is a fraction becomes one with a slash of its own (``½``: ``1⁄2``), so that it is no mere "1/2".
    """
    text = _SPECIAL.sub(" ", text) if "<" in text or "[" in text else text
    if not text.isascii() or "'" in text:
        text = _THOUSANDS.sub(lambda m: "".join(c for c in m[0] if c.isdecimal()), text)
        text = _POWER.sub(lambda m: "^" + m[1].translate(_POWERS), text)
        text = _VULGAR.sub(lambda m: f"{m[1].strip()} {_fraction(m[2])}" if m[1] else _fraction(m[2]), text)
        text = text.translate({ord(c): _ascii(c) for c in set(text) if not c.isascii()})
    text = _LATEX_COMMA.sub("", text)
    return _EMPHASIS.sub(r"\2", _FENCE.sub("", text)) if "`" in text or "*" in text else text


def _fraction(character: str) -> str:
    return unicodedata.normalize("NFKC", character)


def _ascii(character: str) -> str:
    """The ASCII that means the same; `character` itself where there is none."""
    if character in _DASHES:
        return "-"
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if "！" <= character <= "～":  # those of full width
        return ", " if character == "，" else chr(ord(character) - ord("！") + ord("!"))
    if found := {"∕": "/", "٫": ".", "٪": "%", "。": "."}.get(character):
        return found
    return {"Cf": "", "Zs": " "}.get(unicodedata.category(character), character)
