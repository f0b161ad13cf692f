"""Write the updated model as an ordinary model folder, seen to read texts as the run did."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.io import write_text
from cca.model.checks import check_model
from cca.model.delta import Delta
from cca.model.open import Model, open_model
from cca.model.weights import first_line, quiet
from cca.problems.prompts import Prompter
from cca.records import Problem, TracePair
from cca.run.card import model_card
from cca.run.run import Run
from cca.run.stages import OF_A_ROUND

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
_OWN_CLASS = '''"""The tokenizer is what tokenizer.json says, whatever class a model of this type has otherwise."""

from transformers import PreTrainedTokenizerFast


class Tokenizer(PreTrainedTokenizerFast):
    pass
'''


class Merged(NamedTuple):
    """What rounding did to the delta, as in `cca.model.delta.Rounding`, and the type of the weights that hold it."""

    unchanged: float
    error: float
    dtype: str


def merge(run: Run, folder: Path, dtype: str | None = None) -> Merged:
    """Merge the delta of `run` into its base model and save that with its tokenizer and a README.md to `folder`.

    Args:
        folder: appears whole or not at all.
        dtype: of the weights; by default the run's.

    Raises:
        InputError: `folder` exists or cannot be written, the run has no finished update or trained no rows, the base
            model cannot be loaded or is another than the run's, or AutoTokenizer would read texts in another way.
    """
    _check(run, folder)
    options = run.config.model
    dtype = dtype or run.dtype
    settings = dict(options) | {"dtype": dtype, "device": "cpu", "device_map": None}
    model = open_model(settings.pop("path"), prompter=run.prompter, **settings)
    if model.revision != run.folder.manifest.get("revision"):
        raise InputError(
            f"the model at {options.path} is not the one that {run.folder.path} was made with; put that one back"
        )
    delta = Delta.load(run.folder.final_delta(), model)
    rounding = delta.merge(model)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _save(run, model, temporary)
        write_text(temporary / "README.md", model_card(run, model, delta, rounding, dtype, folder.resolve()))
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder} ({error}); name a folder where there is room") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Merged(rounding.unchanged, rounding.error, dtype)


def _check(run: Run, folder: Path) -> None:
    method, path = run.config.update.method, run.folder.path
    if method not in OF_ROWS:
        raise InputError(f"{path} trained {method}, and only rows can be merged: {', '.join(OF_ROWS)}")
    if path.resolve().name.startswith("round-") and (path.resolve().parent / "rounds.jsonl").exists():
        raise InputError(
            f"{path} is one round of a run, on top of those before it; merge all of them: "
            f"cca merge {path.resolve().parent} {folder}"
        )
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
    if not run.folder.finished("update"):
        raise InputError(f"{path} has no finished update yet; finish it with: cca run --out {path}")
    run.folder.verify(OF_A_ROUND)


def _save(run: Run, model: Model, folder: Path) -> None:
    """Weights, generation settings and tokenizer, all of them seen to load as they are meant to."""
    trust = run.config.model.trust_remote_code
    settings, ends = model.network.generation_config, sorted(model.end_tokens)
    settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    with quiet():
        try:
            model.network.save_pretrained(folder)
        except ValueError:  # transformers loads settings for sampling without sampling, but does not save them
            settings.do_sample = True
            model.network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    check_model(str(folder), trust_remote_code=trust)
    texts = list(_texts(run))
    said = _read_otherwise(model.prompter, folder, run.problems, texts, trust)
    if said and type(model.tokenizer).__name__ in _GENERIC:
        _name_its_class(folder)
        said = _read_otherwise(model.prompter, folder, run.problems, texts, trust)
    if said:
        raise InputError(
            f"AutoTokenizer would read what is saved in another way than the run did ({said}), so the merged model "
            "would be asked in words that it does not know; use the update with cca.Delta.load and its base instead"
        )


def _name_its_class(folder: Path) -> None:
    """Let AutoTokenizer build what tokenizer.json says.

    For some model types it overrules a generic class by the type's own, but not where a folder has a class of its own,
    which it takes with trust_remote_code; without, it takes the generic class.
    """
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": _GENERIC[0], "auto_map": {"AutoTokenizer": [None, "tokenization.Tokenizer"]}}
    write_text(config, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "tokenization.py", _OWN_CLASS)


def _texts(run: Run) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the base model wrote: texts and their tokens."""
    for pair in run.folder.read("traces.jsonl", TracePair):
        yield pair.greedy.text, pair.greedy.tokens
        if pair.sampled:
            yield pair.sampled.text, pair.sampled.tokens


def _read_otherwise(
    prompter: Prompter, folder: Path, problems: list[Problem], texts: list[tuple[str, tuple[int, ...]]], trust: bool
) -> str | None:
    """Where the tokenizer that AutoTokenizer finds in `folder` and the run's differ; None where they do not."""
    from transformers import AutoTokenizer

    mine: Any = prompter.tokenizer
    try:
        with quiet():
            theirs: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as error:  # whatever its files make of it
        return f"it cannot load it: {first_line(error)}"
    other = replace(prompter, tokenizer=theirs)
    for problem in problems:
        if prompter.prompt(problem) != other.prompt(problem):
            return f"the prompt of {problem.id}"
        if prompter.reference(problem.solution) != other.reference(problem.solution):
            return f"the solution of {problem.id}"
    for text, tokens in texts:
        if mine.encode(text) != theirs.encode(text) or mine.decode(tokens) != theirs.decode(tokens):
            return f"the text {text[:40]!r}"
    return None
