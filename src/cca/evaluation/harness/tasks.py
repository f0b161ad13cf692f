"""From the names of benchmarks to the tasks of lm-evaluation-harness that run, and what is written over their settings.

Prompts, worked examples, generation and scoring stay the stock task's. Groups and tags are followed here in the
harness's index, since its own way from a name to tasks (`TaskManager.load`) builds each of them, which downloads its
documents before local files can be named, missing ones left out or a task refused.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.evaluation.harness.files import DEFAULT, LOADERS, Data, NoFolderError, find_files, find_folder, listed

METRICS = ("acc", "exact_match", "acc_norm", "em", "prompt_level_strict_acc")
"""The measure of a task is the first of these that it has. ``acc`` of ``truthfulqa_mc2`` is the share of probability on
true answers; the others are 0 or 1 for a document."""
_GROUP_KEYS = ("group", "group_alias", "task", "task_alias", "aggregate_metric_list", "metadata", "tag", "tag_alias")


@dataclass(frozen=True)
class Subtask:
    """A task without parts, ready to be built.

    Attributes:
        task: as it was asked for.
        name: of the task that runs.
        config: its settings, functions by name.
        file: where they are from.
        changes: what is written over them.
        local: whether its documents are in local files.
    """

    task: str
    name: str
    config: Mapping[str, Any]
    file: Path
    changes: Mapping[str, Any]
    local: bool = False

    @property
    def metric(self) -> str:
        return _name((_measure(self.config) or {})["metric"])

    @property
    def dataset(self) -> str:
        return self.config.get("dataset_path") or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """What its folder of local files may be called."""
        return tuple(dict.fromkeys((self.name, self.task, self.dataset, self.dataset.rpartition("/")[2])))


@dataclass(frozen=True)
class CheckedTasks:
    """What runs, and which subtasks of a group are left out because there are no local files of theirs."""

    subtasks: tuple[Subtask, ...]
    left_out: tuple[str, ...]


def resolve(names: Sequence[str], data: Data | None, shots: int | None) -> CheckedTasks:
    """The tasks without parts that `names` stand for, with `shots` and local files written over their settings.

    Raises:
        InputError: a task is unknown, named twice or refused, or its local files are missing.
    """
    if isinstance(data, Path) and not data.is_dir():
        raise InputError(
            f"there is no folder {data} of local files; cca.evaluation.harness.files says how it is laid out"
        )
    subtasks: list[Subtask] = []
    left_out: list[str] = []
    for name in names:
        parts = [_with_shots(part, shots) for part in _parts(name, local=data is not None)]
        if data is None:
            subtasks += parts
            continue
        missing: dict[str, InputError] = {}
        for part in parts:
            try:
                subtasks.append(_with_files(part, data))
            except NoFolderError as error:
                missing[part.name] = error
        if len(missing) == len(parts):
            raise next(iter(missing.values()))
        left_out += missing
    _check_names(subtasks, data)
    return CheckedTasks(tuple(subtasks), tuple(left_out))


def _parts(name: str, local: bool) -> list[Subtask]:
    """The tasks without parts that a task, group or tag stands for.

    Raises:
        InputError: there is no such task, or one of them is refused.
    """
    index = manager().task_index
    if name not in index:
        near = get_close_matches(name, index, 3)
        hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists all"
        raise InputError(f"lm-evaluation-harness has no task {name}; {hint}")
    parts = [
        Subtask(name, leaf, {**index[leaf].cfg, **changes}, Path(index[leaf].yaml_path), changes)
        for leaf, changes in leaves(index, name, {})
    ]
    refused = {part.name: why for part in parts if (why := _refusal(part.config, local))}
    if refused:
        leaf, why = next(iter(refused.items()))
        others = [part.name for part in parts if part.name not in refused]
        raise InputError(
            f"{leaf}{'' if leaf == name else f' of {name}'} {why}; "
            f"name {listed(others) if others else 'another task'} instead"
        )
    return parts


def _check_names(subtasks: Sequence[Subtask], data: Data | None) -> None:
    """See that no task is named twice, and that local files are given for none that is not named.

    Raises:
        InputError: one is.
    """
    for leaf, count in Counter(s.name for s in subtasks).items():
        if count > 1:
            both = " and ".join(s.task for s in subtasks if s.name == leaf)
            raise InputError(f"task {leaf} is named twice, by {both}; leave one out")
    if isinstance(data, Mapping):
        known = {word for subtask in subtasks for word in subtask.names}
        for key in data:
            if key not in known:
                raise InputError(f"local files are given for {key}, which is none of {listed(known)}; rename it")


@cache
def manager() -> Any:
    """The harness's index of its tasks; reading it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def leaves(index: Mapping[str, Any], name: str, changes: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks without parts that `name` stands for, each with what the groups above write over its settings."""
    entry = index[name]
    if entry.kind.name == "TAG":
        for child in sorted(entry.tags):
            yield from leaves(index, child, changes)
    elif entry.kind.name == "GROUP":
        yield from _members(index, entry.cfg, changes)
    else:
        yield name, changes


def _members(
    index: Mapping[str, Any], group: Mapping[str, Any], changes: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    changes = {key: value for key, value in group.items() if key not in _GROUP_KEYS} | changes
    for item in group["task"]:
        part = item if isinstance(item, dict) else {"task": item}
        child = part.get("group", part.get("task"))
        if isinstance(child, str) and child in index:
            yield from leaves(index, child, changes | {k: v for k, v in part.items() if k not in _GROUP_KEYS})
        elif isinstance(part.get("task"), list):
            yield from _members(index, part, changes)
        else:
            raise InputError(f"{group['group']} defines a task in itself, which cca does not read; name another task")


def _refusal(config: Mapping[str, Any], local: bool) -> str | None:
    """Why a task is not run, if so."""
    if config.get("unsafe_code"):
        return "runs the code that the model writes, which cca does not"
    if "class" in config:
        return "is a program of its own, which cca does not run"
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return "needs more than text"
    if config.get("custom_dataset") and local:
        return "makes its documents itself and reads no local files"
    if not config.get("custom_dataset") and not _evaluated(config):
        return "names no split to evaluate"
    if _measure(config) is None:
        names = listed(_name(m["metric"]) for m in config.get("metric_list") or [])
        return f"is measured by {names or config.get('output_type')}, not by one of {', '.join(METRICS)}"
    return None


def _name(metric: str) -> str:
    """A metric's name, which is that of a function where the task has its own."""
    return metric.rpartition(".")[2] if "/" in metric else metric


def _evaluated(config: Mapping[str, Any]) -> str | None:
    return config.get("test_split") or config.get("validation_split")


def _measure(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of a task's own list of metrics that is used, if any."""
    usual = {"generate_until": "exact_match", "multiple_choice": "acc", "loglikelihood": "acc"}
    stock = usual.get(config.get("output_type", "generate_until"))
    metrics = config.get("metric_list") or ([{"metric": stock}] if stock else [])
    named = {_name(m["metric"]): m for m in metrics if not m.get("hf_evaluate") and m.get("higher_is_better", True)}
    return next((named[name] for name in METRICS if name in named), None)


def _with_shots(subtask: Subtask, shots: int | None) -> Subtask:
    """With the number of examples and the one measure written over its settings."""
    config, changes = subtask.config, dict(subtask.changes)
    stock = config.get("num_fewshot") or 0
    changes["num_fewshot"] = stock if shots is None or config.get("num_fewshot") == 0 else shots
    if not changes["num_fewshot"]:
        # else the harness reads the split of the examples all the same, and TriviaQA's has 138,000 rows
        changes |= {"training_split": None, "fewshot_split": None, "fewshot_config": None}
    measure = _measure(config) or {}
    if not config.get("process_results") and "/" not in measure["metric"]:
        # the others are not computed: some want a download
        changes["metric_list"] = [{**measure, "aggregation": "mean", "higher_is_better": True}]
    return replace(subtask, changes=changes)


def _with_files(subtask: Subtask, data: Data) -> Subtask:
    """With local files in place of its dataset.

    Raises:
        InputError: as `find_folder` and `find_files` do, or the splits are in different formats.
    """
    config = {**subtask.config, **subtask.changes}
    examples = config.get("fewshot_config") or {}
    shown = examples.get("split") or config.get("fewshot_split")
    if config["num_fewshot"] and not shown and not examples.get("samples"):
        shown = config.get("training_split") or config.get("validation_split")
    folder = find_folder(data, subtask.names, subtask.dataset, config.get("dataset_name") or DEFAULT)
    splits = {shown: f"the worked examples of {subtask.name}", _evaluated(config): subtask.name}
    files = {split: find_files(folder, split, what) for split, what in splits.items() if split}
    loaders = {LOADERS[file.suffix] for found in files.values() for file in found}
    if len(loaders) > 1:
        raise InputError(f"{folder} holds the splits of {subtask.name} as {listed(loaders)}; keep one format")
    changes = {
        "dataset_path": loaders.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: [str(file) for file in found] for split, found in files.items()}},
    }
    return replace(subtask, changes={**subtask.changes, **changes}, local=True)
