"""Problems as token ids, and token ids as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cca.answers import GRADERS
from cca.records import Problem, Trace


@dataclass(frozen=True)
class Prompter:
    """Turns questions into prompts and generated tokens into graded traces, with one tokenizer.

    template: a format string with ``{question}``. end_tokens: ids that end a trace.
    """

    tokenizer: Any
    template: str
    end_tokens: frozenset[int]

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The prompt's token ids, with the tokenizer's own special tokens (a BOS where it adds one)."""
        return tuple(self.tokenizer.encode(self.template.format(question=problem.question)))

    def reference(self, solution: str) -> tuple[int, ...]:
        """The token ids with which the model would write `solution`, end token included."""
        ids = self.tokenizer.encode(f" {solution}", add_special_tokens=False)
        return (*ids, min(self.end_tokens)) if self.end_tokens else tuple(ids)

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` read as, special tokens left out."""
        return self.tokenizer.decode([t for t in tokens if t not in self.end_tokens])

    def trace(self, problem: Problem, tokens: Sequence[int]) -> Trace:
        """Grade `tokens` as the answer to `problem`."""
        text = self.text(tokens)
        answer, correct = GRADERS["exact" if problem.split.startswith("skill:") else "number"](text, problem.answer)
        return Trace(tuple(tokens), text, answer, correct)
