"""Benchmarks of lm-evaluation-harness on a model in memory, so that base and updated model compare in pairs.

`check_tasks` refuses early what would not run; `run_tasks` gives a score for each document. How local files are laid
out says `cca.evaluation.harness.files`; with them nothing is fetched from the hub or sent to it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cca.errors import InputError, install_command
from cca.evaluation.harness.files import Data, listed
from cca.evaluation.harness.state import model_as_before, process_as_before, seed_all
from cca.evaluation.harness.tasks import CheckedTasks, Subtask, manager, resolve
from cca.records import TaskScore

Progress = Callable[[int, int, int], None]
"""Told after each pass of the network how many tokens it read, how many requests of a kind are answered, and of how
many. (A document of a multiple choice is a request for each of its choices.)"""


def check_tasks(names: Sequence[str], data: Data | None = None, *, shots: int | None = None) -> CheckedTasks:
    """Resolve `names` to the subtasks that run, and see that their documents can be had. Needs no model.

    Args:
        names: tasks, groups or tags of lm-evaluation-harness, such as ``mmlu``.
        data: local files of their datasets; None: they come from the hub.
        shots: worked examples in each prompt in place of the stock number, but for tasks that fix it at 0.

    Returns:
        The subtasks, and the names of those that are left out for want of local files.

    Raises:
        InputError: lm-evaluation-harness is not installed; a task is unknown, named twice, has no measure of METRICS,
            runs generated code or needs images; local files are missing, unreadable or in the wrong place; or, without
            local files, the hub cannot be reached.
    """
    _check_installed()
    with process_as_before(offline=data is not None), TemporaryDirectory(prefix="cca-tasks-") as folder:
        checked = resolve(names, data, shots)
        if data is None:
            for subtask in {s.dataset: s for s in checked.subtasks}.values():
                _check_hub(subtask)
        else:
            for subtask in checked.subtasks:
                _build(subtask, Path(folder), 0)
    return checked


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    data: Data | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[TaskScore]:
    """A score for each document of `tasks`, the same documents in the same order for every model.

    The model computes as it is: call this within ``delta.active(model)`` for the updated one. Model, tokenizer and the
    state of the process (random numbers, environment, logging) are afterwards as before. A prompt longer than the
    model's context loses its beginning, as the harness has it.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        tasks: as in `check_tasks`.
        data: as in `check_tasks`.
        limit: documents of each subtask, from its first; None: all.
        shots: as in `check_tasks`.
        batch_size: prompts read together.
        seed: of the choice of few-shot examples, and of sampling in the few tasks that sample.
        progress: see `Progress`.

    Returns:
        Scores in the order of the tasks and of their documents.

    Raises:
        InputError: as `check_tasks`; or the context has no room for an answer, or a task gives no such measure.
        FloatingPointError: a log-likelihood is not a number.
    """
    _check_installed()
    with (
        process_as_before(offline=data is not None),
        model_as_before(model),
        TemporaryDirectory(prefix="cca-tasks-") as folder,
    ):
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        subtasks = resolve(tasks, data, shots).subtasks
        built = {subtask.name: _build(subtask, Path(folder), seed) for subtask in subtasks}
        reader: Any = _with_padding(tokenizer, model)
        harness = HFLM(pretrained=model, tokenizer=reader, batch_size=batch_size)  # pyright: ignore[reportCallIssue]
        for name, task in built.items():
            _check_room(name, task, harness)
        seed_all(seed)
        with _watched(harness, model, progress):
            samples: Any = evaluate(harness, {"tasks": built}, limit=limit, bootstrap_iters=0)
        return [score for subtask in subtasks for score in _scores(subtask, samples["samples"][subtask.name])]


@contextmanager
def _watched(harness: Any, model: Any, progress: Progress | None) -> Iterator[None]:
    """Within the context `progress` is told of the passes of `model` that answer requests to `harness`."""
    answered, asked = 0, 0

    class Answers:
        """Where the harness would cache its answers, each as it is found."""

        def add_partial(self, *_: Any) -> None:
            nonlocal answered
            answered += 1

    def counted(answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal answered, asked
            answered, asked = 0, len(requests)
            return answer(requests, *args, **kwargs)

        return ask

    def passed(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
        if progress and asked:
            progress((args[0] if args else kwargs["input_ids"]).numel(), min(answered, asked), asked)

    harness.set_cache_hook(Answers())
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(harness, kind, counted(getattr(harness, kind)))
    hook = model.register_forward_hook(passed, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _check_installed() -> None:
    if find_spec("lm_eval") is None:
        raise InputError(
            "benchmarks need lm-evaluation-harness, which is not installed; "
            f"install it with: {install_command('lm-eval')}"
        )


def _build(subtask: Subtask, folder: Path, seed: int) -> Any:
    """The harness's task with its documents; `folder` keeps them for as long as they are read.

    Raises:
        InputError: the documents cannot be had, or are not such as the task expects.
    """
    changes = {"include": str(subtask.file), "task": subtask.name, **subtask.changes}
    if subtask.local:
        changes["dataset_kwargs"] = {**changes["dataset_kwargs"], "cache_dir": str(folder)}
    path = folder / f"{subtask.name}.yaml"
    path.write_text(json.dumps(changes, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    seed_all(seed)  # for each task anew: some draw as they read, but not where their documents are cached
    try:
        (task,) = manager().load([str(path)])["tasks"].values()
    except Exception as error:
        remedy = "look at its files" if subtask.local else _get_files(subtask)
        if isinstance(error, ImportError):
            remedy = "install what it needs"
        raise InputError(f"cannot read the documents of {subtask.name} ({_first_line(error)}); {remedy}") from error
    task.set_fewshot_seed(seed)
    # no means over all documents are wanted, for which some tasks would download a metric
    task.aggregation = lambda: defaultdict(lambda: lambda _: math.nan)
    return task


def _check_hub(subtask: Subtask) -> None:
    """See, without downloading it, that the dataset of a subtask is on the hub or was downloaded before."""
    from datasets import load_dataset_builder

    config = subtask.config
    options = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    if config.get("custom_dataset"):
        return
    try:
        load_dataset_builder(subtask.dataset, config.get("dataset_name"), **options)
    except Exception as error:
        raise InputError(
            f"cannot reach the dataset of {subtask.name} ({_first_line(error)}); {_get_files(subtask)}"
        ) from error


def _get_files(subtask: Subtask) -> str:
    base = subtask.dataset.rpartition("/")[2]
    return (
        "give local files: a folder FOLDER, filled where there is a network by: "
        f"hf download {subtask.dataset} --repo-type dataset --local-dir FOLDER/{base}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _with_padding(tokenizer: Any, model: Any) -> Any:
    """A copy of the tokenizer, since the harness writes into it, whose padding the model's embeddings know."""
    tokenizer = deepcopy(tokenizer)
    if tokenizer.eos_token_id is None:
        ends = model.generation_config.eos_token_id
        tokenizer.eos_token_id = ends[0] if isinstance(ends, list) else ends
    known = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def _check_room(name: str, task: Any, harness: Any) -> None:
    if task.OUTPUT_TYPE != "generate_until":
        return
    from lm_eval.models.utils import normalize_gen_kwargs

    settings: Any = normalize_gen_kwargs(task.config.generation_kwargs, harness.max_gen_toks)
    longest = settings["max_gen_toks"]
    if longest >= harness.max_length:
        raise InputError(
            f"{name} lets the model write {longest} tokens, which is all of its context ({harness.max_length}); "
            "leave that task out"
        )


def _scores(subtask: Subtask, samples: Sequence[Mapping[str, Any]]) -> Iterator[TaskScore]:
    """The harness's records of a subtask, once for each of its filters, as scores after the first filter."""
    name, chosen = subtask.metric, samples[0]["filter"]
    for sample in samples:
        if sample["filter"] != chosen:
            continue
        if name not in sample:
            raise InputError(f"{subtask.name} gives no {name}, but {listed(sample['metrics'])}; leave that task out")
        answers = [answer for repeats in sample["resps"] for answer in repeats]
        if any(isinstance(answer, tuple) and math.isnan(answer[0]) for answer in answers):
            raise FloatingPointError(
                f"a log-likelihood of {subtask.name} is not a number; try --set model.dtype=float32, or look at the "
                "model's weights"
            )
        value = sample[name]
        if isinstance(value, tuple | list | str) or not 0 <= value <= 1:
            raise InputError(f"{subtask.name} gives {name} {value}, which is no share; leave that task out")
        metric = name if chosen == "none" else f"{name},{chosen}"
        yield TaskScore(subtask.task, subtask.name, sample["doc_id"], metric, float(value))
