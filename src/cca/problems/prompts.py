"""Problems as token ids, and token ids as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from cca.errors import InputError
from cca.grading.answers import GRADERS, Graded, Grader
from cca.options import CountOrNone, Options
from cca.records import Problem, Trace

Style = Literal["plain", "few-shot", "chat"]
TEMPLATES: dict[Style, str] = {
    "plain": "Q: {question}\nA:",
    "few-shot": "Q: {question}\nA:",
    "chat": "{question}",
}


class PromptOptions(Options):
    """How a problem becomes a prompt."""

    style: Style = "plain"
    """``plain``: the question; ``few-shot``: worked examples, then the question; ``chat``: the tokenizer's chat
    template, each example a turn."""
    template: str | None = None
    """What stands for a question, with ``{question}``. Default: ``Q: {question}``, a new line and ``A:``; for chat
    ``{question}`` alone."""
    preamble: str = ""
    """Said first, before any example."""
    shots: CountOrNone = 0
    """How many examples."""
    examples: str = ""
    """Where they come from: ``lm-eval:TASK`` (those that lm-evaluation-harness shows) or a JSON-lines file with
    ``question`` and ``solution``."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these strings, as well as at the model's end token."""


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


class Example(NamedTuple):
    """A question with its worked solution, shown before the question that is asked."""

    question: str
    solution: str


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts and generated tokens into graded traces, with one tokenizer.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        template: a format string with ``{question}``.
        end_tokens: ids that end a trace.
        style: ``plain`` and ``few-shot`` are text, encoded with the tokenizer's own special tokens (a BOS where it
            adds one); ``chat`` is the tokenizer's chat template with each example as a turn.
        preamble: what stands before everything.
        examples: worked examples, shown in this order.
        stop: strings before which a trace ends.
        grader: of the target's answers; those of other skills are compared as they stand.
    """

    tokenizer: Any
    template: str
    end_tokens: frozenset[int]
    style: Style = "plain"
    preamble: str = ""
    examples: tuple[Example, ...] = ()
    stop: tuple[str, ...] = ()
    grader: Grader = GRADERS["number"]
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        end_tokens: frozenset[int],
        options: PromptOptions,
        examples: tuple[Example, ...] = (),
        grader: Grader = GRADERS["number"],
    ) -> Self:
        """The prompter that `options` describe. examples: what `cca.problems.examples.load_examples` read for them.

        Raises:
            InputError: as `check_prompt`.
        """
        check_prompt(options)
        template = TEMPLATES[options.style] if options.template is None else options.template
        return cls(tokenizer, template, end_tokens, options.style, options.preamble, examples, options.stop, grader)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The prompt's token ids."""
        if problem.question not in self._known:
            encode = self._chat if self.style == "chat" else self._text
            self._known[problem.question] = tuple(encode(problem.question))
        return self._known[problem.question]

    def _text(self, question: str) -> list[int]:
        shown = [f"{self.template.format(question=e.question)} {e.solution}" for e in self.examples]
        parts = [self.preamble, *shown, self.template.format(question=question)]
        return self.tokenizer.encode("\n\n".join(part for part in parts if part))

    def _chat(self, question: str) -> list[int]:
        messages: list[dict[str, str]] = []
        for example in self.examples:
            messages.append({"role": "user", "content": self.template.format(question=example.question)})
            messages.append({"role": "assistant", "content": example.solution})
        messages.append({"role": "user", "content": self.template.format(question=question)})
        if self.preamble:  # not every template has a system turn
            messages[0]["content"] = f"{self.preamble}\n\n{messages[0]['content']}"
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except ValueError as error:
            raise InputError(
                'prompt.style is "chat", but the tokenizer has no chat template; use "few-shot" or "plain"'
            ) from error

    def reference(self, solution: str) -> tuple[int, ...]:
        """The token ids with which the model would write `solution`, end token included."""
        ids = self.tokenizer.encode(solution if self.style == "chat" else f" {solution}", add_special_tokens=False)
        return (*ids, min(self.end_tokens)) if self.end_tokens else tuple(ids)

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` read as up to the first stop string, without end tokens and ids beyond the vocabulary."""
        text = self.decode(tokens)
        return text[: min((text.find(s) for s in self.stop if s in text), default=len(text))]

    def decode(self, tokens: Sequence[int]) -> str:
        known = len(self.tokenizer)
        return self.tokenizer.decode([t for t in tokens if t not in self.end_tokens and t < known])

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Whether the last token of an answer completed a stop string."""
        reach = max((len(s) for s in self.stop), default=0) + 2
        return bool(self.stop) and any(s in self.decode(tokens[-reach:]) for s in self.stop)

    def stop_rule(self, heads: Sequence[Sequence[int]] | None = None) -> Callable[[int, Sequence[int]], bool] | None:
        """For `decode`: whether row i has ended with its new tokens, which follow `heads[i]`. None: no stop strings."""
        if not self.stop:
            return None
        return lambda row, tokens: self.stopped([*(heads[row] if heads else ()), *tokens])

    def trace(self, problem: Problem, tokens: Sequence[int]) -> Trace:
        """Grade `tokens` as the answer to `problem`."""
        text = self.text(tokens)
        graded = self.grade(problem, text)
        ended = bool(tokens) and (tokens[-1] in self.end_tokens or self.stopped(tokens))
        return Trace(tuple(tokens), text, graded.answer, graded.correct, cut=not ended)

    def grade(self, problem: Problem, text: str) -> Graded:
        """Grade a text as the answer to `problem`."""
        return (GRADERS["exact"] if problem.skill else self.grader)(text, problem.answer)
