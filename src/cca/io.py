"""Files that are whole or not there, and records as JSON lines."""

import codecs
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from cca.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")
_HEADER = "cca"
"""The one entry of a safetensors file's metadata: a JSON object."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is either the old or the whole new one: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        readable(temporary)
        with temporary.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def readable(path: Path) -> None:
    """Give a file the rights of any new one: safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


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


def user_text(path: str | Path, what: str, remedy: str, newline: str | None = None) -> str:
    """The text of a file that somebody wrote: UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        what: it is, for messages, where its name does not say it.
        remedy: what to give instead of a file that cannot be read.
        newline: how its lines end, as of `open`; None: every ending becomes a line feed.

    Raises:
        InputError: it cannot be read, or is not such text. The message says what it is, and how to convert it.
    """
    named = f"{what} {path}".strip()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {named} ({error.strerror or error}); {remedy}") from error
    if odd := no_text(data, path):
        raise InputError(f"cannot read {named}: it is {odd}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        said = f"line {line} is not UTF-8 ({error.reason}); save it as UTF-8, {_converted('WINDOWS-1252', path)}"
        raise InputError(f"cannot read {named}: {said}") from error
    return StringIO(text, newline=None).read() if newline is None else text


def no_text(data: bytes, path: str | Path) -> str | None:
    """What the bytes of a file are that are no UTF-8 text, and what to do about it; None where they may be."""
    quoted = shlex.quote(str(path))
    for marks, found in (
        ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), f"UTF-32 text; save it as UTF-8, {_converted('UTF-32', path)}"),
        ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), f"UTF-16 text; save it as UTF-8, {_converted('UTF-16', path)}"),
        ((b"\x1f\x8b",), f"compressed with gzip; unpack it, for example with: gzip -dc {quoted} > NEW"),
        ((b"\x28\xb5\x2f\xfd",), f"compressed with zstd; unpack it, for example with: zstd -dc {quoted} > NEW"),
        ((b"PK\x03\x04",), "a zip archive or a workbook of a spreadsheet; unpack it, or save it as CSV (UTF-8)"),
        ((b"version https://git-lfs",), "a pointer of git-lfs in place of the file; fetch that with: git lfs pull"),
        ((b"PAR1",), "Parquet; call it .parquet"),
    ):
        if data.startswith(marks):
            return found
    if b"\0" in data:
        return (
            f"no text, or UTF-16 without a mark (it holds zero bytes); save it as UTF-8, {_converted('UTF-16LE', path)}"
        )
    return None


def _converted(encoding: str, path: str | Path) -> str:
    return f"for example with: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW"


def save_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """`replace_file` with tensors by name, as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # it loads torch, which the commands that only read do without

    # the library writes several entries in an order that differs from process to process
    packed = {_HEADER: json.dumps(metadata, sort_keys=True)} if metadata else None

    def save(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=packed)
        except SafetensorError as error:  # which hides that the disk is full
            raise OSError(f"cannot write {path} ({error})") from error

    replace_file(Path(path), save)


def header_of(file: Any) -> dict[str, str]:
    """The metadata that `save_tensors` gave a file, which ``safe_open`` has opened; empty where it gave none.

    Raises:
        InputError: it is none of ours.
    """
    text = (file.metadata() or {}).get(_HEADER, "{}")
    try:
        return _adapter(dict[str, str]).validate_json(text)
    except ValidationError as error:
        raise InputError(f"its header is damaged ({error.errors()[0]['msg']})") from error


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
            return Saved({name: file.get_tensor(name) for name in file.keys()}, header_of(file))  # noqa: SIM118
    except (OSError, SafetensorError, InputError) as error:
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
