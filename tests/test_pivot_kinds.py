"""Each pivot is of the kind that its two tokens say, whatever the tokenizer makes of spaces, scripts and characters."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cca.evaluation.pivot_kinds import PIVOT_KINDS, between, counted, kind_of, says, token_text
from cca.evaluation.summarize import by_kind
from cca.problems.prompts import Prompter
from cca.records import Choice, Pivot

SAYS = {
    "digit": ["7", " 12", "▁12", "12th", "1,", "$5", "٣", " ७", "１２", "½", "x2", ".5", "-3", "²", "7.\n"],
    "operator": [
        "+", " -", "−", " ×", "÷", "=", "%", "^", " <", ">", "<=", "x", " X", "/", " * ", "=-", "\\times", "\\frac{",
        "\\div", " \\%", "＋", "==", "√", "=x", "a+b", ")/(", "\\le ", "≈", "+$",
    ],
    "word": [
        "To", " can", "ed", " the", "每", "é", "-based", "/or", "well-", "\\text", "\\boxed", "\\cdots", "\ufffd",
        "<answer>", "</b>", "seven", "xy", "Max", "ax", "it's", "(a", "▁to", "I", "e\u0301", "\\leaf",
    ],
    "punctuation": [
        "", " ", "\n\n", ".", ",\n", "####", " $", "€", ":", "(", "**", " **:", "***", "---", "====", "->", "=>", "<<",
        ">>", "—", "–", "|", "•", "…", "😀", "→", "\\(", "\\", "<|im_start|>", "<0x0A>", "```", "</", "«", "\u200b",
        "<extra_id_7>", "<s>",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SAYS.items() for text in texts])
def test_a_token_says_a_number_a_sign_a_word_or_a_mark(kind, text):
    assert says(text) == kind


TEXTS = st.sampled_from([text for texts in SAYS.values() for text in texts])


@given(TEXTS, TEXTS, st.integers(0, 3), st.booleans())
def test_what_is_more_particular_decides_and_which_token_is_desired_does_not(a, b, position, stops):
    kind = kind_of(a, b, position=position, stops=stops)
    assert kind == kind_of(b, a, position=position, stops=stops)
    if position == 0:
        assert kind == "first token"
    elif stops:
        assert kind == "end"
    else:
        assert kind == next(k for k in ("digit", "operator", "word", "punctuation") if k in (says(a), says(b)))


@given(st.text(max_size=6), st.text(max_size=6))
def test_any_two_texts_have_a_kind_that_white_space_around_them_does_not_change(a, b):
    kind = kind_of(a, b, position=1, stops=False)
    assert kind in PIVOT_KINDS
    assert kind == kind_of(f" {a}", f"{b} \n", position=1, stops=False)


# ---- in its place ----


END = 256


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8, and one above them that is special: the end."""

    def __init__(self):
        self.special_tokens_map, self.all_special_ids, self.eos_token_id = {"eos_token": "</s>"}, [END], END
        self.added_tokens_decoder = {END: SimpleNamespace(content="</s>", special=True)}

    def __len__(self) -> int:
        return 257

    def decode(self, tokens, **_) -> str:
        return b"".join(b"</s>" if token == END else bytes([token]) for token in tokens).decode(errors="replace")

    def convert_ids_to_tokens(self, token) -> str:
        return {END: "</s>"}[token]


PROMPTER = Prompter(Bytes(), "{question}", frozenset({END}), stop=("Q:",))


def pivot(before: str | bytes, good: str | bytes, bad: str | bytes) -> Pivot:
    """The pivot after `before` at which a text goes on with `good` or with `bad`; an empty one ends."""
    head, *sides = (t.encode() if isinstance(t, str) else t for t in (before, good, bad))
    desired, undesired = ((*side, END) for side in sides)
    return Pivot(
        (1, 2, *head), desired[0], undesired[0], "p", position=len(head), after_desired=desired,
        after_undesired=undesired,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "good", "bad", "kind"),
    [
        ("", "To find", "#### 5", "first token"),
        ("", "5", "", "first token"),
        ("5 + 3", "", "\nQ", "end"),
        ("5 + 3 = 8", "", ".", "end"),
        ("#### 8\nQ", ": next", " is", "end"),
        ("So 5 ", "+ 3", "- 3", "operator"),
        ("So 5 ", "\\times 3", "x", "operator"),
        ("So 5 \\", "times 3", "alpha", "operator"),
        ("So 5 \\t", "imes 3", "ext{a}", "operator"),
        ("So 5 ", "\\text{a}", "a", "word"),
        ("So 5 ", "×3", "of", "operator"),
        ("So 5 \xc3".encode("latin-1"), "\x97".encode("latin-1"), "\xa9".encode("latin-1"), "operator"),
        ("So ", "٣", "of", "digit"),
        ("So \xd9".encode("latin-1"), "\xa3".encode("latin-1"), "\x84".encode("latin-1"), "digit"),
        ("So ", "每个", "a", "word"),
        ("So ", "😀", ".", "punctuation"),
        ("So:\n", "- five", "* five", "punctuation"),
        ("So:\n", "1. Add", "- Add", "punctuation"),
        ("So:\n1", "2. Add", "3. Add", "punctuation"),
        ("So:\n1", "2 + 3", "3. Add", "digit"),
        ("So:\n", "- five", "Five", "word"),
        ("So:\n", "-5 + 3", ".", "operator"),
        ("So:\n", "12 + 3", "23 + 3", "digit"),
        ("So:\n", "1.5 + 3", "Five", "digit"),
        ("So 7 ", "- 3", ". Then", "operator"),
        ("So:", "\n", " ", "punctuation"),
        ("So 5", " 3", ".", "digit"),
        ("So 5", "  and", ".", "word"),
        ("So 5", "  \n", ".", "punctuation"),
        ("So:\n", " - five", "Five", "word"),
    ],
)
def test_a_pivot_is_read_where_it_stands(before, good, bad, kind):
    assert between(pivot(before, good, bad), PROMPTER, "8").kind == kind
    assert between(pivot(before, bad, good), PROMPTER, "8").kind == kind


@given(st.text(min_size=1, max_size=8), st.text(alphabet="9é٣×每😀a", min_size=1, max_size=4), st.data())
def test_any_part_of_a_character_is_read_as_that_character(before, text, data):
    head, whole = before.encode(), text.encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    characters = [c for c in text for _ in c.encode()]
    if before.endswith(("\\", "\n")) or before.isspace():
        return
    found = token_text(PROMPTER.decode, [*head, *whole[:cut]], [*whole[cut:]])
    assert found == characters[cut]


@pytest.mark.parametrize(
    ("gold", "text", "answers"),
    [
        ("B", "B", True), ("b", " (B) since", True), ("yes", "**Yes**, it is", True), ("72", "$72", True),
        ("-3", "-3", True), ("18", "1. First", False), ("T", "To find", False), ("a.c", "abc", False), ("", "x", False),
        ("B", "", False),
    ],
)  # fmt: skip
def test_a_first_token_is_the_answer_itself_where_the_gold_one_begins_with_it(gold, text, answers):
    assert between(pivot("", text, "?"), PROMPTER, gold).answers is answers
    assert not between(pivot("So ", text, "?"), PROMPTER, gold).answers


def test_what_says_nothing_is_still_shown_as_the_token_that_it_is():
    found = between(pivot("So:\n", "- five", ""), PROMPTER, "5")
    assert (found.kind, found.desired, found.undesired) == ("end", "-", "</s>")


def test_both_ends_of_an_answer_are_no_choice_whether_to_stop():
    both = Pivot((1, 2, *b"5\nQ"), END, ord(":"), "p", position=3)
    assert between(both, PROMPTER, "5").kind == "punctuation"


def test_pivots_by_kind_tell_what_both_models_make_of_them():
    prefers = {"a": (0, 1), "b": (1, 1), "c": (1, 0), "d": (0, 0)}
    choices = [
        Choice(model, problem, -1.0 if chosen else -3.0, -2.0)
        for problem, both in prefers.items()
        for model, chosen in zip(("base", "updated"), both, strict=True)
    ]
    found = by_kind(
        {"a": "digit", "b": "digit", "c": "digit", "d": "end", "e": "end", "f": "word"}, choices, {"e", "f"}
    )
    assert {kind: tuple(vars(of).values()) for kind, of in found.items() if of.n or of.unconfirmed} == {
        "digit": (3, 2, 1, 0), "end": (1, 0, 0, 1), "word": (0, 0, 0, 1),
    }  # fmt: skip
    assert list(found)[:2] == ["digit", "end"]
    assert found.keys() == counted([]).keys()
