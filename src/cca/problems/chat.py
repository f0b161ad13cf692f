"""A tokenizer's chat template: how it takes a conversation, and whether all of it arrives."""

import itertools
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from cca.errors import InputError
from cca.problems.tokens import is_marker

Argument = bool | int | float | str
"""What a chat template can be told beside the conversation."""
OTHER_STYLE = 'use prompt.style "few-shot" or "plain"'
PROBES = ("Ana has 12 plums and buys 5 more. How many are there?", "Tom picks 30 pears and eats 4. How many has Tom?")
"""Questions to try a prompt with."""

_DATED = (
    "{% macro strftime_now(format) %}{%- set said = namespace(text=format.replace('%%', '\\0')) -%}"
    "{%- for code, value in cca_date.items() -%}{%- set said.text = said.text.replace(code, value) -%}{%- endfor -%}"
    "{{ said.text.replace('\\0', '%') }}{%- endmacro %}\n"
)
"""Stands before a template that asks for the time: a macro goes before the function that looks at the clock."""
_DATE_CODES = [f"%{flag}{letter}" for flag in ("-", "_", "^", "#", "0", "") for letter in string.ascii_letters]
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""A tag of transformers, which jinja2 does not know."""
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}


class Turn(NamedTuple):
    """What one side says. role: ``user``, ``assistant`` or ``system``."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, and the form in which it takes turns.

    Attributes:
        tokenizer: a Hugging Face tokenizer with a chat template.
        date: the time for templates that ask for it.
        arguments: what else the template is told.
        preamble: said first.
        system: in a turn of its own; otherwise in the first turn of the user, since not every template has a system
            turn and some say something of their own where none is given.
        parts: the content of a turn is a list of parts, not a text.
    """

    tokenizer: Any
    date: datetime
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    preamble: str = ""
    system: bool = False
    parts: bool = False

    def written(self, turns: Sequence[Turn], *, ask: bool) -> str:
        """The conversation as text. ask: up to where the assistant answers, otherwise up to its own end.

        Raises:
            InputError: the template raises, which the message repeats, or a turn does not arrive in the text.
        """
        if self.preamble and self.system:
            turns = [Turn("system", self.preamble), *turns]
        elif self.preamble:
            turns = [Turn(turns[0].role, f"{self.preamble}\n\n{turns[0].content}"), *turns[1:]]
        text = self._rendered(turns, ask)
        if self.parts and re.search(r"""['"]type['"]: ?['"]text['"]""", text):
            raise InputError(f"the tokenizer's chat template writes a list of parts as it stands; {OTHER_STYLE}")
        squeezed, place = _squeezed(text), 0
        for turn in turns:
            said = _squeezed(turn.content)
            place = squeezed.find(said, place)
            if place < 0:
                start = " ".join(turn.content.split())[:60]
                raise InputError(
                    f"what the {turn.role} says ({start!r} ...) is not in the prompt as the tokenizer's chat template "
                    f"writes it; {OTHER_STYLE}, or another chat template"
                )
            place += len(said)
        return text

    def _rendered(self, turns: Iterable[Turn], ask: bool) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": content}] if self.parts else content}
            for role, content in turns
        ]
        template = template_of(self.tokenizer)
        told: dict[str, Any] = dict(self.arguments)
        if "strftime_now" in template:
            template = _DATED + template
            told["cca_date"] = {code: self.date.strftime(code) for code in _DATE_CODES}
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=ask, tokenize=False, **told
            )
        except Exception as error:  # a template is a program of its own, which may fail in any way
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the tokenizer's chat template cannot write the prompt: {said}; {OTHER_STYLE}") from error


def open_chat(chat: Chat, shots: int = 0) -> Chat:
    """`chat` in the first form in which its template lets a conversation of `shots` examples arrive.

    The preamble goes into the first turn of the user; where that does not work, into a system turn. A content is a
    text; where that does not work, a list of one part.

    Raises:
        InputError: there is no template or no such form, or the template never reads one of the arguments.
    """
    _check_arguments(template_of(chat.tokenizer), chat.arguments)
    first: InputError | None = None
    for system, parts in itertools.product((False, True) if chat.preamble else (False,), (False, True)):
        form = replace(chat, system=system, parts=parts)
        try:
            _try(form, shots)
        except InputError as error:
            first = first or error
        else:
            return form
    assert first is not None
    if not chat.preamble:
        try:
            open_chat(replace(chat, preamble="Think step by step."), shots)
        except InputError:
            raise first from None
        raise InputError(f"{str(first).rpartition('; ')[0]}; set prompt.preamble, which is its system turn") from first
    raise first


def turn_end(tokenizer: Any) -> int | None:
    """The special token with which the chat template ends a turn of the assistant; None where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    chat, answer = Chat(tokenizer, datetime.now()), "It is 17."
    for preamble in ("", "Think step by step."):
        try:
            form = open_chat(replace(chat, preamble=preamble))
            text = form.written([Turn("user", PROBES[0]), Turn("assistant", answer)], ask=False)
        except InputError:
            continue
        rest = text[text.rfind(answer) + len(answer) :].lstrip()
        ids = tokenizer.encode(rest, add_special_tokens=False)
        return ids[0] if ids and is_marker(tokenizer, ids[0]) else None
    return None


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template.

    Raises:
        InputError: it has none.
    """
    try:
        return tokenizer.get_chat_template()
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(f'prompt.style is "chat", but the tokenizer has no chat template; {OTHER_STYLE}') from error


def _try(form: Chat, shots: int) -> None:
    """See that two questions with as many examples arrive, and that a template says the same thing twice."""
    shown = [
        turn
        for i in range(shots)
        for turn in (Turn("user", f"Eva finds {i} nuts and 3 more. How many?"), Turn("assistant", f"{i} + 3 nuts."))
    ]
    for question in PROBES:
        turns = [*shown, Turn("user", question)]
        if form.written(turns, ask=True) != form.written(turns, ask=True):
            raise InputError(f"the tokenizer's chat template writes the same prompt in two ways; {OTHER_STYLE}")


def _check_arguments(template: str, arguments: Mapping[str, Argument]) -> None:
    """See that the template reads all `arguments`."""
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    if not arguments:
        return
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
        read = find_undeclared_variables(parsed) - _GIVEN
    except TemplateError:
        return  # which is told where it is rendered
    for name in arguments:
        if name not in read:
            reads = f"reads {', '.join(sorted(read))}" if read else "takes none"
            raise InputError(f"prompt.chat_arguments.{name}: the tokenizer's chat template {reads}; leave {name} out")


def _squeezed(text: str) -> str:
    """Without white space, which templates trim."""
    return "".join(text.split())
