"""Feed every reader of files with inputs that a stranger could have made, and see that each is read or refused.

    python tests/fuzz.py --inputs 10000 --seed 0
    python tests/fuzz.py --engine atheris --target delta.safetensors -- -max_total_time=60   # pip install atheris

An input must end in a value or an InputError: no other exception, no program started, no socket opened, no file written
outside the input's own folder, within 10 seconds and `MEMORY` bytes. Inputs are valid files that were cut, spliced or
bit-flipped, or had numbers, words and (of safetensors) headers exchanged; they depend on seed, target and number alone.
"""

import argparse
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_targets import TARGETS, Target

SECONDS, MEMORY = 10, 3 * 2**30
WORDS = [
    b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"Infinity", b"-1", b"1e999", b"\x00", b"\xff\xfe", b"\xed\xa0\x80",
    b"[[[[[[", b"../../etc/passwd", b"/etc/passwd", b"file:///", b"__import__('os')", b"{{ 7*7 }}", b"${HOME}", b"%s%n",
    b"\r\n", b'"', b"\\u0000",
]  # fmt: skip
NUMBERS = [b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"9223372036854775808", b"1" * 30, b"1e308", b"0.1"]


# ---- inputs ----


def mutated(seeds: list[bytes], random_: random.Random, name: str) -> bytes:
    """One of `seeds`, changed in one to eight ways."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        change = random_.choice(_CHANGES)
        if name.endswith(".safetensors") and random_.random() < 0.6:
            change = _other_header
        change(data, random_, seeds)
    return bytes(data)


def _place(data: bytearray, random_: random.Random) -> int:
    return random_.randrange(len(data) + 1)


def _flip(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    if data:
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _cut(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    del data[_place(data, random_) :]


def _leave_out(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    start = _place(data, random_)
    del data[start : start + random_.randrange(1, 40)]


def _twice(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    start = _place(data, random_)
    data[start:start] = data[start : start + random_.randrange(1, 200)] * random_.choice((1, 2, 50))


def _word(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    start = _place(data, random_)
    data[start:start] = random_.choice(WORDS) * random_.choice((1, 1, 1, 2000))


def _number(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    if found := list(re.finditer(rb"\d+", data[:100_000])):
        chosen = random_.choice(found)
        data[chosen.start() : chosen.end()] = random_.choice(NUMBERS)


def _value(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    """Another JSON value in place of one."""
    if found := list(re.finditer(rb'"[^"\n]*"(?!\s*:)|\b\d+\b|\btrue\b|\bnull\b', data[:100_000])):
        chosen = random_.choice(found)
        data[chosen.start() : chosen.end()] = random_.choice(WORDS)


def _splice(data: bytearray, random_: random.Random, seeds: list[bytes]) -> None:
    other = random_.choice(seeds)
    data[_place(data, random_) :] = other[random_.randrange(len(other) + 1) :]


def _other_header(data: bytearray, random_: random.Random, _: list[bytes]) -> None:
    """Of safetensors: a header that is whole and says something else."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(bytes(data[8 : 8 + length]))
        name = random_.choice([*header])
        entry = header[name]
        match random_.randrange(7):
            case 0:
                entry["dtype"] = random_.choice(
                    ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X")
                )
            case 1:
                entry["shape"] = random_.choice(
                    ([], [0], [2**40, 2**40], [-1], [1, *entry["shape"]], entry["shape"][::-1])
                )
            case 2:
                entry["data_offsets"] = [random_.choice((0, 8, 2**62)), random_.choice((0, 64, 2**63))]
            case 3:
                del header[name]
            case 4:
                header[random_.choice(("../x.rows", "a.values", "", "lm_head.weight.rows", "." * 5000))] = entry
            case 5:
                text = bytearray(json.dumps(entry).encode())
                _number(text, random_, [])
                header[name] = json.loads(text)
            case _:
                text = bytearray(json.dumps(header.get("__metadata__", {})).encode())
                random_.choice((_number, _value, _word))(text, random_, [])
                header["__metadata__"] = json.loads(text)
        new = json.dumps(header).encode()
        data[: 8 + length] = struct.pack("<Q", len(new)) + new
    except (ValueError, KeyError, TypeError, IndexError, struct.error, AttributeError, UnicodeDecodeError):
        _flip(data, random_, [])


_CHANGES = (_flip, _cut, _leave_out, _twice, _word, _number, _value, _splice)


# ---- what must not happen ----


class Trespass(BaseException):
    """An input had something done that no input may."""


_allowed: Path | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in (
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "socket.connect",
        "pickle.find_class",
        "ctypes.dlopen",
    ):
        raise Trespass(f"{event} {arguments!r}"[:300])
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        where = Path(str(arguments[0])).resolve()
        if not where.is_relative_to(_allowed) and "/proc/" not in str(where):
            raise Trespass(f"writes {where}")
    if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link"):
        where = Path(str(arguments[0])).resolve()
        if not where.is_relative_to(_allowed):
            raise Trespass(f"{event} {where}")


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    global _allowed

    def late(*_: Any) -> None:
        raise Trespass(f"takes more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    _allowed = folder.resolve()
    try:
        yield
    finally:
        _allowed = None
        signal.alarm(0)


REFUSED = "refused"


def fault(target: Target, data: bytes, folder: Path) -> str | None:
    """What was wrong with how `data` was read; `REFUSED` where it was refused as it should be; None: it was read."""
    from cca.errors import InputError

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / target.name
    path.write_bytes(data)
    try:
        with _watched(folder):
            target.read(path)
    except InputError as error:
        return REFUSED if str(error).strip() else "an InputError that says nothing"
    except (Exception, Trespass, RecursionError) as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return None


class Tried(NamedTuple):
    """read: how many inputs were read, of `inputs`; the others were refused, or are faults, in words."""

    inputs: int
    read: int
    faults: list[str]


def run(target: Target, inputs: int, seed: int, keep: Path | None = None) -> Tried:
    """Try all seeds and `inputs` made of them. keep: where inputs with a fault go."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    watch()
    faults: list[str] = []
    read = 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = target.seeds()
        for data in seeds:
            if said := fault(target, data, Path(folder) / "input"):
                faults.append(f"valid input: {said}")
        for number in range(inputs):
            data = mutated(seeds, random.Random(f"{seed} {target.name} {number}"), target.name)
            said = fault(target, data, Path(folder) / "input")
            read += said is None
            if said and said != REFUSED:
                faults.append(f"input {number}: {said}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}-{target.name}").write_bytes(data)
    return Tried(inputs, read, faults)


@cache
def watch() -> None:
    """See what this process does, from now on."""
    sys.addaudithook(_watch)


def limit_memory() -> None:
    """Let this process have only so much memory more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _with_atheris(name: str, arguments: list[str]) -> None:
    atheris: Any = import_module("atheris")

    with atheris.instrument_imports(include=["cca"]):
        target = TARGETS[name]
        seeds = target.seeds()
        fault(target, seeds[0], Path(tempfile.mkdtemp()) / "input")
    corpus, folder = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()) / "input"
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    watch()

    def one(data: bytes) -> None:
        said = fault(target, data, folder)
        if said and said != REFUSED:
            raise AssertionError(said)

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, shared by the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="by default all; may be repeated")
    parser.add_argument("--engine", choices=("mutations", "atheris"), default="mutations")
    parser.add_argument("--keep", type=Path, help="folder for inputs that were not read or refused")
    options, more = parser.parse_known_args()
    names = options.target or list(TARGETS)
    if options.engine == "atheris":
        _with_atheris(names[0], [argument for argument in more if argument != "--"])
        return 0
    each = -(-options.inputs // len(names))
    faults = 0
    for name in names:
        TARGETS[name].seeds()  # what that loads does not count
        limit_memory()
        tried = run(TARGETS[name], each, options.seed, options.keep)
        faults += len(tried.faults)
        print(f"{name}: {each:,} inputs, {tried.read:,} read, {len(tried.faults)} faults", flush=True)
        for said in tried.faults[:5]:
            print(f"  {said}", flush=True)
    print(f"{each * len(names):,} inputs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
