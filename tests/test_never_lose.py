"""Beside kills: whatever a disk or a hand does to a run, nothing is lost, and nothing is silently another result."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from chaos import SMALLEST, contents
from conftest import as_written, refuse

from cca import cli
from cca.errors import InputError
from cca.folder import RunFolder
from cca.run.run import Run
from cca.run.stages import STAGES


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run, which is not to be changed."""
    folder = tmp_path_factory.mktemp("never-lose")
    (folder / "smallest.toml").write_text(SMALLEST)
    assert cli.main(["run", str(folder / "smallest.toml"), "--out", str(folder / "whole"), "--quiet"]) == 0
    return folder / "whole"


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture(autouse=True)
def one_tokenizer(whole, monkeypatch):
    """All of these runs have one prompter, which takes a while to open."""
    prompter = Run.load(whole).prompter
    monkeypatch.setattr("cca.model.open.open_prompter", lambda *_: prompter)


def failed(arguments: list[str], capsys, *parts: str) -> None:
    """The command says in one line, beside warnings, what the system said."""
    capsys.readouterr()
    assert cli.main([*arguments, "--quiet"]) == 1, arguments
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1, said
    assert all(part in said[0] for part in ("cca: ", "the same command resumes", *parts)), said


def finished(path: Path) -> list[str]:
    """Its finished stages; none where not even its manifest could be written."""
    return list(RunFolder.open(path).manifest["stages"]) if (path / "manifest.json").exists() else []


def config_of(whole: Path) -> str:
    return str(whole.parent / "smallest.toml")


# ---- a full disk ----


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the context the system lets no file become larger, and cuts a write that would."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_each_stage_whose_files_find_no_room_goes_on_when_there_is_some(whole, tmp_path, capsys):
    path = tmp_path / "run"
    for stage in STAGES.values():
        sizes = [(whole / name).stat().st_size for name in stage.written(RunFolder.open(whole))]
        command = [stage.name, str(path), *(["--config", config_of(whole)] if stage.name == "trace" else [])]
        with largest_file(max(sizes) // 2):
            failed(command, capsys, os.strerror(errno.EFBIG))
        assert stage.name not in finished(path)
        assert cli.main([*command, "--quiet"]) == 0
    assert contents(path) == contents(whole)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system at `place`, where this process may have one."""
    place.mkdir(exist_ok=True)
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(["mount", *options, place], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_run_on_a_disk_that_is_full_goes_on_as_far_as_there_is_room_until_it_ends(whole, tmp_path, capsys):
    disk, filler, ended = tmp_path / "disk", tmp_path / "disk" / "filler", list[str]()
    with mounted(disk, "-t", "tmpfs", "-o", "size=16m", "tmpfs"):
        for free in (24, 160, 1500, 15000):
            filler.unlink(missing_ok=True)
            filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - free * 1024))
            code = cli.main(["run", config_of(whole), "--out", str(disk / "run"), "--quiet"])
            said = capsys.readouterr().err
            assert code == 0 or "No space left on device" in said, said
            ended.append(next((stage for stage in STAGES if stage not in finished(disk / "run")), "ended"))
        assert contents(disk / "run") == contents(whole)
    assert ended[-1] == "ended" and len(set(ended)) >= 3, ended


@pytest.mark.parametrize("error", [errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_while_answers_are_written_loses_none_that_were(error, run, whole, monkeypatch, capsys):
    sync, calls, there = os.fsync, 0, run / "scores.jsonl"

    def failing(file: int) -> None:
        nonlocal calls
        calls += there.exists()
        if calls > 2:
            raise OSError(error, os.strerror(error))
        sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        failed(["evaluate", str(run), "--redo"], capsys, os.strerror(error))
    kept = there.read_bytes().splitlines()
    assert cli.main(["run", "--out", str(run), "--quiet"]) == 0
    assert set(kept) <= set(there.read_bytes().splitlines())
    assert contents(run) == contents(whole)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within the context nobody writes in `folder`; root, who heeds no modes, mounts it so."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield


def test_a_folder_that_became_read_only_is_looked_at_and_named_by_what_would_write(run, whole, capsys):
    with read_only(run):
        for command in (["run", "--out", str(run)], ["evaluate", str(run), "--redo"], ["report", str(run)]):
            assert cli.main([*command, "--quiet"]) == 2
            said = capsys.readouterr().err
            assert f"cannot write to {run}: " in said and len(said.splitlines()) == 1
        assert cli.main(["show", "scores", str(run)]) == 0
    assert cli.main(["run", "--out", str(run), "--quiet"]) == 0
    assert contents(run) == contents(whole)


# ---- damage that no reader sees ----

LOOKS = (["scores"], ["pivots", "-n", "2"], ["circuit"], ["problem", "62-0"])


def shown(path: Path, capsys) -> list[tuple[int, str, str]]:
    """What commands make of a finished run: exit code, what they print and what they say is wrong."""
    found = []
    for command in (
        ["run", "--out", str(path), "--quiet", "--json"],
        *(["show", look[0], str(path), *look[1:]] for look in LOOKS),
    ):
        code = cli.main(command)
        said = capsys.readouterr()
        found.append((code, said.out, said.err if code else ""))
    return found


FILES = sorted({name for stage in STAGES.values() for name in stage.artifacts if name not in stage.optional})


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One bit of any byte is another, or a digit becomes its neighbour, which most readers take."""
    digits = [place for place, byte in enumerate(data) if 0x30 <= byte < 0x39]
    place, bit = (
        (draw.choice(digits), 1) if draw.random() < 0.5 else (draw.randrange(len(data)), 1 << draw.randrange(8))
    )
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


@pytest.mark.parametrize("name", ["manifest.json", "config.toml", *FILES])
def test_a_flipped_bit_in_any_file_is_named_with_the_way_out_or_changes_nothing(name, run, whole, capsys):
    file, right = run / name, shown(run, capsys)
    kept, draw, named = file.read_bytes(), random.Random(name), 0
    for _ in range(4):
        file.write_bytes(flipped(kept, draw))
        for (code, out, error), before in zip(shown(run, capsys), right, strict=True):
            assert (code, out) == before[:2] or code == 2, error
            if code:
                named += 1
                assert len(error.splitlines()) == 1
                assert "put" in error or "delete" in error or "is no" in error, error
        file.write_bytes(kept)
    assert named
    assert contents(run) == contents(whole)


@pytest.mark.parametrize(("name", "figure"), [("summary.json", '"updated": 0.5'), ("manifest.json", '"seed": ')])
def test_a_figure_that_became_another_is_not_shown(name, figure, run, capsys):
    text = (run / name).read_text()
    assert figure in text
    (run / name).write_text(text.replace(figure, figure + "1"))
    refuse(["show", "scores", str(run)], capsys, name, "changed", "put ", "cca ")


def test_a_manifest_that_was_changed_knowingly_is_read_once_its_checksum_is_deleted(run):
    (run / "manifest.json").write_text((run / "manifest.json").read_text().replace('"torch": "', '"torch": "of '))
    with pytest.raises(InputError, match="delete its line checksum"):
        RunFolder.open(run)
    lines = (run / "manifest.json").read_text().splitlines(keepends=True)
    (run / "manifest.json").write_text("".join(line for line in lines if "checksum" not in line))
    assert RunFolder.open(run).manifest["versions"]["torch"].startswith("of ")


def test_a_stage_is_not_taken_over_from_a_run_with_a_damaged_file(run, tmp_path):
    file = run / "traces.jsonl"
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    other = RunFolder.create(tmp_path / "other", "")
    with other, pytest.raises(InputError, match=r"traces\.jsonl was changed after stage trace"):
        other.take("trace", RunFolder.open(run))
    assert not other.finished("trace")


# ---- what a kill or an update leaves ----


def test_what_a_stage_needed_to_resume_goes_even_where_a_kill_came_between(run, whole):
    for left in ("circuit-0.1.safetensors", "circuit.partial.safetensors", "update.partial.safetensors", "base.jsonl"):
        (run / left).write_bytes(b"left")
    assert cli.main(["report", str(run), "--quiet"]) == 0, "whatever stage comes next"
    assert contents(run) == contents(whole)


def changed(run: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))
    as_written(run)


def test_a_run_that_goes_on_with_other_packages_says_so_and_keeps_that(run, capsys):
    changed(run, lambda manifest: manifest["versions"].update(torch="1.9", transformers="4.0"))
    capsys.readouterr()
    assert cli.main(["run", "--out", str(run), "--quiet"]) == 0
    assert "was begun with" not in capsys.readouterr().err, "nothing is left to do"
    assert cli.main(["pivots", str(run), "--redo", "--quiet"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "was begun with" in line]
    assert f"begun with torch 1.9, transformers 4.0 and goes on with torch {version('torch')}, transformers 5" in said
    assert f"cca trace {run} --redo" in said
    assert f"warning: {RunFolder.open(run).noted('warnings', 'pivots')[0]}" == said
    assert cli.main(["circuit", str(run), "--quiet"]) == 0
    assert "was begun with" not in capsys.readouterr().err, "it was said"
