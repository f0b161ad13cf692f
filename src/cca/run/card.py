"""The README.md of a merged model: what it is, how it is asked, and code that asks it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cca.evaluation.results import difference, percent
from cca.model.delta import Delta, Rounding
from cca.model.gguf.header import is_gguf, open_gguf
from cca.model.open import Model
from cca.problems.prompts import Prompter
from cca.records import Problem
from cca.run.run import Run

_PLACE = "{question}"
_NOTEWORTHY = 0.01
"""A larger change of the update by rounding, as a share of its size, is told beside what was measured without it."""
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


def model_card(run: Run, model: Model, delta: Delta, rounding: Rounding, dtype: str, folder: Path) -> str:
    """The text of README.md. folder: where the model will be."""
    how = asked(model.prompter)
    example = next((p for p in run.problems if p.split == "test"), run.problems[0])
    parts = [
        f"# {model.name}, updated by Constructive Circuit Amplification",
        f"An ordinary transformers model ({dtype}). {_changed(run, model, delta, rounding)}",
        _measured(run, rounding, dtype),
        "## How it is asked",
        f"As in the run, with {_words(model.prompter)}. Asked in another way, nothing that was measured holds."
        if how
        else "As in the run, whose prompts no single text or chat comes to; make them with `cca.open_model`.",
        _code(run, model, how, example, folder) if how else "",
        "`cca merge` made sure that AutoTokenizer reads every prompt and every trace of the run as the run did.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _changed(run: Run, model: Model, delta: Delta, rounding: Rounding) -> str:
    count, names, base = delta.row_count, len(delta.weights), _base(run, model)
    if not any(bool(rows.values.any()) for rows in delta.weights.values()):
        return f"It is its base, {base}: no step of the update helped, so nothing was changed."
    lost = f"; rounding left {rounding.unchanged:.1%} of their parameters as they were" if rounding.unchanged else ""
    return (
        f"Its base is {base}; {count:,} rows of {names} weights were changed "
        f"(method {run.config.update.method}{lost}), and nothing else."
    )


def _base(run: Run, model: Model) -> str:
    path = run.config.model.path
    if not is_gguf(path):
        return f"{model.name} (revision {model.revision})"
    file = open_gguf(path)
    called = file.fields.get("general.name")
    return (
        f"{model.name} ({f'{called}, ' if called else ''}a GGUF file of quantisation {file.quantisation}, dequantised; "
        f"SHA-256 {model.revision})"
    )


def _measured(run: Run, rounding: Rounding, dtype: str) -> str:
    if not run.folder.finished("evaluate"):
        return ""
    found = run.summary.target
    before, after = percent(found.base), percent(found.updated)
    said = f"On {found.n:,} test problems: {before} right before, {after} after, {difference(found)}."
    otherwise = [f"in {run.dtype}"] if dtype != run.dtype else []
    if rounding.error > _NOTEWORTHY:
        otherwise.append(f"before the update was rounded, which changed it by {rounding.error:.1%} of its size")
    if not otherwise:
        return said
    return f"{said} That was measured {' and '.join(otherwise)}: this folder may answer otherwise."


def _words(prompter: Prompter) -> str:
    begun = f", whose last words {prompter.prefill!r} begin the answer" if prompter.prefill else ""
    return f"this text{begun}, in which the question stands for `{{question}}`" + (
        f", and the answer ends before {' or '.join(map(repr, prompter.stop))}" if prompter.stop else ""
    )


def _code(run: Run, model: Model, how: Asked, example: Problem, folder: Path) -> str:
    trust = ", trust_remote_code=True" if run.config.model.trust_remote_code else ""
    settings, stop = model.network.generation_config, model.prompter.stop
    off = {name: value for name, value in _NEUTRAL.items() if getattr(settings, name, None) not in (None, value)}
    more = "".join(f", {name}={value}" for name, value in off.items())
    more += f", stop_strings={list(stop)!r}, tokenizer=tokenizer" if stop else ""
    options = "".join(f", {name}={value!r}" for name, value in how.options.items())
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {str(folder)!r}  # where this file is",
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{trust})',
        "",
        f"question = {example.question!r}",
        f"prompt = {how.given!r}",
        f'prompt = prompt.replace("{_PLACE}", question)',
        f"ids = torch.tensor([tokenizer.encode(prompt{options})])",
        "written = model.generate(",
        f"    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens="
        f"{run.config.answer_limit.tokens}{more}",
        ")",
        "answer = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)",
        *(f"answer = answer.split({text!r})[0]" for text in stop),
        "print(answer)",
    ]
    return "```python\n" + "\n".join(lines) + "\n```"
