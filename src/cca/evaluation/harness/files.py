"""Local copies of hub datasets, found by the names of their splits.

A folder holds a sub folder for each dataset, as ``hf download OWNER/NAME --repo-type dataset --local-dir FOLDER/NAME``
writes it, in Parquet, JSON lines, JSON or CSV. It is called like the dataset (``cais/mmlu`` or ``mmlu``) or the task::

    FOLDER/mmlu/anatomy/test-00000-of-00001.parquet                      a folder for each configuration
    FOLDER/mmlu/anatomy/dev-00000-of-00001.parquet                       only where worked examples are asked for
    FOLDER/trivia_qa/rc.nocontext/validation-00000-of-00001.parquet
    FOLDER/truthful_qa/multiple_choice/validation-00000-of-00001.parquet
    FOLDER/gsm8k/main/test.jsonl                                         one file without shard numbers
    FOLDER/hellaswag/data/validation-00000-of-00001.parquet              a dataset without configurations
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cca.errors import InputError

Data = Mapping[str, Path] | Path
"""The folder of all datasets, or each dataset's own folder by the name of a task, a subtask or the dataset."""
LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""By which loader of `datasets` a file is read; of a split in several formats the first is taken."""
DEFAULT = "default"
"""The configuration of a dataset that has but one."""


class NoFolderError(InputError):
    """There is no folder of a dataset or configuration."""


def find_folder(data: Data, names: Sequence[str], dataset: str, configuration: str) -> Path:
    """Where the splits of a dataset's configuration lie. `names`: what the dataset's folder may be called.

    Raises:
        NoFolderError: there is no such folder.
    """
    if isinstance(data, Mapping):
        roots = [Path(data[name]).expanduser() for name in names if name in data][:1]
        if not roots:
            raise NoFolderError(f"no local files are given for {names[0]}; name a folder for one of {', '.join(names)}")
    else:
        roots = [Path(data).expanduser() / name for name in names]
    for root in roots:
        inside = [root / configuration, root / "data" / configuration]
        for folder in [*inside, root / "data", root] if configuration == DEFAULT else inside:
            if folder.is_dir():
                return folder
    root = next((root for root in roots if root.is_dir()), roots[-1])
    raise NoFolderError(
        f"no local files of {names[0]}: there is no folder {root if configuration == DEFAULT else root / configuration}"
        f"; download it with: hf download {dataset} --repo-type dataset --local-dir {root}"
    )


def find_files(folder: Path, split: str, what: str) -> list[Path]:
    """The files of a split in `folder`, in their order. `what`: of which task, for messages.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    present = sorted(folder.iterdir())
    for suffix in LOADERS:
        shape = re.compile(rf"{re.escape(split)}(?:-(\d+)-of-(\d+)(?:-\w+)?)?{re.escape(suffix)}")
        found = {file: shard for file in present if (shard := shape.fullmatch(file.name))}
        if found:
            count = max(int(shard[2] or 1) for shard in found.values())
            if sorted(int(shard[1] or 0) for shard in found.values()) != list(range(count)):
                raise InputError(
                    f"{folder} holds {len(found)} of {count} files of the split {split} of {what}, or some twice; "
                    "download it again"
                )
            return list(found)
    raise InputError(
        f"no local files of {what}: {folder} has no {split}.parquet, {split}-00000-of-00001.parquet, {split}.jsonl or "
        f"{split}.csv{', but ' * bool(present)}{listed(file.name for file in present)}; name the file after the split"
    )


def listed(words: Iterable[str]) -> str:
    """The first few of some words."""
    found = sorted(words)
    return ", ".join(found[:5]) + " ..." * (len(found) > 5)
