"""Files that are whole or not there, and records as JSON lines."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cca.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is either the old or the whole new one: temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """`replace_file` with text."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """`replace_file` with tensors by name, as safetensors."""
    from safetensors.torch import save_file  # it loads torch, which the commands that only read do without

    replace_file(Path(path), lambda temporary: save_file(dict(tensors), temporary, metadata=metadata))


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(value: Any, indent: int | None = None) -> str:
    """A dataclass as JSON, under the names that files use."""
    return _adapter(type(value)).dump_json(value, indent=indent, by_alias=True).decode()


def from_json(text: str | bytes, kind: type[R], where: str) -> R:
    """What `to_json` wrote.

    Raises:
        InputError: it is no such record; the message says what is wrong, and `where` it stands.
    """
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{where} is no {kind.__name__} ({field + ': ' if field else ''}{first['msg']})") from error


def append_records(path: Path, records: Iterable[Any]) -> None:
    """Append `records` to `path`, one JSON line each, flushed to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(to_json(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """The records in `path`; nothing where the file does not exist.

    Raises:
        InputError: a line is no such record; the message names file and line.
    """
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield from_json(line, kind, f"{path}, line {number},")
