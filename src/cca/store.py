"""The run folder: atomic writes, a manifest with a checksum per artifact, and what is finished.

Inside a stage records are appended as JSON lines; a stage counts as finished once the manifest says so, and the
manifest is written last (temporary file, fsync, rename). Killing the process anywhere loses the batch in flight.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cca.config import Config, dump_toml
from cca.errors import InputError
from cca.memory import peak_gib, reset_peak
from cca.records import Record, read_lines, write_lines

R = TypeVar("R", bound=Record)

SCRATCH: dict[str, tuple[str, ...]] = {
    "circuit": ("circuit.partial.safetensors", "circuit-*.safetensors"),
    "update": ("update.partial.safetensors",),
}
"""Patterns of the files that a stage needs to resume, and nothing after it."""


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


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunFolder:
    """One run's folder. `stages` in the manifest maps a finished stage to its artifacts' checksums and seconds."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path, config: Config) -> "RunFolder":
        """Open `path` for the run of `config`, making the folder where it is new.

        Raises:
            InputError: the folder cannot be written, or it holds the run of another config.
        """
        text = dump_toml(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".write-test-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another folder with --out") from error
        existing = path / "config.toml"
        if existing.exists() and not (path / "problems.jsonl").exists():
            existing.unlink()  # a run that bad input stopped before it had anything
            (path / "manifest.json").unlink(missing_ok=True)
        if existing.exists() and existing.read_text(encoding="utf-8") != text:
            differing = _first_difference(existing.read_text(encoding="utf-8"), text)
            raise InputError(
                f"{path} holds a run with another config ({differing}); choose another folder with --out, "
                "or delete that one"
            )
        if not existing.exists():
            if any(p.name not in {".gitkeep"} for p in path.iterdir()):
                raise InputError(f"{path} is not empty and holds no run; choose another folder with --out")
            write_text(existing, text)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            InputError: there is no run in it.
        """
        if not (path / "config.toml").exists():
            raise InputError(f"{path} holds no run (it has no config.toml); start one with: cca run --out {path}")
        manifest_path = path / "manifest.json"
        manifest = json.loads(manifest_path.read_text(encoding="utf-8")) if manifest_path.exists() else {"stages": {}}
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        return self.path / name

    def final_delta(self) -> Path:
        """What the run comes to: all its rounds together, where there were several."""
        total = self.file("total.safetensors")
        return total if total.exists() else self.file("delta.safetensors")

    def save_manifest(self) -> None:
        write_text(self.file("manifest.json"), json.dumps(self.manifest, indent=1, sort_keys=True) + "\n")

    def finished(self, stage: str) -> bool:
        return stage in self.manifest["stages"]

    def seconds(self, stage: str) -> float:
        """Time spent in a stage so far, in all sessions."""
        return self.manifest.get("seconds", {}).get(stage, 0.0)

    def verify(self, stages: Sequence[str]) -> None:
        """Check that the artifacts of finished stages are as they were written.

        Raises:
            InputError: one is missing or changed.
        """
        for stage in stages:
            for name, digest in self.manifest["stages"].get(stage, {}).items():
                path = self.file(name)
                if not path.exists() or checksum(path) != digest:
                    state = "changed" if path.exists() else "removed"
                    raise InputError(
                        f"{path} was {state} after stage {stage} was finished; put it back, or do that stage "
                        f"and what follows again with: cca {stage} {self.path} --redo"
                    )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the stage's seconds and keep its peak memory, also when it is interrupted."""
        began = time.monotonic()
        reset_peak()
        try:
            yield
        finally:
            spent, peaks = self.manifest.setdefault("seconds", {}), self.manifest.setdefault("peak_gib", {})
            spent[stage] = round(spent.get(stage, 0.0) + time.monotonic() - began, 2)
            peaks[stage] = round(max(peaks.get(stage, 0.0), peak_gib()), 3)
            self.save_manifest()

    def finish(self, stage: str, artifacts: Sequence[str]) -> None:
        """Mark a stage as finished, with the checksums of its artifacts, and delete its scratch files."""
        self.manifest["stages"][stage] = {name: checksum(self.file(name)) for name in artifacts}
        self.save_manifest()
        self._clean(stage)

    def take(self, stage: str, other: "RunFolder", artifacts: Sequence[str]) -> None:
        """Copy a finished stage of another run, with its time and what it warned of."""
        for name in artifacts:
            shutil.copy(other.file(name), self.file(name))
        for kept in ("seconds", "warnings", "peak_gib"):
            if stage in other.manifest.get(kept, {}):
                self.manifest.setdefault(kept, {})[stage] = other.manifest[kept][stage]
        for kept in ("problems", "lambda"):
            if kept in other.manifest:
                self.manifest[kept] = other.manifest[kept]
        self.finish(stage, artifacts)

    def reset(self, stages: Sequence[str], artifacts: Sequence[str]) -> None:
        """Forget `stages` and delete `artifacts` and scratch files."""
        for stage in stages:
            self.manifest["stages"].pop(stage, None)
            for kept in ("seconds", "warnings", "peak_gib"):
                self.manifest.get(kept, {}).pop(stage, None)
        self.save_manifest()
        for name in artifacts:
            self.file(name).unlink(missing_ok=True)
        for stage in stages:
            self._clean(stage)

    def _clean(self, stage: str) -> None:
        for pattern in SCRATCH.get(stage, ()):
            for file in self.path.glob(pattern):
                file.unlink()

    def write(self, name: str, records: Iterable[Record]) -> None:
        """A file of `records`, whole or not at all."""
        write_text(self.file(name), "".join(record.line() + "\n" for record in records))

    def append(self, name: str, records: Sequence[Record]) -> None:
        write_lines(self.file(name), records)

    def read(self, name: str, kind: type[R]) -> list[R]:
        return list(read_lines(self.file(name), kind))

    def recover(self, name: str, kind: type[R]) -> list[R]:
        """The whole records of an interrupted stage; a line that was cut off by a kill is removed from the file."""
        path = self.file(name)
        if not path.exists():
            return []
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            replace_file(path, lambda temporary: temporary.write_bytes(whole))
        return self.read(name, kind)


def _first_difference(old: str, new: str) -> str:
    for a, b in zip(old.splitlines(), new.splitlines(), strict=False):
        if a != b:
            return f"there {a!r}, here {b!r}"
    return "one has more keys"
