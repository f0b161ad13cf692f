"""Write the updated model as an ordinary model folder, seen to read texts as the run did."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.model.applied import apply, put_beside
from cca.model.checkpoint import SHARD, check_new, keep_files, made_whole, save_network
from cca.model.checks import check_model
from cca.model.delta import Delta
from cca.model.gguf.header import is_gguf
from cca.model.open import Model, open_model
from cca.model.source import source_folder
from cca.model.tokenizer_files import save_tokenizer
from cca.problems.prompts import Prompter
from cca.records import Problem, TracePair
from cca.run.run import Run
from cca.run.share.card import model_card, shown_name
from cca.run.stages import OF_A_ROUND


class Merged(NamedTuple):
    """What rounding did to the delta, as in `cca.model.delta.Rounding`, and the type of the weights that hold it."""

    unchanged: float
    error: float
    dtype: str


def merge(run: Run, folder: Path, dtype: str | None = None, shard: str = SHARD, called: str | None = None) -> Merged:
    """Merge the delta of `run` into its base model and save that with its tokenizer and a README.md to `folder`.

    Args:
        folder: appears whole or not at all. Beside the model it holds what `cca revert` needs.
        dtype: of the weights; by default the run's.
        shard: largest size of a file of weights, such as ``5GB``.
        called: what its README.md loads it as; by default `folder`.

    Raises:
        InputError: `folder` exists or cannot be written, the run has no finished update or trained no rows, the base
            model cannot be loaded or is another than the run's, or AutoTokenizer would read texts in another way.
    """
    check_finished(run, f"cca merge {{}} {folder}")
    check_new(folder)
    model = _base_of(run, dtype)
    delta = Delta.load(run.folder.final_delta(), model)
    kept, rounding = apply(model, delta, shown_name(str(run.folder.path)))
    found = Merged(rounding.unchanged, rounding.error, dtype or run.dtype)
    with made_whole(folder) as temporary:
        _save(run, model, temporary, shard)
        put_beside(temporary, kept, model_card(run, model, delta, rounding, found.dtype, called or folder.resolve()))
    return found


def _base_of(run: Run, dtype: str | None = None) -> Model:
    """The model that `run` is of, in memory.

    Raises:
        InputError: it cannot be loaded, or is another by now.
    """
    options = run.config.model
    settings = dict(options) | {"dtype": dtype or run.dtype, "device": "cpu", "device_map": None}
    model = open_model(settings.pop("path"), prompter=run.prompter, **settings)
    if model.revision != run.folder.manifest.get("revision"):
        raise InputError(
            f"the model at {options.path} is not the one that {run.folder.path} was made with; put that one back"
        )
    return model


def check_finished(run: Run, otherwise: str, methods: Collection[str] = OF_ROWS) -> None:
    """See that `run` has a finished update by one of `methods`.

    otherwise: the command that takes all rounds of a run in place of one.

    Raises:
        InputError: it has not.
    """
    method, path = run.config.update.method, run.folder.path
    if method not in methods:
        raise InputError(f"{path} trained {method}, and only these leave what is asked for: {', '.join(methods)}")
    if path.resolve().name.startswith("round-") and (path.resolve().parent / "rounds.jsonl").exists():
        raise InputError(
            f"{path} is one round of a run, on top of those before it; take all of them: "
            f"{otherwise.format(path.resolve().parent)}"
        )
    if not run.folder.finished("update"):
        raise InputError(f"{path} has no finished update yet; finish it with: cca run --out {path}")
    run.folder.verify(OF_A_ROUND)


def _save(run: Run, model: Model, folder: Path, shard: str) -> None:
    """Weights, generation settings and tokenizer, all of them seen to load as they are meant to."""
    path, trust = run.config.model.path, run.config.model.trust_remote_code
    settings, ends = model.network.generation_config, sorted(model.end_tokens)
    settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    save_network(model.network, folder, shard)
    save_tokenizer(model.tokenizer, folder, reads_as(run), trust_remote_code=trust)
    if not is_gguf(path):
        keep_files(source_folder(path), folder)
    check_model(str(folder), trust_remote_code=trust)


def reads_as(run: Run) -> Callable[[Any], str | None]:
    """What says where a tokenizer reads the prompts and traces of `run` in another way; None where it does not."""
    texts = list(_texts(run))
    return lambda theirs: _read_otherwise(run.prompter, theirs, run.problems, texts)


def _texts(run: Run) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the base model wrote: texts and their tokens."""
    for pair in run.folder.read("traces.jsonl", TracePair):
        yield pair.greedy.text, pair.greedy.tokens
        if pair.sampled:
            yield pair.sampled.text, pair.sampled.tokens


def _read_otherwise(
    prompter: Prompter, theirs: Any, problems: list[Problem], texts: list[tuple[str, tuple[int, ...]]]
) -> str | None:
    """Where a tokenizer and the run's differ; None where they do not."""
    mine, other = prompter.tokenizer, replace(prompter, tokenizer=theirs)
    for problem in problems:
        if prompter.prompt(problem) != other.prompt(problem):
            return f"the prompt of {problem.id}"
        if prompter.reference(problem.solution) != other.reference(problem.solution):
            return f"the solution of {problem.id}"
    for text, tokens in texts:
        if mine.encode(text) != theirs.encode(text) or mine.decode(tokens) != theirs.decode(tokens):
            return f"the text {text[:40]!r}"
    return None
