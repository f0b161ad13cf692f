"""The records of a file: JSON lines, CSV, Parquet, or a JSON list. Each has the place to name in errors."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from cca.errors import InputError, install_command
from cca.io import no_text, user_text

SUFFIXES = (".jsonl", ".csv", ".parquet")
_REMEDY = "give a file of UTF-8 text or Parquet"
_LONG = 400
"""Digits of a number that Python reads with no limit; a longer one is no answer."""
_UNPACKED = 2 * 2**30
"""Bytes of Parquet, at most, as values: a small file may hold one long text a billion times."""
_AT_ONCE = 256
"""Rows that are unpacked before they are counted."""


class Record(NamedTuple):
    """The values of a row by column, and where it stands."""

    place: str
    values: Mapping[str, Any]


def records(file: Path) -> Iterator[Record]:
    """The rows of a file in the format that its ending says.

    Raises:
        InputError: it cannot be read, or a row is none. The message names file and row.
    """
    match file.suffix.lower():
        case ".jsonl":
            yield from json_lines(file, called="row")
        case ".csv":
            yield from _csv(file)
        case ".parquet":
            yield from _parquet(file)
        case ".json":
            yield from _json_list(file)
        case _:
            raise InputError(f"{file} is none of {', '.join(SUFFIXES)}; convert it to one of them")


# ---- JSON ----


def json_lines(file: Path, what: str = "", remedy: str = _REMEDY, called: str = "line") -> Iterator[Record]:
    """The objects of a file with one a line. what, remedy: as of `user_text`. called: what an object is, for messages.

    Only a line feed ends a line: a separator of Unicode inside a text is part of it.

    Raises:
        InputError: as `records`.
    """
    lines = user_text(file, what, remedy).split("\n")
    for number, line in enumerate(lines, 1):
        line = line.removeprefix("\ufeff")  # of a file that was put behind another
        if line.strip():
            where = f"{file}, line {number}"
            try:
                values = parse_json(line)
            except ValueError as error:
                if _spans_lines("\n".join(lines[number - 1 :])):
                    raise InputError(
                        f"{where} begins a JSON value of several lines; write each object on a line of its own, "
                        "or call a file that is one list of objects .json"
                    ) from error
                raise InputError(f"{where} is not JSON ({error}); mend it") from error
            if isinstance(values, list):
                raise InputError(f"{where} is not an object but a list; call a file that is a list of objects .json")
            if not isinstance(values, dict):
                raise InputError(f"{where} is not an object with question and answer; mend it")
            yield Record(f"{file}, {called} {number}", values)


def _json_list(file: Path) -> Iterator[Record]:
    try:
        found = parse_json(user_text(file, "", _REMEDY))
    except ValueError as error:
        raise InputError(
            f"{file} is not JSON ({error}); mend it, or call a file with one object a line .jsonl"
        ) from error
    if not isinstance(found, list):
        key = next((k for k, v in found.items() if _is_rows(v)), None) if isinstance(found, dict) else None
        held = f"holds its rows under {key!r}; write that list alone" if key else "is no list of problems; write one"
        raise InputError(
            f"{file} {held}, or one object a line as .jsonl (an annotated template has question_annotated)"
        )
    for number, values in enumerate(found, 1):
        if not isinstance(values, dict):
            raise InputError(f"{file}, row {number} is not an object with question and answer; mend it")
        yield Record(f"{file}, row {number}", values)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def holds_problems(file: Path, columns: Sequence[str]) -> bool:
    """Whether a JSON file beside others is meant as problems: it is a list of objects, or one has all `columns`.

    What describes a dataset (``dataset_info.json``) or a program is neither. One that is no JSON or an empty list is
    taken for problems, so that it is named and not passed over.
    """
    try:
        found = parse_json(user_text(file, "", _REMEDY))
    except ValueError:
        return True
    if isinstance(found, list):
        return not found or any(isinstance(item, dict) for item in found)
    inside = [found]
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            if all(column in value and not isinstance(value[column], dict) for column in columns):
                return True
            inside += value.values()
        elif isinstance(value, list):
            inside += value
    return False


def is_template(file: Path) -> bool:
    """Whether a JSON file is an annotated template, or was meant as one."""
    try:
        data = file.read_bytes()
    except OSError:
        return False
    return data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and b'_annotated"' in data


def parse_json(text: str) -> Any:
    """`text` with numbers kept as they are written where a float or Python's limit would change them.

    Raises:
        ValueError: it is no JSON, or an object has a key twice.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_float=_real, object_pairs_hook=_pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _LONG else Decimal(text)


def _real(text: str) -> float | Decimal:
    try:
        exact = Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return float(text)
    return value if Decimal(repr(value := float(text))) == exact else exact


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def _spans_lines(text: str) -> bool:
    text = text.lstrip("\ufeff \t\r\n")
    try:
        return "\n" in text[: json.JSONDecoder().raw_decode(text)[1]]
    except (ValueError, RecursionError):
        return False


# ---- tables ----


def _csv(file: Path) -> Iterator[Record]:
    reader = csv.reader(
        StringIO(user_text(file, "", _REMEDY, newline=""), newline=""), strict=True, skipinitialspace=True
    )
    header: list[str] = []
    number = 0
    try:
        for cells in filter(None, reader):
            if not header:
                header = _header([cell.strip() for cell in cells], file)
                continue
            number += 1
            place = f"{file}, row {number}"
            if len(cells) != len(header):
                raise InputError(
                    f"{place} has {len(cells)} cells, the header {len(header)}; quote cells that hold commas "
                    f"(line {reader.line_num})"
                )
            if [cell.strip('\ufeff" ') for cell in cells] == header:  # of a file that was put behind another
                raise InputError(f"{place} is the header again; leave it out (line {reader.line_num})")
            yield Record(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        first = user_text(file, "", _REMEDY).lstrip().partition("\n")[0]
        if not header and "," not in first:
            _header([first], file)  # which says what else may separate its cells
        raise InputError(
            f"cannot read {file}, line {reader.line_num} ({error}); close each quote, and write one inside a text twice"
        ) from error


def _header(names: list[str], file: Path) -> list[str]:
    """The names of columns.

    Raises:
        InputError: one has no name, two have the same, or they are separated by something else than commas.
    """
    for sign, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and sign in names[0]:
            raise InputError(f"{file}: its header is one cell, {names[0]!r}; save it with commas in place of {called}")
    if "" in names:
        raise InputError(
            f"{file}: column {names.index('') + 1} has no name; name it or leave it out (of a data frame: index=False)"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{file}: two columns are called {twice!r}; rename or leave out one of them")
    return names


def _parquet(file: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"{file} is Parquet, which needs pyarrow; install it with: {install_command('pyarrow')}"
        ) from error
    rows: list[tuple[Any, ...]] = []
    unpacked = 0
    try:
        with ParquetFile(file) as opened:
            names = _header(opened.schema_arrow.names, file)
            _check_size(file, sum(opened.metadata.row_group(n).total_byte_size for n in range(opened.num_row_groups)))
            for batch in opened.iter_batches(_AT_ONCE):
                # what a short float says ("0.1") is lost where it becomes a long one
                short = [types.is_floating(column.type) and column.type.bit_width < 64 for column in batch.columns]
                columns = [
                    column.to_numpy(zero_copy_only=False) if is_short else column.to_pylist()
                    for is_short, column in zip(short, batch.columns, strict=True)
                ]
                rows += zip(*columns, strict=True)
                _check_size(file, unpacked := unpacked + sum(map(_size, columns)))
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        with_text = no_text(file.read_bytes()[:1000], file) if file.is_file() else None
        said = with_text or "no Parquet file" if "magic" in str(error) else "not readable so"
        raise InputError(f"cannot read {file} ({error}); it is {said}") from error
    for number, values in enumerate(rows, 1):
        yield Record(f"{file}, row {number}", dict(zip(names, values, strict=True)))


def _check_size(file: Path, unpacked: int) -> None:
    """See that the values of a file have room.

    Raises:
        InputError: they have not.
    """
    if unpacked > _UNPACKED:
        raise InputError(
            f"{file} unpacks to more than {_UNPACKED / 2**30:.0f} GiB; leave out columns that are no part of a "
            "problem, or split it into several files"
        )


def _size(value: Any) -> int:
    """About how many bytes a value takes. Arrow does not say it of texts that a dictionary holds once."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
