"""How a run asks its model, as a text and as code that anyone can run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cca.problems.prompts import Prompter
from cca.records import Problem
from cca.run.run import Run

_PLACE = "{question}"
_NEUTRAL = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings of `generate` that act without sampling, and what leaves them off, as in a run."""


class Asked(NamedTuple):
    """The text that the tokenizer encodes as a prompt, and with which options."""

    given: str
    options: dict[str, Any]


class _Listening:
    """A tokenizer that keeps what it was asked to encode, and as what."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.heard: list[tuple[tuple[int, ...], Asked]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str, **options: Any) -> Any:
        found = self.tokenizer.encode(text, **options)
        self.heard.append((tuple(found), Asked(text, options)))
        return found


def asked(prompter: Prompter) -> Asked | None:
    """How `prompter` has a question, here ``{question}``, made into tokens; None where that is not plain."""
    listening = _Listening(prompter.tokenizer)
    stand_in = Problem("-", "-", 0, "test", _PLACE, "", "")
    ids = replace(prompter, tokenizer=listening).prompt(stand_in)
    found = next((asked for tokens, asked in reversed(listening.heard) if tokens == tuple(ids)), None)
    return found if found and found.given.count(_PLACE) == 1 else None


def asking(run: Run, prompter: Prompter, settings: Any, loading: Sequence[str], ends: bool = False) -> str:
    """The section of a README that says how the model of `run` is asked, with code that asks it.

    Args:
        settings: those of `generate` that the model has; None for none.
        loading: lines of code after which there are `model` and `tokenizer`.
        ends: the model's settings do not say what ends an answer, so that the code does.
    """
    how = asked(prompter)
    if not how:
        return "As in the run, whose prompts no single text or chat comes to; make them with `cca.open_model`."
    begun = f", whose last words {prompter.prefill!r} begin the answer" if prompter.prefill else ""
    until = f", and the answer ends before {' or '.join(map(repr, prompter.stop))}" if prompter.stop else ""
    example = next((p for p in run.problems if p.split == "test"), run.problems[0])
    lines = [
        *loading,
        "",
        *_code(prompter, settings, how, example, run.config.answer_limit.tokens, ends),
    ]
    return (
        f"As in the run, with this text{begun}, in which the question stands for `{{question}}`{until}. Asked in "
        "another way, nothing that was measured holds.\n\n```python\n" + "\n".join(lines) + "\n```"
    )


def _code(prompter: Prompter, settings: Any, how: Asked, example: Problem, limit: int, ends: bool) -> list[str]:
    off = {name: value for name, value in _NEUTRAL.items() if getattr(settings, name, None) not in (None, value)}
    more = "".join(f", {name}={value}" for name, value in off.items())
    more += f", eos_token_id={sorted(prompter.end_tokens)}" if ends else ""
    more += f", stop_strings={list(prompter.stop)!r}, tokenizer=tokenizer" if prompter.stop else ""
    options = "".join(f", {name}={value!r}" for name, value in how.options.items())
    return [
        f"question = {example.question!r}",
        f"prompt = {how.given!r}",
        f'prompt = prompt.replace("{_PLACE}", question)',
        f"ids = torch.tensor([tokenizer.encode(prompt{options})])",
        "written = model.generate(",
        f"    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens={limit}{more}",
        ")",
        "answer = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)",
        *(f"answer = answer.split({text!r})[0]" for text in prompter.stop),
        "print(answer)",
    ]
