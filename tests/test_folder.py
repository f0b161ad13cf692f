"""A run folder has one owner, reads back what it holds or says what is wrong with it, and survives a kill anywhere."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cca import cli, lock
from cca.errors import InputError
from cca.folder import RunFolder
from cca.io import to_json
from cca.lock import FolderLock
from cca.run.config import dump_toml, load_config
from cca.run.run import Run
from cca.run.stages import STAGES

SOURCE = Path(__file__).parent.parent / "src"
CONFIG = load_config(None)


# ---- one owner ----

WORKER = """
import sys
from pathlib import Path
from cca.errors import InputError
from cca.folder import RunFolder
print("ready", flush=True)
sys.stdin.readline()
try:
    folder = RunFolder.create(Path(sys.argv[1]), sys.argv[2])
    {then}
    print("works\\n", end="", flush=True)
    sys.stdin.readline()
except InputError as error:
    print(error, flush=True)
"""


@contextmanager
def workers(count: int, path: Path, then: str = ""):
    """Processes that are about to begin to work in `path`, each once it is told."""
    command = [sys.executable, "-c", WORKER.format(then=then), str(path), dump_toml(CONFIG)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipe = subprocess.PIPE
    found = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=env) for _ in range(count)]
    try:
        for process in found:
            assert said(process) == "ready"
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_processes_that_begin_at_once_one_works_and_the_others_name_it_until_it_is_killed(tmp_path):
    path = tmp_path / "run"
    with workers(4, path) as processes:
        for process in processes:
            tell(process)
        answers = {process.pid: said(process) for process in processes}
        (winner,) = [process for process in processes if answers[process.pid] == "works"]
        refused = [answer for answer in answers.values() if answer != "works"]
        assert all(f"process {winner.pid} on {socket.gethostname()}" in a or "just begun" in a for a in refused)
        with pytest.raises(InputError, match=rf"process {winner.pid} on .* since 2.*\(-c .*wait for it to end"):
            RunFolder.create(path, dump_toml(CONFIG))
        winner.send_signal(signal.SIGKILL)
        winner.wait()
        assert (path / ".owner.json").exists(), "whoever is killed leaves its name"
        RunFolder.create(path, dump_toml(CONFIG)).close()
    assert {file.name for file in path.iterdir()} == {"config.toml", "manifest.json"}


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_folder(tmp_path):
    fork = "import os\n    if os.fork() == 0: os.write(1, b'%d\\n' % os.getpid()), sys.stdin.readline(), os._exit(0)"
    with workers(1, tmp_path / "run", then=fork) as (parent,):
        tell(parent)
        child = {said(parent), said(parent)} - {"works"}
        assert len(child) == 1
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(int(child.pop()), 0)
        RunFolder.create(tmp_path / "run", dump_toml(CONFIG)).close()


def test_one_process_opens_a_folder_once_until_it_lets_go_of_it(tmp_path):
    first = Run.start(tmp_path / "run", CONFIG)
    with pytest.raises(InputError, match=r"this process works in .*run already.*close that run first: run\.close\(\)"):
        Run.start(tmp_path / "run", CONFIG)
    assert Run.load(tmp_path / "run").config == CONFIG, "to look is always allowed"
    first.close()
    with Run.resume(tmp_path / "run"), pytest.raises(InputError, match="this process"):
        RunFolder.create(tmp_path / "run", dump_toml(CONFIG))
    lost = Run.start(tmp_path / "run", CONFIG)
    del lost
    Run.start(tmp_path / "run", CONFIG)


def test_a_folder_made_anew_is_not_given_away_by_who_had_the_old_one(tmp_path):
    old = RunFolder.create(tmp_path / "run", dump_toml(CONFIG))
    shutil.rmtree(tmp_path / "run")
    with RunFolder.create(tmp_path / "run", dump_toml(CONFIG)):
        old.close()
        with pytest.raises(InputError, match="this process"):
            RunFolder.create(tmp_path / "run", dump_toml(CONFIG))


def test_every_command_that_works_is_refused_and_every_one_that_looks_is_not(mended, tmp_path, capsys):
    path = copied(mended, tmp_path / "out" / "0" / "branching")
    config = str(mended.parent / "mended.toml")
    compare = ["compare", config, "--methods", "branching", "--seeds", "0", "--set", "seed=1", "--out"]
    with workers(1, path) as (worker,):
        tell(worker)
        assert said(worker) == "works"
        before = listing(path)
        for command in (
            ["run", config, "--out", str(path)],
            *([stage, str(path)] for stage in STAGES),
            ["circuit", str(path), "--redo", "--set", "circuit.lambda=0.2"],
        ):
            assert cli.main([*command, "--quiet"]) == 2, command
            assert f"process {worker.pid} on" in capsys.readouterr().err
        for command in (["show", "scores", str(path)], ["grade", str(path), "--grader", "exact"]):
            assert cli.main(command) == 0, command
        assert Run.load(path).summary.seed == 1
        assert listing(path) == before
    capsys.readouterr()
    with lock.make_and_lock(tmp_path / "out"):
        assert cli.main([*compare, str(tmp_path / "out")]) == 2
    assert "this process works in" in capsys.readouterr().err


def test_an_interrupted_command_lets_go_of_its_folder(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "execute", interrupted)
    for _ in range(2):
        assert cli.main(["run", "--out", str(tmp_path / "run"), "--quiet"]) == 130
        assert not list((tmp_path / "run").glob(".*"))


def test_a_command_that_is_asked_to_end_says_how_it_goes_on_and_keeps_the_time_it_took(tmp_path):
    command = [sys.executable, "-m", "cca.cli", "trace", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("trace: "):  # it works
                break
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert said.endswith(f"Resume with the same command: cca trace {tmp_path / 'run'}\n")
    assert "Traceback" not in said
    folder = RunFolder.open(tmp_path / "run")
    assert folder.noted("seconds", "trace") > 0
    assert not folder.finished("trace")
    assert not list(folder.path.glob(".*"))


def test_a_script_that_never_closes_its_run_ends_without_a_word_and_leaves_no_lock(tmp_path):
    code = "import sys; from cca.lock import FolderLock; from pathlib import Path; "
    code += f"sys.held = FolderLock(Path({str(tmp_path)!r})); "  # which lives longer than modules do
    code += f"print(sorted(p.name for p in Path({str(tmp_path)!r}).iterdir()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("['.lock', '.owner.json']\n", "")
    assert not list(tmp_path.iterdir())


def test_where_the_file_system_has_no_locks_the_owner_s_name_is_what_counts(tmp_path, monkeypatch, capsys):
    def unsupported(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_descriptor", unsupported)
    held = FolderLock(tmp_path)
    assert "cannot be locked (No locks available): let nobody else work in it" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"this process .*if that is not so, delete .*owner\.json"):
        FolderLock(tmp_path)
    held.release()
    (tmp_path / ".owner.json").write_text(to_json(lock.Owner(99999999, socket.gethostname(), "cca run", "yesterday")))
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("left", [".config.toml.tmp", ".lock", ".owner.json", ".gitkeep", ".manifest.json.tmp"])
def test_what_a_kill_leaves_in_a_new_folder_is_no_content(tmp_path, left):
    (tmp_path / left).write_text("{")
    RunFolder.create(tmp_path, dump_toml(CONFIG)).close()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["config.toml", "problems.jsonl", "manifest.json", "notes.txt"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name, capsys):
    (tmp_path / name).write_text('{"name": "mine"}')
    assert cli.main(["run", "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: '{"name": "mine"}'}


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def listing(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
