"""Files that are whole or not there, and records as JSON lines."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from cca.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is either the old or the whole new one: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Keep a new name over a power cut, where the system can open a folder and the file system syncs it."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_text(path: Path, text: str) -> None:
    """`replace_file` with text, the same bytes on every system."""
    replace_file(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def read_text(path: Path) -> str:
    """What `write_text` wrote.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error})") from error


def save_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """`replace_file` with tensors by name, as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # it loads torch, which the commands that only read do without

    def save(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # which hides that the disk is full
            raise OSError(f"cannot write {path} ({error})") from error

    replace_file(Path(path), save)


class Saved(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, "Tensor"]
    metadata: dict[str, str]


def load_tensors(path: str | Path, device: str = "cpu") -> Saved:
    """What `save_tensors` wrote.

    Raises:
        InputError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=device) as file:
            return Saved({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path} ({error})") from error


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
    except InputError as error:  # of the record itself
        raise InputError(f"{where} is no {kind.__name__} ({error})") from error


def append_records(path: Path, records: Iterable[Any]) -> None:
    """Append `records` to `path`, one JSON line each, flushed to the disk."""
    with path.open("ab") as file:
        file.write("".join(to_json(record) + "\n" for record in records).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path, kind: type[R], growing: bool = False) -> Iterator[R]:
    """The records in `path`; nothing where the file does not exist.

    Args:
        growing: another process may be writing the last line, which is left out until it is whole.

    Raises:
        InputError: a line is no such record; the message names file and line.
    """
    if not path.exists():
        return
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate([*lines, last] if last and not growing else lines, 1):
        yield from_json(line, kind, f"{path}, line {number},")
