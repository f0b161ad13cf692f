"""The run folder on disk: a manifest with a checksum per artifact, and what is finished.

Inside a stage records are appended as JSON lines; a stage counts as finished once the manifest says so, and the
manifest is written last (temporary file, fsync, rename). Killing the process anywhere loses the batch in flight.
"""

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import with_config
from typing_extensions import TypedDict

from cca.errors import InputError
from cca.io import append_records, checksum, from_json, read_records, read_text, replace_file, to_json, write_text
from cca.lock import FolderLock, make_and_lock

R = TypeVar("R")
FORMAT = 3
"""Of the files in a run folder. 1, of version 0.1, had other names for some figures; 2 did not say which answers were
cut at the limit of tokens."""
_OF_A_STAGE = ("seconds", "warnings", "peak_gib", "learning_rate")
"""Entries of the manifest that are kept by stage."""
_MOVES = "model.path"
"""The setting that may be edited in config.toml, since a model may be moved and is known by its checksum."""
Manifest = with_config(extra="allow")(
    TypedDict(
        "Manifest",
        {
            "format": int,
            "stages": dict[str, dict[str, str]],
            "config": str,
            "redo": str,
            "seconds": dict[str, float],
            "peak_gib": dict[str, float],
            "warnings": dict[str, list[str]],
            "learning_rate": dict[str, float],
            "revision": str,
            "lambda": float,
            "checksum": str,
        },
        total=False,
    )
)
"""What must be right of manifest.json. config: the text of config.toml. redo: a stage that is being forgotten.
checksum: of all the rest, in the file alone."""


class RunFolder:
    """One run's folder. `stages` in the manifest maps a finished stage to its artifacts' checksums.

    lock: held by whoever works in it. lost: it has records and no manifest, so nothing says what is finished.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lost: bool = False):
        self.path = path
        self.manifest = manifest
        self.lost = lost
        self.lock: FolderLock | None = None

    @classmethod
    def create(cls, path: Path, config: str) -> Self:
        """Open `path` to work in it, making it the folder of a run of `config` (TOML) where nothing was begun in it.

        It is this process's own until it is closed.

        Raises:
            InputError: the folder cannot be written, another process works in it, or it holds something else.
        """
        if path.is_dir():
            _check_ours(path)
        lock = make_and_lock(path)
        try:
            folder = cls._claimed(path, config)
            folder.lock = lock
            return folder
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _claimed(cls, path: Path, config: str) -> Self:
        for left in path.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if _check_ours(path) <= {"config.toml", "manifest.json"}:
            # new, or a run that bad input stopped before it had anything
            folder = cls(path, {"stages": {}, "format": FORMAT, "config": config})
            if (path / "manifest.json").exists() and cls.open(path).manifest["stages"]:
                raise InputError(f"{path} has lost all files of its finished stages; put them back, or delete it")
            folder.save_manifest()
            write_text(path / "config.toml", config)
            return folder
        folder = cls.open(path)
        if folder.manifest.setdefault("config", folder.config) and not folder.file("config.toml").exists():
            write_text(folder.file("config.toml"), folder.manifest["config"])
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run folder, to look at it.

        Raises:
            InputError: there is no run in it, its manifest cannot be read, or it is of another version of cca.
        """
        file = path / "manifest.json"
        if not file.exists():
            if not (path / "config.toml").exists():
                raise InputError(f"{path} holds no run (it has no config.toml); start one with: cca run --out {path}")
            return cls(path, {"stages": {}, "format": FORMAT}, lost=True)
        try:
            text = read_text(file)
            manifest: dict[str, Any] = dict(from_json(text, Manifest, str(file)))
            if (kept := manifest.pop("checksum", None)) and kept != _checksum(json.loads(text)):
                raise InputError(
                    f"{file} was changed since it was written (if that is right, delete its line checksum)"
                )
            tomllib.loads(manifest.get("config", ""))
            if "stages" not in manifest:
                raise InputError(f"{file} has no stages")
        except (InputError, tomllib.TOMLDecodeError) as error:
            raise InputError(
                f"{error}; put a copy of it back, or delete it: cca run --out {path} then goes on from the traces and "
                "pivots that are there"
            ) from error
        if (found := manifest.get("format", 1)) != FORMAT:
            raise InputError(
                f"{path} is a run of {'an earlier' if found < FORMAT else 'a later'} version of cca (format {found}, "
                f"this is {FORMAT}). Its report.html opens in a browser as before; to go on with it, run its config "
                f"again: cca run {path / 'config.toml'} --out NEW"
            )
        if "config" not in manifest and not (path / "config.toml").exists():
            raise InputError(f"{path} holds no run (it has no config.toml); start one with: cca run --out {path}")
        return cls(path, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work in it."""
        if self.lock:
            self.lock.release()

    @property
    def config(self) -> str:
        """The run's config as TOML, whose file holds every value, defaults included.

        Raises:
            InputError: config.toml was changed by hand, so that what is finished may be of other settings.
        """
        file, kept = self.file("config.toml"), self.manifest.get("config")
        if kept is not None and ("redo" in self.manifest or not file.exists()):
            return kept
        back = "" if kept is None else f"; delete it, and cca run --out {self.path} writes it again as it was"
        try:
            text = read_text(file)
            here = tomllib.loads(text)
        except (InputError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"config {file} is not valid TOML: {error}{back or '; put it back'}") from error
        if kept is not None and (changed := differences(tomllib.loads(kept), here).keys() - {_MOVES}):
            raise InputError(
                f"{file} was changed by hand ({', '.join(sorted(changed))}), so that what is finished is of other "
                f"settings{back}. For other settings: cca STAGE {self.path} --redo --set KEY=VALUE"
            )
        return text

    def file(self, name: str) -> Path:
        return self.path / name

    def rounds(self) -> list[Path]:
        """The folders of further rounds, in their order."""
        numbered = {int(n): path for path in self.path.glob("round-*") if (n := path.name[len("round-") :]).isdecimal()}
        return [numbered[number] for number in sorted(numbered)]

    def final_delta(self) -> Path:
        """What the run comes to: all its rounds together, where there were several."""
        total = self.file("total.safetensors")
        return total if total.exists() else self.file("delta.safetensors")

    # ---- what is finished ----

    def save_manifest(self) -> None:
        signed = {"checksum": _checksum(self.manifest), **self.manifest}
        write_text(self.file("manifest.json"), json.dumps(signed, indent=1) + "\n")

    def note(self, kind: str, stage: str, value: Any) -> None:
        """Keep `value` with a stage: its seconds, peak_gib, warnings, learning_rate or prefixes."""
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
                if state := self._state(name, digest):
                    raise self._damaged(name, state)

    def _damaged(self, name: str, state: str) -> InputError:
        return InputError(
            f"{self.file(name)} was {state} after stage {self._maker(name)} was finished; {self._back(name)}"
        )

    def _state(self, name: str, digest: str) -> str:
        path = self.file(name)
        if not path.is_file():
            return "replaced" if path.exists() else "removed"
        if checksum(path) == digest:
            return ""
        return "changed" if path.stat().st_size else "emptied"

    def _maker(self, name: str) -> str | None:
        """The finished stage that left `name`."""
        return next((stage for stage, files in self.manifest["stages"].items() if name in files), None)

    def _back(self, name: str) -> str:
        """How to go on where a file is damaged."""
        if stage := self._maker(name):
            return f"put it back, or do that stage and what follows again with: cca {stage} {self.path} --redo"
        return "delete that line, or the file, and the same command does it again"

    def finish(self, stage: str, artifacts: Sequence[str]) -> None:
        """Mark a stage as finished, with the checksums of its artifacts."""
        self.manifest["stages"][stage] = {name: checksum(self.file(name)) for name in artifacts}
        self.save_manifest()

    def take(self, stage: str, other: "RunFolder") -> None:
        """Copy a finished stage of another run, with its time and what it warned of.

        Raises:
            InputError: a file of it is missing or changed.
        """
        other.verify([stage])
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

    def forget(self, stages: Iterable[str]) -> None:
        """Take back `finish`, in memory; the files stay."""
        for stage in stages:
            self.manifest["stages"].pop(stage, None)
            for kind in _OF_A_STAGE:
                self.manifest.get(kind, {}).pop(stage, None)

    def delete(self, patterns: Iterable[str]) -> None:
        """Delete the files whose names match."""
        for pattern in patterns:
            for file in self.path.glob(pattern):
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    # ---- records ----

    def write(self, name: str, records: Iterable[Any]) -> None:
        """A file of `records`, whole or not at all."""
        write_text(self.file(name), "".join(to_json(record) + "\n" for record in records))

    def append(self, name: str, records: Iterable[Any]) -> None:
        append_records(self.file(name), records)

    def read(self, name: str, kind: type[R]) -> list[R]:
        """The records of a file, none where it does not exist.

        Raises:
            InputError: a line is no such record, or the file of a finished stage is gone.
        """
        growing = self._maker(name) is None
        return self.artifact(name, lambda path: list(read_records(path, kind, growing)))

    def _check_same(self, name: str) -> None:
        """Refuse a file of a finished stage that is not as the stage left it."""
        stage = self._maker(name)
        if stage is None or not (state := self._state(name, self.manifest["stages"][stage][name])):
            return
        if self.lock is None and (now := self.open(self.path).manifest) != self.manifest:
            self.manifest = now  # whoever works in the folder has done that stage again since
            self._check_same(name)
            return
        raise self._damaged(name, state)

    def recover(self, name: str, kind: type[R]) -> list[R]:
        """The whole records of an interrupted stage; a line that was cut off by a kill is removed from the file."""
        path = self.file(name)
        if path.is_file():
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
        return self.artifact(name, lambda path: from_json(read_text(path), kind, str(path)))

    def artifact(self, name: str, load: Callable[[Path], R]) -> R:
        """What `load` makes of a file.

        Raises:
            InputError: it cannot; the message names the stage to do again.
        """
        if not self.file(name).is_file() or not self.file(name).stat().st_size:
            self._check_same(name)
        try:
            found = load(self.file(name))
        except InputError as error:
            raise InputError(f"{error}; {self._back(name)}") from error
        self._check_same(name)  # after: what cannot be read is told more exactly by who reads it
        return found

    def kept(self, key: str, stage: str) -> Any:
        """What `stage` left in the manifest itself.

        Raises:
            InputError: it is not there.
        """
        if key not in self.manifest:
            raise InputError(
                f"{self.file('manifest.json')} has no {key}, which stage {stage} leaves there; put a copy of it back, "
                f"or do that stage and what follows again with: cca {stage} {self.path} --redo"
            )
        return self.manifest[key]


def _check_ours(path: Path) -> set[str]:
    """The names in a folder, which is empty or a run's; what begins with a dot is nobody's.

    Raises:
        InputError: it is neither.
    """
    names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    known = {"manifest.json"} if "manifest.json" in names else {"config.toml", "problems.jsonl"}
    if names and not known <= names:
        raise InputError(f"{path} is not empty and holds no run; choose another folder with --out")
    return names


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of a manifest, whatever it has as its checksum."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two configs differ in: ``section.key`` -> the value there and here, None where there is none."""
    before, after = flat(old), flat(new)
    keys = (key for key in dict.fromkeys((*after, *before)) if before.get(key) != after.get(key))
    return {key: (before.get(key), after.get(key)) for key in keys}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config by ``section.key``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found
