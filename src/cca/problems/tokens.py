"""Text as token ids and back, where a tokenizer alone would add or lose something."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

_MARKER = re.compile(r"[<\[].*\w.*[>\]]", re.DOTALL)


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that goes on: with what the tokenizer puts first (a BOS), not with what it puts last."""
    around, bare = tokenizer.encode("1"), tokenizer.encode("1", add_special_tokens=False)
    starts = [i for i in range(len(around)) if around[i : i + len(bare)] == bare]
    last = len(around) - starts[0] - len(bare) if bare and starts else 0
    whole = tokenizer.encode(text)
    return whole[: len(whole) - last]


def continued(tokenizer: Any, context: str, text: str) -> list[int]:
    """The ids of `text` as they follow those of `context`.

    Encoded alone a text may begin with a token that only stands at the beginning of texts (the ``▁`` of
    SentencePiece). Where a token would reach over the border, `text` is encoded after a character that lets it be.
    """
    for before in (context, "\n", ":", "."):
        head = tokenizer.encode(before, add_special_tokens=False)
        whole = tokenizer.encode(before + text, add_special_tokens=False)
        if head and whole[: len(head)] == head:
            return whole[len(head) :]
    return tokenizer.encode(text, add_special_tokens=False)


def _added(tokenizer: Any) -> dict[int, Any]:
    try:
        return tokenizer.added_tokens_decoder
    except (AttributeError, NotImplementedError):  # of a tokenizer that is not transformers' own
        return {}


def is_marker(tokenizer: Any, token: int) -> bool:
    """Whether an id is a special token, or an added one in brackets such as ``<|im_end|>``, and not ordinary text."""
    added = _added(tokenizer).get(token)
    return token in tokenizer.all_special_ids or (
        added is not None and bool(added.special or _MARKER.fullmatch(added.content))
    )


def markers(tokenizer: Any, kept: str) -> frozenset[int]:
    """Special tokens that are no part of what a text says, such as ``<pad>`` and ``<|im_start|>``.

    What someone made special and still is text stays: what is not in brackets (a digit, ``####``), what stands in
    `kept`, and tags that come in pairs (``<answer>`` and ``</answer>``) unless they are the tokenizer's own BOS or EOS.
    """
    special = {token: added.content for token, added in _added(tokenizer).items() if added.special}
    named = {text for text in tokenizer.special_tokens_map.values() if isinstance(text, str)}
    special |= {token: tokenizer.convert_ids_to_tokens(token) for token in tokenizer.all_special_ids}
    tags = set(special.values()) - named
    paired = {tag for tag in tags if {tag.replace("<", "</", 1), tag.replace("</", "<", 1)} & (tags - {tag})}
    return frozenset(
        token for token, text in special.items() if _MARKER.fullmatch(text) and text not in kept and text not in paired
    )


def decoded(tokenizer: Any, tokens: Sequence[int], silent: frozenset[int]) -> str:
    """The text of `tokens` without those that are `silent` or beyond the vocabulary.

    What such a token stood between stays apart, so that ``7<sep>8`` is not read as 78.
    """
    known = len(tokenizer)
    runs = groupby(tokens, lambda token: token in silent or not 0 <= token < known)
    texts = [tokenizer.decode(list(run), clean_up_tokenization_spaces=False) for left_out, run in runs if not left_out]
    return " ".join(text for text in texts if text)


def completed(text_of: Callable[[Sequence[int]], str], tokens: Sequence[int], strings: Sequence[str]) -> bool:
    """Whether `text_of` the whole of `tokens` has one of `strings`, where it had none before the last token.

    Reads only the end of `tokens` as long as none is near: from a token that is a character or more by itself, and
    so far back that any of `strings` fits in.
    """
    if not strings:
        return False
    longest = max(map(len, strings))
    reach = longest + 2
    while True:
        start = max(0, len(tokens) - reach)
        while start and "\ufffd" in text_of(tokens[start : start + 1]):
            start -= 1
        tail = text_of(tokens[start:])
        if not start or len(tail) > longest + 1:
            break
        reach = 2 * (len(tokens) - start)
    if start and any(s in tail for s in strings):
        tail = text_of(tokens)
    return any(s in tail for s in strings)


@dataclass(frozen=True)
class StopStrings:
    """Strings before which an answer ends. An object of its own, since it goes to the processes that write.

    silent: tokens that are no text.
    """

    tokenizer: Any
    silent: frozenset[int]
    strings: tuple[str, ...]

    def ended(self, head: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the last of `tokens`, which follow `head`, completed one of the strings."""
        return completed(lambda some: decoded(self.tokenizer, some, self.silent), [*head, *tokens], self.strings)
