"""The run folder on disk: a manifest with a checksum per artifact, and what is finished.

Inside a stage records are appended as JSON lines; a stage counts as finished once the manifest says so, and the
manifest is written last (temporary file, fsync, rename). Killing the process anywhere loses the batch in flight.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cca.errors import InputError
from cca.io import append_records, checksum, from_json, read_records, replace_file, to_json, write_text

R = TypeVar("R")
FORMAT = 3
"""Of the files in a run folder. 1, of version 0.1, had other names for some figures; 2 did not say which answers were
cut at the limit of tokens."""
_OF_A_STAGE = ("seconds", "warnings", "peak_gib")
"""Entries of the manifest that are kept by stage."""


class RunFolder:
    """One run's folder. `stages` in the manifest maps a finished stage to its artifacts' checksums."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path, config: str) -> "RunFolder":
        """Open `path` for the run of `config` (its TOML), making the folder where it is new.

        Raises:
            InputError: the folder cannot be written, or it holds the run of another config.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            trial = path / f".write-test-{os.getpid()}"
            trial.write_text("")
            trial.unlink()
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another folder with --out") from error
        existing = path / "config.toml"
        if existing.exists() and not (path / "problems.jsonl").exists():
            existing.unlink()  # a run that bad input stopped before it had anything
            (path / "manifest.json").unlink(missing_ok=True)
        if existing.exists():
            folder = cls.open(path)
            if differing := _first_difference(existing.read_text(encoding="utf-8"), config):
                raise InputError(
                    f"{path} holds a run with another config ({differing}); choose another folder with --out, "
                    "or delete that one"
                )
            return folder
        if any(p.name not in {".gitkeep"} for p in path.iterdir()):
            raise InputError(f"{path} is not empty and holds no run; choose another folder with --out")
        write_text(existing, config)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            InputError: there is no run in it, or one of another version of cca.
        """
        if not (path / "config.toml").exists():
            raise InputError(f"{path} holds no run (it has no config.toml); start one with: cca run --out {path}")
        manifest_path = path / "manifest.json"
        if not manifest_path.exists():
            return cls(path, {"stages": {}, "format": FORMAT})
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if (found := manifest.get("format", 1)) != FORMAT:
            raise InputError(
                f"{path} is a run of {'an earlier' if found < FORMAT else 'a later'} version of cca (format {found}, "
                f"this is {FORMAT}). Its report.html opens in a browser as before; to go on with it, run its config "
                f"again: cca run {path / 'config.toml'} --out NEW"
            )
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        return self.path / name

    def final_delta(self) -> Path:
        """What the run comes to: all its rounds together, where there were several."""
        total = self.file("total.safetensors")
        return total if total.exists() else self.file("delta.safetensors")

    # ---- what is finished ----

    def save_manifest(self) -> None:
        write_text(self.file("manifest.json"), json.dumps(self.manifest, indent=1) + "\n")

    def note(self, kind: str, stage: str, value: Any) -> None:
        """Keep `value` with a stage: its seconds, peak_gib or warnings."""
        self.manifest.setdefault(kind, {})[stage] = value

    def noted(self, kind: str, stage: str, otherwise: Any = None) -> Any:
        return self.manifest.get(kind, {}).get(stage, otherwise)

    def finished(self, stage: str) -> bool:
        return stage in self.manifest["stages"]

    def verify(self, stages: Iterable[str] | None = None) -> None:
        """Check that the artifacts of finished stages, or of those of `stages`, are as they were written.

        Raises:
            InputError: one is missing or changed.
        """
        finished = self.manifest["stages"]
        for stage in finished if stages is None else [s for s in stages if s in finished]:
            for name, digest in finished[stage].items():
                path = self.file(name)
                if not path.exists() or checksum(path) != digest:
                    state = "changed" if path.exists() else "removed"
                    raise InputError(
                        f"{path} was {state} after stage {stage} was finished; put it back, or do that stage "
                        f"and what follows again with: cca {stage} {self.path} --redo"
                    )

    def finish(self, stage: str, artifacts: Sequence[str]) -> None:
        """Mark a stage as finished, with the checksums of its artifacts."""
        self.manifest["stages"][stage] = {name: checksum(self.file(name)) for name in artifacts}
        self.save_manifest()

    def take(self, stage: str, other: "RunFolder") -> None:
        """Copy a finished stage of another run, with its time and what it warned of."""
        artifacts = other.manifest["stages"][stage]
        for name in artifacts:
            shutil.copy(other.file(name), self.file(name))
        for kind in _OF_A_STAGE:
            if (value := other.noted(kind, stage)) is not None:
                self.note(kind, stage, value)
        for kept in ("problems", "lambda"):
            if kept in other.manifest:
                self.manifest[kept] = other.manifest[kept]
        self.finish(stage, list(artifacts))

    def forget(self, stage: str) -> None:
        """Take back `finish`; the files stay."""
        self.manifest["stages"].pop(stage, None)
        for kind in _OF_A_STAGE:
            self.manifest.get(kind, {}).pop(stage, None)
        self.save_manifest()

    def delete(self, patterns: Iterable[str]) -> None:
        """Delete the files whose names match."""
        for pattern in patterns:
            for file in self.path.glob(pattern):
                file.unlink()

    # ---- records ----

    def write(self, name: str, records: Iterable[Any]) -> None:
        """A file of `records`, whole or not at all."""
        write_text(self.file(name), "".join(to_json(record) + "\n" for record in records))

    def append(self, name: str, records: Iterable[Any]) -> None:
        append_records(self.file(name), records)

    def read(self, name: str, kind: type[R]) -> list[R]:
        """The records of a file, none where it does not exist.

        Raises:
            InputError: a line is no such record.
        """
        return list(read_records(self.file(name), kind))

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

    def write_one(self, name: str, record: Any) -> None:
        """A file of one record, indented."""
        write_text(self.file(name), to_json(record, indent=1) + "\n")

    def read_one(self, name: str, kind: type[R]) -> R:
        """What `write_one` wrote.

        Raises:
            InputError: it is no such record.
        """
        path = self.file(name)
        return from_json(path.read_text(encoding="utf-8"), kind, str(path))


def _first_difference(old: str, new: str) -> str | None:
    """Where two TOML texts differ in what they say."""
    import tomllib

    def flat(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tomllib.loads(text).items():
            found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        return found

    here, there = flat(new), flat(old)
    for key in (*here, *there):
        if here.get(key) != there.get(key):
            return f"there {key} = {there.get(key)!r}, here {here.get(key)!r}"
    return None
