"""Your own questions, and datasets of the hub or a local copy of one: rows of JSON lines, CSV or Parquet.

A row has ``question`` and ``answer``; ``answer`` may be a worked solution that ends with ``#### gold``, as in GSM8K.
Optional are ``solution``, ``template`` (GSM-Symbolic: ``id``, beside ``instance``) and ``split``. In a folder the name
of a file says its split, as on the hub: ``train-00000-of-00001.parquet``, ``test.jsonl``.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cca.errors import InputError
from cca.problems.gsm_symbolic import Worked
from cca.records import Split

SUFFIXES = (".jsonl", ".csv", ".parquet")
SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
"""What files call their splits, and what they are here."""
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_NO_TEMPLATE = "all"


class Row(NamedTuple):
    """A problem of a file, and the split that the file gives it, if any."""

    worked: Worked
    split: Split | None


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts ``t2`` before ``t10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_hub_name(source: str) -> bool:
    """Whether `source` reads as ``owner/name`` or ``owner/name:config``."""
    return _HUB_NAME.fullmatch(source) is not None


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, or of every file of a folder; a question that stands twice is kept once.

    Raises:
        InputError: nothing to read, a row without question or answer, or an unknown split. It names file and row.
    """
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no {', '.join(SUFFIXES)} file; name a file or a folder that does")
    rows: list[Row] = []
    for file in files:
        from_name = SPLITS.get(re.split(r"[-_.]", file.name)[0]) if path.is_dir() else None
        rows += [_row(record, from_name, f"{file}, row {n}") for n, record in enumerate(_records(file), 1)]
    return _distinct(rows, str(path))


def rows_in_memory(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows that are in memory already, checked as those of a file are.

    Raises:
        InputError: there are none, or one has no question, no answer or an unknown split. It names the row.
    """
    rows = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise InputError(
                f"row {number} is no mapping with question and answer but of type {type(record).__name__}; "
                'give rows such as {"question": ..., "answer": ...}'
            )
        rows.append(_row(record, None, f"row {number}"))
    return _distinct(rows, "what was given")


def _distinct(rows: Iterable[Row], where: str) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(same_question(row.worked.question), row)
    if not found:
        raise InputError(f"{where} holds no problems; each row needs a question and an answer")
    return list(found.values())


def same_question(question: str) -> str:
    """What two questions share that differ in case and white space alone."""
    return " ".join(question.split()).casefold()


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        match file.suffix:
            case ".jsonl":
                with file.open(encoding="utf-8") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield _object(line, f"{file}, line {number}")
            case ".csv":
                with file.open(encoding="utf-8-sig", newline="") as lines:
                    yield from csv.DictReader(lines, strict=True)
            case ".parquet":
                yield from _parquet(file)
            case _:
                raise InputError(f"{file} is none of {', '.join(SUFFIXES)}; convert it to one of them")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {file} ({error}); give a file of UTF-8 text or Parquet") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); mend it") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with question and answer; mend it")
    return record


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise InputError(
            f"{file} is Parquet, which needs pyarrow: pip install 'constructive-circuit-amplification[eval]'"
        ) from error
    try:
        return read_table(file).to_pylist()
    except ArrowException as error:
        raise InputError(f"cannot read {file} ({error}); it is no Parquet file") from error


def _row(record: Mapping[str, Any], from_name: str | None, where: str) -> Row:
    missing = [key for key in ("question", "answer") if record.get(key) is None or not str(record[key]).strip()]
    if missing:
        raise InputError(f"{where} has no {missing[0]}; it has {', '.join(map(str, record)) or 'nothing'}")
    question, text = str(record["question"]).strip(), _CALCULATOR.sub("", str(record["answer"])).strip()
    work, marker, gold = text.rpartition("####")
    answer = gold.strip() if marker else text
    if not answer:
        raise InputError(f"{where} has nothing after ####, so no answer; add the gold answer there")
    solution = str(record.get("solution") or "").strip() or (text if work.strip() else f"#### {answer}")
    numbered = record.get("id") if record.get("instance") is not None else None
    template = str(next((t for t in (record.get("template"), numbered) if t not in (None, "")), _NO_TEMPLATE))
    split = record.get("split") or from_name
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: unknown split {split!r}; known: {', '.join(SPLITS)}")
    return Row(Worked(template, question, answer, solution), SPLITS[split] if split else None)


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
