"""Problems as token ids, and token ids as text."""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, PlainValidator

from cca.errors import InputError
from cca.grading.answers import GRADERS, Graded, Grader
from cca.options import CountOrNone, Options
from cca.problems.chat import PROBES, Argument, Chat, Turn, open_chat
from cca.problems.tokens import StopStrings, continued, decoded, encoded, is_marker, markers
from cca.records import Problem, Trace

Style = Literal["plain", "few-shot", "chat"]
TEMPLATES: dict[Style, str] = {
    "plain": "Q: {question}\nA:",
    "few-shot": "Q: {question}\nA:",
    "chat": "{question}",
}
_NOT_ARGUMENTS = frozenset(
    {"messages", "conversation", "conversations", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self"}
    | {"strftime_now", "raise_exception", "cca_date"}
)
"""Names of what is said to a chat template, or to the tokenizer about it, in other ways."""


def _argument(value: Any) -> Any:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("is no text, finite number, true or false")


class PromptOptions(Options):
    """How a problem becomes a prompt."""

    style: Style = "plain"
    """``plain``: the question; ``few-shot``: worked examples, then the question; ``chat``: the tokenizer's chat
    template, each example a turn."""
    template: str | None = None
    """What stands for a question, with ``{question}``; all else stays as it is, other braces too. Default:
    ``Q: {question}``, a new line and ``A:``; for chat ``{question}`` alone."""
    preamble: str = ""
    """Said first, before any example. In a chat it begins the first turn of the user, or is the system turn where the
    chat template wants one."""
    separator: str = "\n\n"
    """What stands between preamble, worked examples and question where they are one text, ``plain`` and ``few-shot``:
    between any two of them, the preamble too. In a chat the chat template separates turns."""
    shots: CountOrNone = 0
    """How many examples."""
    examples: str = ""
    """Where they come from: ``lm-eval:TASK`` (those that lm-evaluation-harness shows) or a JSON-lines file with
    ``question`` and ``solution``."""
    replace: dict[str, str] = Field(default={})
    """Rewrites their solutions, each text by the other: ``{'The answer is' = 'The final answer is'}``."""
    prefill: str = ""
    """Of ``chat``: how each answer of the assistant begins, such as ``Let's think step by step.``. It ends the prompt,
    so that it is no part of an answer, and stop strings are looked for after it. It begins the worked examples' turns
    too; there a space follows it, unless it ends with white space."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these strings, as well as at the model's end token."""
    chat_arguments: dict[str, Annotated[Argument, PlainValidator(_argument)]] = Field(default={})
    """What else the chat template is told, for example ``{enable_thinking = false}``."""


def check_prompt(options: PromptOptions, where: str = "") -> None:
    """See that the options of a prompt go together.

    Raises:
        InputError: they do not. Its message begins with `where` they stand.
    """
    if options.template is not None and "{question}" not in options.template:
        raise InputError(f"{where}prompt.template has no {{question}}; add it where the question goes")
    if options.style == "few-shot" and not options.shots:
        raise InputError(f'{where}prompt.style is "few-shot" with no examples; set prompt.shots, for example to 8')
    if options.shots and options.style == "plain":
        raise InputError(f"{where}prompt.shots is {options.shots}, but a plain prompt shows none; set prompt.style")
    if options.shots and not options.examples:
        raise InputError(
            f"{where}prompt.shots is {options.shots}, but prompt.examples names none; set it to lm-eval:gsm8k_cot, or "
            "to a JSON-lines file with question and solution"
        )
    if options.replace and not options.shots:
        raise InputError(f"{where}prompt.replace rewrites worked examples, and prompt.shots shows none; leave it out")
    if "" in options.replace:
        raise InputError(f"{where}prompt.replace replaces a text of no characters; name one, or leave it out")
    _check_joined(options, where)
    for string in options.stop:
        if not string.strip(" "):
            raise InputError(f"{where}prompt.stop has {string!r}, at which every answer ends; leave it out")
    if options.chat_arguments and options.style != "chat":
        raise InputError(
            f"{where}prompt.chat_arguments are for a chat template, and prompt.style is {options.style}; leave them "
            'out, or set prompt.style to "chat"'
        )
    if taken := sorted(_NOT_ARGUMENTS & set(options.chat_arguments)):
        raise InputError(f"{where}prompt.chat_arguments.{taken[0]} is for cca to say; leave it out")


def _check_joined(options: PromptOptions, where: str) -> None:
    """See that separator and prefill are of the style."""
    if options.style == "chat" and options.separator != PromptOptions().separator:
        raise InputError(
            f"{where}prompt.separator stands between examples that are one text, and in a chat the chat template "
            "separates them; leave it out"
        )
    if not options.separator:
        raise InputError(f"{where}prompt.separator is empty, so that examples run into each other; write a line break")
    if found := re.search(r"\\[nrt]", options.separator):
        raise InputError(
            f"{where}prompt.separator has a backslash and the letter {found[0][1]}, and no line break or tab; in TOML "
            "write it in double quotes, in a shell with single ones around: --set 'prompt.separator=\"\\n\"'"
        )
    if options.prefill and options.style != "chat":
        raise InputError(
            f"{where}prompt.prefill begins each answer of a chat, and prompt.style is {options.style}; "
            "put it at the end of prompt.template"
        )


class Example(NamedTuple):
    """A question with its worked solution, shown before the question that is asked."""

    question: str
    solution: str


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts and generated tokens into graded traces, with one tokenizer.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        template: text with ``{question}``.
        end_tokens: ids that end a trace.
        style: ``plain`` and ``few-shot`` are text, encoded with the special tokens that the tokenizer puts first (a BOS
            where it adds one); ``chat`` is the tokenizer's chat template with each example as a turn.
        preamble: what stands before everything. In a chat it begins the first turn of the user; where the template
            raises or leaves it out, it is a system turn.
        separator: between preamble, examples and question, but in a chat.
        prefill: how each answer of a chat begins; it is the end of the prompt.
        examples: worked examples, shown in this order.
        stop: strings before which a trace ends.
        grader: of the target's answers; those of other skills are compared as they stand.
        chat_arguments: what else the chat template is told.
        date: today, for a chat template that says it.
        end_token: what a worked solution ends with where no chat template says so; by default the tokenizer's own.
    """

    tokenizer: Any
    template: str
    end_tokens: frozenset[int]
    style: Style = "plain"
    preamble: str = ""
    separator: str = "\n\n"
    prefill: str = ""
    examples: tuple[Example, ...] = ()
    stop: tuple[str, ...] = ()
    grader: Grader = GRADERS["number"]
    chat_arguments: Mapping[str, Argument] = field(default_factory=dict)
    date: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))
    end_token: int | None = None
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _asked: dict[tuple[int, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, tokenizer: Any, options: PromptOptions, examples: tuple[Example, ...], **others: Any) -> Self:
        """The prompter that `options`, which `check_prompt` has seen, describe, tried with two questions.

        Args:
            examples: what `cca.problems.examples.load_examples` read for them.
            **others: further attributes.

        Raises:
            InputError: a question, an example, the preamble or the prefill does not arrive in a prompt.
        """
        template = TEMPLATES[options.style] if options.template is None else options.template
        same = ("style", "preamble", "separator", "prefill", "stop", "chat_arguments")
        made = cls(tokenizer, template, examples=examples, **{name: getattr(options, name) for name in same}, **others)
        if made.prefill:
            made._check_prefill()
        for question in PROBES:
            made._ids(question)
        return made

    def _check_prefill(self) -> None:
        """See that answers can begin with the prefill.

        Raises:
            InputError: the chat template drops it from the examples' turns, the tokenizer loses it, or it ends a turn.
        """
        asks, refused = PROBES[0], f"prompt.prefill {self.prefill!r}"
        replace(self, prefill="")._ids(asks)  # what is wrong without it, too, is said as such
        try:
            context = self._chat.written(self._turns(asks), ask=True)
        except InputError as error:
            raise InputError(f"{refused} is lost: {error}; or leave the prefill out") from error
        bare, ids = (self.tokenizer.encode(t, add_special_tokens=False) for t in (context, context + self._begun))
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if ids == bare or not _read(text).endswith(_read(self.prefill)):
            raise InputError(f"{refused} is lost: the tokenizer reads {text[-60:]!r}; use other words, or leave it out")
        own = self.tokenizer.encode(self.prefill, add_special_tokens=False)
        if any(token in self.end_tokens and is_marker(self.tokenizer, token) for token in own):
            raise InputError(f"{refused} ends the answer that it begins; leave its end token out")

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises:
            InputError: the question does not arrive in it, or it is the prompt of another question too.
        """
        question = problem.question
        if question not in self._known:
            ids = self._ids(question)
            if _read(other := self._asked.setdefault(ids, question)) != _read(question):
                raise InputError(
                    f"the tokenizer makes one prompt of two questions, {other[:60]!r} and {question[:60]!r}; use a "
                    "tokenizer that knows their words"
                )
            self._known[question] = ids
        return self._known[question]

    @cached_property
    def start(self) -> tuple[int, ...]:
        """What prompts begin with whatever is asked, such as worked examples."""
        one, other = map(self._ids, PROBES)
        return one[: next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)]

    def _ids(self, question: str) -> tuple[int, ...]:
        if self.style == "chat":
            text = self._chat.written(self._turns(question), ask=True) + self._begun
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = encoded(self.tokenizer, self._text(question))
        if _digits(question) not in _digits(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)):
            raise InputError(
                f"the tokenizer loses numbers of the question {question[:60]!r}; use the tokenizer that belongs to the "
                "model, or other questions"
            )
        return tuple(ids)

    def _filled(self, question: str) -> str:
        return self.template.replace("{question}", question)

    def _text(self, question: str) -> str:
        shown = [f"{self._filled(e.question)}{self._gap}{e.solution}" for e in self.examples]
        return self.separator.join(part for part in (self.preamble, *shown, self._filled(question)) if part)

    @property
    def _gap(self) -> str:
        """What stands between the end of a prompt and its answer."""
        end = self.prefill if self.style == "chat" else self.template
        return "" if end[-1:].isspace() or (self.style == "chat" and not end) else " "

    @cached_property
    def _begun(self) -> str:
        """The prefill, after the white space that the chat template writes where an answer begins."""
        if not self.prefill:
            return ""
        asks, says = Turn("user", self._filled(PROBES[0])), Turn("assistant", PROBES[1])
        try:
            whole = self._chat.written([asks, says], ask=False)
        except InputError:  # it lets no answer be the last turn
            return self.prefill
        context = self._chat.written([asks], ask=True)
        before = whole.removeprefix(context).partition(says.content)[0] if whole.startswith(context) else ""
        return before + self.prefill if before.isspace() else self.prefill

    def _turns(self, question: str) -> list[Turn]:
        turns: list[Turn] = []
        for example in self.examples:
            answer = f"{self.prefill}{self._gap}{example.solution}"
            turns += [Turn("user", self._filled(example.question)), Turn("assistant", answer)]
        return [*turns, Turn("user", self._filled(question))]

    @cached_property
    def _chat(self) -> Chat:
        chat = Chat(self.tokenizer, self.date, self.chat_arguments, self.preamble)
        return open_chat(chat, len(self.examples))

    def reference(self, solution: str) -> tuple[int, ...]:
        """The token ids with which the model would write `solution` after a prompt, end token included.

        In a chat they are what the chat template writes for that answer, up to the end of its turn.
        """
        question = self._filled(PROBES[0])
        if self.style == "chat":
            context, text = self._answered(Turn("user", question), solution)
        else:
            context, text = question, f"{self._gap}{solution}"
        ids = continued(self.tokenizer, context, text)
        own = self.tokenizer.encode(solution, add_special_tokens=False)
        inside = sum(token in self.end_tokens for token in own)  # where text can end a text, such as a new line
        ends = [i for i, token in enumerate(ids) if token in self.end_tokens]
        return (*ids[: ends[inside] + 1],) if len(ends) > inside else (*ids, *self._last)

    def _answered(self, question: Turn, solution: str) -> tuple[str, str]:
        """A prompt, and what the chat template writes after it where the assistant answers `solution`."""
        context = self._chat.written([question], ask=True) + self._begun
        said = f"{self._gap}{solution}"
        try:
            whole = self._chat.written([question, Turn("assistant", self.prefill + said)], ask=False)
        except InputError:  # it lets no answer be the last turn, or changes this one
            return context, said
        if not whole.startswith(context):
            return context, said
        text, said = whole.removeprefix(context), solution.strip()
        end = text.rfind(said) + len(said)
        after = self.tokenizer.encode(text[end:], add_special_tokens=False)
        return context, text if self.end_tokens & set(after) else text[:end]

    @cached_property
    def _last(self) -> tuple[int, ...]:
        """What a solution ends with."""
        own = self.tokenizer.eos_token_id if self.end_token is None else self.end_token
        return (own,) if own in self.end_tokens else tuple(sorted(self.end_tokens)[:1])

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` read as up to the first stop string, as `decode` has it."""
        return self.cut(self.decode(tokens))

    def cut(self, text: str) -> str:
        """`text` up to the first stop string."""
        return text[: min((text.find(s) for s in self.stop if s in text), default=len(text))]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, without end tokens, ids beyond the vocabulary and special tokens that are no text."""
        return decoded(self.tokenizer, tokens, self._silent)

    @cached_property
    def _silent(self) -> frozenset[int]:
        kept = " ".join((*self.stop, self.prefill, *(e.solution for e in self.examples)))
        return self.end_tokens | markers(self.tokenizer, kept)

    @cached_property
    def _stops(self) -> StopStrings:
        return StopStrings(self.tokenizer, self._silent, self.stop)

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Whether the last token of an answer completed a stop string."""
        return self._stops.ended((), tokens)

    def stop_rule(self, head: Sequence[int] = ()) -> Callable[[Sequence[int]], bool] | None:
        """Whether an answer that began with `head` has ended with its new tokens. None: there are no stop strings."""
        if not self.stop:
            return None
        return partial(self._stops.ended, tuple(head))

    def trace(self, problem: Problem, tokens: Sequence[int]) -> Trace:
        """Grade `tokens` as the answer to `problem`."""
        text = self.text(tokens)
        graded = self.grade(problem, text)
        ended = bool(tokens) and (tokens[-1] in self.end_tokens or self.stopped(tokens))
        return Trace(tuple(tokens), text, graded.answer, graded.correct, cut=not ended)

    def grade(self, problem: Problem, text: str) -> Graded:
        """Grade a text as the answer to `problem`."""
        return (GRADERS["exact"] if problem.skill else self.grader)(text, problem.answer)


def _digits(text: str) -> str:
    return "".join(re.findall(r"\d", unicodedata.normalize("NFKC", text)))


def _read(text: str) -> str:
    """What is left of a text where a tokenizer makes all letters small and knows no accents and white space."""
    return "".join(
        c for c in unicodedata.normalize("NFKD", text).casefold() if not c.isspace() and not unicodedata.combining(c)
    )
