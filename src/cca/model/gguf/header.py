"""The header of a GGUF file: its fields, and where each of its tensors lies. No tensor is read."""

import itertools
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cca.errors import InputError, install_command
from cca.model.bundled import location
from cca.model.weights import check_start, some

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values of one size, as `struct` calls them."""
_TEXT, _LIST = 8, 9
_VERSIONS = (2, 3)
_DIMENSIONS = 4
_OF_SEVERAL = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


class TensorPlace(NamedTuple):
    """Where a tensor lies. type: as ggml numbers it. shape: in torch's order. start, size: in bytes of the file."""

    type: int
    shape: tuple[int, ...]
    start: int
    size: int


_ROLES = {"unk": "unknown", "pad": "padding"}
"""What a file calls them otherwise."""


def _key(role: str) -> str:
    """The field in which a file names the token of a role."""
    return f"tokenizer.ggml.{_ROLES.get(role, role)}_token_id"


@dataclass(frozen=True, eq=False)
class GgufFile:
    """The header of a GGUF file. tensors: by their names in the file."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    @property
    def architecture(self) -> str:
        return self.fields["general.architecture"]

    def token_id(self, role: str, count: int) -> int | None:
        """The id that the file names for a role; None where it names none of the `count` tokens that there are."""
        found = self.fields.get(_key(role))
        return found if isinstance(found, int) and 0 <= found < count else None

    def names_token(self, role: str) -> bool:
        """Whether the file names a token for a role, be it one that there is or not."""
        return _key(role) in self.fields

    @property
    def quantisation(self) -> str:
        """How its weights were stored, such as ``Q4_K_M``, or else the types of its tensors."""
        from gguf import GGMLQuantizationType, LlamaFileType

        try:
            return LlamaFileType(self.fields["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except (KeyError, ValueError):
            return ", ".join(sorted({GGMLQuantizationType(tensor.type).name for tensor in self.tensors.values()}))


def is_gguf(path: str) -> bool:
    """Whether a model's path is meant as that of a GGUF file.

    Raises:
        InputError: there can be no file of that name.
    """
    where = Path(location(path))
    try:
        return where.is_file() or (where.suffix.lower() == ".gguf" and not where.is_dir())
    except OSError as error:
        raise InputError(f"no model at {path} ({error.strerror}); name a folder, a GGUF file or a hub name") from error


def open_gguf(path: str) -> GgufFile:
    """The header of the GGUF file at `path`, whose tensors are all there and of types that can be dequantised.

    Raises:
        InputError: there is no such file, it is cut off or no GGUF file, it is a part of one, or it is none of a model;
            or the package gguf is missing.
    """
    where = Path(location(path))
    if not where.is_file():
        raise InputError(
            f"there is no file {where.absolute()}; set model.path to a GGUF file, a model folder or a hub name"
        )
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(f"{path} is a GGUF file; what reads it comes with: {install_command('gguf')}") from error
    check_start(where)
    state = where.stat()
    return _opened(where, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(where: Path, size: int, _: int) -> GgufFile:
    with where.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
        if blob[:4] != b"GGUF":
            raise InputError(
                f"{where} is no GGUF file (it does not begin with GGUF); name a model folder or a GGUF file"
            )
        try:
            fields, entries, end = _header(_Reader(blob))
        except EOFError as error:
            raise InputError(f"{where} is cut off in its header; fetch it again") from error
        except ValueError as error:
            raise InputError(f"{where} has no header that can be read ({error}); fetch it again") from error
    part = _OF_SEVERAL.search(where.name)
    parts = int(part[2]) if part else fields.get("split.count", 1)
    if parts not in (0, 1):
        raise InputError(
            f"{where} is one of {parts} parts of a model; join them: llama-gguf-split --merge {where} whole.gguf"
        )
    if (kind := fields.get("general.type", "model")) != "model":
        raise InputError(f"{where} holds no model but of type {kind}; name the model's own file")
    if not isinstance(fields.get("general.architecture"), str):
        raise InputError(f"{where} has no general.architecture; fetch it again")
    return GgufFile(where, fields, _placed(where, fields, entries, end, size))


class _Entry(NamedTuple):
    """A line of the table of tensors. start: from where their data begins."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


def _placed(
    where: Path, fields: Mapping[str, Any], entries: list[_Entry], end: int, size: int
) -> dict[str, TensorPlace]:
    """Where the tensors are in the file, which has `size` bytes.

    Raises:
        InputError: one is cut off, stands twice, lies where none can be or upon another, or cannot be dequantised.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{where} has a general.alignment of {alignment!r}; fetch it again")
    begin = -(-end // alignment) * alignment
    found: dict[str, TensorPlace] = {}
    for name, shape, kind, start in entries:
        if not _can_dequantise(kind):
            types = [t.name for t in GGMLQuantizationType if _can_dequantise(t)]
            known = kind in list(GGMLQuantizationType)
            raise InputError(
                f"{name} of {where} is of type {GGMLQuantizationType(kind).name if known else kind}, which cannot be "
                f"dequantised; known are {', '.join(types)}. Choose a file of another quantisation"
            )
        block, taken = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        numbers = 1
        for length in shape:
            numbers *= length
        if shape[-1] % block:
            raise InputError(f"{name} of {where} has rows of no whole blocks ({list(shape)}); fetch the file again")
        if name in found:
            raise InputError(f"{where} has two tensors {name}; fetch it again")
        if start % alignment:
            raise InputError(f"{name} of {where} begins at no multiple of {alignment} bytes; fetch the file again")
        found[name] = TensorPlace(kind, shape, begin + start, numbers // block * taken)
    in_order = sorted(found, key=lambda name: found[name].start)
    for one, other in itertools.pairwise(in_order):
        if found[one].start + found[one].size > found[other].start:
            raise InputError(f"{one} and {other} of {where} lie upon one another; fetch the file again")
    needed = max((place.start + place.size for place in found.values()), default=0)
    if needed > size:
        cut = [name for name, place in found.items() if place.start + place.size > size]
        raise InputError(
            f"{where} is cut off: it has {size:,} bytes and its header tells of {needed:,}, so that {some(cut)} "
            f"{'is' if len(cut) == 1 else 'are'} not whole; fetch it again"
        )
    if not found:
        raise InputError(f"{where} holds no tensors; name the file of a whole model")
    return found


@lru_cache(maxsize=256)
def _can_dequantise(kind: int) -> bool:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        of = GGMLQuantizationType(kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[of][1]), np.uint8), of)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


# ---- bytes ----


class _Reader:
    """Reads one value after the other. Raises EOFError where the file ends before, ValueError where it is none."""

    def __init__(self, blob: mmap.mmap):
        self.blob, self.at = blob, 0

    def bytes(self, count: int) -> bytes:
        if count > len(self.blob) - self.at:
            raise EOFError
        self.at += count
        return self.blob[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))
        return _decimal(value) if kind == "f" else value

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise ValueError(f"a value of type {kind}")
        of, count = self.number("I"), self.number("Q")
        if of == _TEXT:
            if count * 8 > len(self.blob) - self.at:
                raise EOFError
            return [self.text() for _ in range(count)]
        if of not in _NUMBERS:
            raise ValueError(f"a list of type {of}")
        size = struct.calcsize(f"<{_NUMBERS[of]}")
        return list(struct.unpack(f"<{count}{_NUMBERS[of]}", self.bytes(count * size)))


def _decimal(value: float) -> float:
    """The shortest decimal that is the same in float32, as it stood in the file that this one was made of."""
    import numpy as np

    return float(str(np.float32(value)))


def _header(reader: _Reader) -> tuple[dict[str, Any], list[_Entry], int]:
    """Fields, the table of tensors, and where it ends."""
    reader.bytes(4)
    if (version := reader.number("I")) not in _VERSIONS:
        raise ValueError(f"version {version}, or another order of bytes; known are versions 2 and 3")
    count, fields_count = reader.number("Q"), reader.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(fields_count):
        key = reader.text()
        if not key:
            raise ValueError("a field without a name")
        fields[key] = reader.value(reader.number("I"))
    entries: list[_Entry] = []
    for _ in range(count):
        name, dimensions = reader.text(), reader.number("I")
        if not name or not 0 < dimensions <= _DIMENSIONS:
            raise ValueError(f"{name or 'a tensor without a name'} has {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        entries.append(_Entry(name, shape, reader.number("I"), reader.number("Q")))
    return fields, entries, reader.at
