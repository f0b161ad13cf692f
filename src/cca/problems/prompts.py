"""Problems as token ids, and token ids as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from cca.errors import InputError
from cca.grading.answers import GRADERS, Graded, Grader
from cca.records import Problem, Trace

Style = Literal["plain", "few-shot", "chat"]
TEMPLATES: dict[Style, str] = {
    "plain": "Q: {question}\nA:",
    "few-shot": "Q: {question}\nA:",
    "chat": "{question}",
}


class Example(NamedTuple):
    """A question with its worked solution, shown before the question that is asked."""

    question: str
    solution: str


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts and generated tokens into graded traces, with one tokenizer.

    style: ``plain`` and ``few-shot`` are text, encoded with the tokenizer's own special tokens (a BOS where it adds
    one); ``chat`` is the tokenizer's chat template with each example as a turn. template: a format string with
    ``{question}``. preamble: what stands before everything. end_tokens: ids that end a trace. stop: strings that do.
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
        return Trace(tuple(tokens), text, graded.answer, graded.correct)

    def grade(self, problem: Problem, text: str) -> Graded:
        """Grade a text as the answer to `problem`."""
        return (GRADERS["exact"] if ":" in problem.split else self.grader)(text, problem.answer)
