"""Your own questions, and datasets of the hub or a local copy of one: rows of JSON lines, CSV or Parquet.

A row has ``question`` and ``answer``; ``answer`` may be a worked solution that ends with ``#### gold``, as in GSM8K.
Optional are ``solution``, ``template`` (GSM-Symbolic: ``id``, beside ``instance``) and ``split``. In a folder the name
of a file says its split, as on the hub: ``train-00000-of-00001.parquet``, ``gsm8k_test.jsonl``, ``test/0000.parquet``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.problems.formats import SUFFIXES, holds_problems, records
from cca.problems.rows import SPLITS, Columns, Row, distinct, row_of
from cca.records import Split

_NOT_READ = frozenset(
    [".arrow", ".bz2", ".feather", ".gz", ".ndjson", ".orc", ".tar", ".tsv", ".xls", ".xlsx", ".xz", ".zip", ".zst"],
)
"""Endings of files that may well hold rows."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts ``t2`` before ``t10``."""
    parts = [(part, part.lstrip("0")) for part in re.split(r"(\d+)", name)]
    return [(len(digits), digits) if part.isdecimal() else (-1, part) for part, digits in parts]


def is_hub_name(source: str) -> bool:
    """Whether `source` reads as ``owner/name`` or ``owner/name:config``."""
    return _HUB_NAME.fullmatch(source) is not None


def splits_in(name: str) -> list[Split]:
    """The splits that the words of a file's name say: ``gsm8k_Train-1.csv``, ``myTestSet``, but not ``latest``."""
    found: list[Split] = []
    for whole in re.findall(r"[^\W\d_]+", name):
        for word in (whole, *_CAMEL.split(whole)):
            word = word.casefold()
            split = SPLITS.get(word) or SPLITS.get(re.sub(r"(set|data|split)?s?$", "", word))
            if split and split not in found:
                found.append(split)
    return found


def read_rows(path: Path, columns: Columns | None = None, grader: str = "number") -> list[Row]:
    """The rows of a file, or of every file of a folder; a question that stands twice is kept once.

    Args:
        path: a file, or a folder; in it, folders that are named after a split count as well.
        columns: which column of a row holds what.
        grader: by which answers are compared where a question stands twice.

    Raises:
        InputError: nothing to read, a row that is no problem, files of which only some say their split, or one question
            with two answers or in two splits. It names file and row.
    """
    named = columns or Columns()
    if not path.is_dir():
        return distinct(_rows_of(path, named), str(path), grader)
    by_file = {file: _rows_of(file, named) for file in _data_files(path, named)}
    for file, rows in by_file.items():
        if not rows and len(by_file) > 1:
            raise InputError(f"{file} holds no problems, though others in {path} do; fill it or move it out")
        said = splits_in(str(file.relative_to(path)))
        if len(said) > 1 and not all(row.split for row in rows):
            raise InputError(
                f"the name of {file} says {' and '.join(said)}; rename it, or give each of its rows a {named.split}"
            )
        if said:
            by_file[file] = [row._replace(split=row.split or said[0]) for row in rows]
    silent = [file for file, rows in by_file.items() if not any(row.split for row in rows)]
    if silent and len(silent) < len(by_file):
        telling = next(file for file in by_file if file not in silent)
        raise InputError(
            f"{silent[0]} does not say which split it is, though {telling.name} does; call it train, validation or "
            f"test, give each row a {named.split}, or move it out of {path}"
        )
    return distinct((row for rows in by_file.values() for row in rows), str(path), grader)


def _rows_of(file: Path, columns: Columns) -> list[Row]:
    return [row_of(record.values, record.place, columns) for record in records(file)]


def _data_files(folder: Path, columns: Columns) -> list[Path]:
    """The files of a folder that hold rows, and those of its folders that are named after a split."""
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for sub in [path for path in inside if path.is_dir() and splits_in(path.name)]:
        inside += [p for p in sorted(sub.rglob("*")) if not any(x.startswith(".") for x in p.relative_to(sub).parts)]
    wanted = (columns.question, columns.answer)
    found: list[Path] = []
    for file in inside:
        ending = file.suffix.lower()
        if file.is_dir():
            continue
        if ending in _NOT_READ or (not ending and splits_in(file.name)):
            raise InputError(
                f"{file} may hold problems but is none of {', '.join(SUFFIXES)}; convert or unpack it, or move it out "
                f"of {folder}"
            )
        if ending in SUFFIXES or (ending == ".json" and holds_problems(file, wanted)):
            found.append(file)
    if not found:
        others = [path.name for path in inside if path.is_dir() and any(p.suffix in SUFFIXES for p in path.iterdir())]
        raise InputError(
            f"{folder} holds no {', '.join(SUFFIXES)} file; name a file or a folder that does"
            + f", such as {', '.join(str(folder / name) for name in others[:5])}" * bool(others)
        )
    return found


def rows_in_memory(rows: Iterable[Mapping[str, Any]], columns: Columns | None = None) -> list[Row]:
    """Rows that are in memory already, checked as those of a file are.

    Raises:
        InputError: there are none, or as `read_rows`. It names the row.
    """
    found = []
    for number, values in enumerate(rows, 1):
        if not isinstance(values, Mapping):
            raise InputError(
                f"row {number} is no mapping with question and answer but of type {type(values).__name__}; give rows "
                'such as {"question": ..., "answer": ...} (of a data frame: frame.to_dict("records"))'
            )
        found.append(row_of(values, f"row {number}", columns or Columns()))
    return distinct(found, "what was given")


def download(source: str) -> Path:
    """The folder of ``owner/name[:config]``'s files (config ``main`` by default), from the hub or its cache.

    Raises:
        InputError: there is neither, or the dataset has no such config.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, config = source.partition(":")
    config = config or "main"
    try:
        root = Path(snapshot_download(name, repo_type="dataset", allow_patterns=[f"{config}/*"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"cannot get dataset {name} from the hub ({type(error).__name__}); name a local copy's folder instead, "
            f"for example one made by: hf download {name} --repo-type dataset --local-dir COPY (then COPY/{config})"
        ) from error
    folder = root / config
    if not folder.is_dir():
        raise InputError(f"dataset {name} has no folder {config}; name another after the colon: {name}:CONFIG")
    return folder
