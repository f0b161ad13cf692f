"""Whatever a run wrote it reads again, or says which file is damaged and what to do: exit code 2 and one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import as_written, random_pivots
from safetensors.torch import load_file, save_file

import cca.run.stages.circuit as circuit_stage
from cca import cli
from cca.errors import InputError
from cca.folder import RunFolder
from cca.io import append_records, read_records, replace_file, save_tensors, write_text
from cca.model.delta import Delta
from cca.records import Trial
from cca.run.config import dump_toml, load_config
from cca.run.run import Run
from cca.run.stages import STAGES


def _bad_line(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[: len(lines) // 2], b'{"problem": \xff\n', *lines[len(lines) // 2 :]])


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 4,
    "null": lambda _: b"null\n",
    "list": lambda _: b"[]\n",
    "object": lambda _: b"{}\n",
    "number": lambda _: b'{"gates": 1, "stages": 1, "problem": 2, "format": "two"}\n',
    "bad line": _bad_line,
    "removed": lambda _: None,
}
ALIKE = ("garbage", "null", "list", "object", "number")
"""Damages that are one to a checksum."""
READ: dict[str, tuple[str, ...]] = {
    "manifest.json": ("scores", "pivots", "circuit", "problem", "grade", "merge", "run", "evaluate", "load"),
    "config.toml": ("pivots", "grade", "merge", "run", "evaluate", "load"),
    "problems.jsonl": ("pivots", "problem", "grade", "merge", "load"),
    "traces.jsonl": ("problem", "grade", "merge", "load"),
    "pivots.jsonl": ("pivots", "merge", "load"),
    "without_pivot.jsonl": ("run",),
    "circuit.safetensors": ("circuit", "merge", "load"),
    "sweep.jsonl": ("merge", "load"),
    "delta.safetensors": ("merge", "run"),
    "metrics.jsonl": ("merge", "load"),
    "rounds.jsonl": ("run",),
    "scores.jsonl": ("problem", "load"),
    "choices.jsonl": ("pivots", "load"),
    "summary.json": ("scores", "load"),
    "report.html": ("run",),
}
"""What reads each file. Commands that work compare checksums before all else, so one of them stands for all."""


def commands(run: Path) -> dict[str, list[str]]:
    return {
        "scores": ["show", "scores", str(run)],
        "pivots": ["show", "pivots", str(run), "-n", "2"],
        "circuit": ["show", "circuit", str(run), str(run)],
        "problem": ["show", "problem", str(run), "12-0"],
        "grade": ["grade", str(run), "--grader", "exact"],
        "merge": ["merge", str(run), str(run / "merged")],
        "run": ["run", "--out", str(run), "--quiet"],
        "evaluate": ["evaluate", str(run), "--quiet"],
    }


LOOKS: tuple[Callable[[Run], object], ...] = (
    lambda run: run.summary,
    lambda run: run.frames.problems,
    lambda run: run.frames.traces,
    lambda run: run.frames.pivots,
    lambda run: run.frames.components,
    lambda run: run.frames.steps,
    lambda run: run.frames.scores,
    lambda run: run.frames.effects,
    lambda run: run.figures.forest(),
    lambda run: run.figures.validation_curve(),
    lambda run: run.figures.gates_over_training(),
    lambda run: run.figures.density_sweep(),
    lambda run: run.figures.neurons_by_layer(),
)


@pytest.fixture
def run(mended, tmp_path) -> Path:
    path = tmp_path / "whole"
    shutil.copytree(mended, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer(mended):
    """All of these runs have one prompter, which takes a while to open."""
    prompter = Run.load(mended).prompter
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cca.model.open.open_prompter", lambda *_: prompter)
        yield


def looked(path: Path) -> str:
    """What is said of a folder that is looked at in Python."""
    said = []
    try:
        opened = Run.load(path)
    except InputError as error:
        return str(error)
    for look in LOOKS:
        try:
            look(opened)
        except InputError as error:
            said.append(str(error))
    return "\n".join(said)


@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_of_a_finished_run_is_named_by_everything_that_reads_it(name, run, capsys):
    file, kept = run / name, (run / name).read_bytes()
    readable = {("manifest.json", "removed"), ("config.toml", "removed")}
    for damage, change in {**DAMAGES, "folder": None}.items():
        after = None if change is None else change(kept)
        file.unlink()
        if after is not None:
            file.write_bytes(after)
        elif change is None:
            file.mkdir()
        for reader in READ[name]:
            works = reader in ("merge", "run", "evaluate")
            if works and (
                (name, damage) in readable or (name not in ("manifest.json", "config.toml") and damage in ALIKE)
            ):
                continue
            capsys.readouterr()
            code = 0 if reader == "load" else cli.main(commands(run)[reader])
            said = looked(run) if reader == "load" else capsys.readouterr().err
            where = f"{damage} {name}, {reader}: {said}"
            if (name, damage) in readable:
                assert code == 0, where
                continue
            assert code == (0 if reader == "load" else 2), where
            assert name in said or "no run" in said, where
            assert "Traceback" not in said, where
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(kept)
        assert not (run / "merged").exists()


def rewritten(path: Path, change: Callable[[dict], dict | None]) -> None:
    records = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None))


@pytest.mark.parametrize(("name", "change", "reader"), [
    ("scores.jsonl", lambda r: None if r["model"] == "updated" else r, "load"),
    ("scores.jsonl", lambda r: None if r["model"] == "base" else r, "load"),
    ("problems.jsonl", lambda r: None if r["split"] == "train" else r, "pivots"),
    ("problems.jsonl", lambda r: None if r["split"] == "train" else r, "grade"),
    ("pivots.jsonl", lambda r: r | {"problem": "nowhere"}, "pivots"),
    ("traces.jsonl", lambda r: r | {"problem": "nowhere"}, "grade"),
    ("pivots.jsonl", lambda r: r | {"desired": 5, "undesired": 5}, "pivots"),
    ("metrics.jsonl", lambda r: r | {"step": None}, "load"),
])  # fmt: skip
def test_records_that_do_not_go_together_are_named(name, change, reader, run, capsys):
    kept = (run / name).read_bytes()
    rewritten(run / name, change)
    as_written(run)
    said = looked(run) if reader == "load" else ""
    if reader != "load":
        assert cli.main(commands(run)[reader]) == 2
        said = capsys.readouterr().err
    (run / name).write_bytes(kept)
    assert name in said
    assert "cca " in said or "put" in said


def test_manifest_entries_that_figures_need_are_asked_for_by_name(run):
    kept = (run / "manifest.json").read_text()
    manifest = json.loads(kept)
    del manifest["lambda"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    as_written(run)
    with pytest.raises(InputError, match=r"manifest\.json has no lambda, .*cca circuit .* --redo"):
        Run.load(run).figures.density_sweep()
    (run / "manifest.json").write_text(kept)


def test_a_bad_line_of_an_unfinished_stage_is_named_with_its_number_and_the_way_out(run, tmp_path, capsys):
    for stage, name in (("trace", "traces.jsonl"), ("pivots", "pivots.jsonl"), ("evaluate", "scores.jsonl")):
        path = tmp_path / stage
        shutil.copytree(run, path)
        manifest = json.loads((path / "manifest.json").read_text())
        order = list(STAGES)
        manifest["stages"] = {s: manifest["stages"][s] for s in order[: order.index(stage)]}
        (path / "manifest.json").write_text(json.dumps(manifest))
        as_written(path)
        lines = (path / name).read_bytes().splitlines(keepends=True)
        (path / name).write_bytes(b"".join([lines[0], b"{\xff\n", *lines[1:]]))
        assert cli.main([stage, str(path), "--quiet"]) == 2, stage
        error = capsys.readouterr().err
        assert f"{path / name}, line 2," in error
        assert "delete that line" in error
        assert (path / name).read_bytes().splitlines(keepends=True)[2:] == lines[1:], "what is whole is kept"


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    with RunFolder.create(tmp_path, dump_toml(load_config(None))) as folder:
        folder.append("sweep.jsonl", [Trial(0.1, 0.2)])
        with folder.file("sweep.jsonl").open("ab") as file:
            file.write(b'{"lambda":0.2,"dens')
        assert RunFolder.open(tmp_path).read("sweep.jsonl", Trial) == [Trial(0.1, 0.2)]
        assert folder.file("sweep.jsonl").read_bytes().endswith(b"dens"), "whoever looks changes nothing"


# ---- states of stages 2 and 3 ----


def stages_begun(folder: Path, loaded) -> Run:
    """A run whose stage 2 has a state after its first epoch."""
    config = load_config(None, ("circuit.epochs=3", "circuit.patience=9.0", "circuit.learning_rate=0.3"))
    run = Run(RunFolder.create(folder, dump_toml(config)), config)
    run.use(loaded)
    write_text(run.folder.file("problems.jsonl"), "")
    run.folder.write("pivots.jsonl", random_pivots(6, 2000))
    return run


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "removed", "folder", "other shape", "lacks a tensor"])
def test_a_damaged_state_of_stage_2_is_named_and_without_it_the_stage_ends_as_ever(damage, tmp_path, bundled):
    run = stages_begun(tmp_path / "run", bundled)
    circuit_stage.work(run)
    gates = load_file(run.folder.file("circuit.safetensors"))["gates"]
    run.folder.delete(STAGES["circuit"].artifacts + STAGES["circuit"].scratch)
    state = run.folder.file(circuit_stage.PARTIAL)
    tensors = {
        name: torch.ones(1) for name in ("gates", "step", "mean", "square", "losses", "unchanged", "changed_once")
    }
    save_file(tensors | {"history": torch.ones(1, 1)}, state)
    if damage == "lacks a tensor":
        save_file({"gates": gates}, state)
    elif damage == "folder":
        state.unlink()
        state.mkdir()
    elif damage != "other shape":
        after = DAMAGES[damage](state.read_bytes())
        state.unlink() if after is None else state.write_bytes(after)
    if damage != "removed":
        with pytest.raises(InputError, match=r"circuit\.partial\.safetensors .*delete circuit\.partial\.safetensors"):
            circuit_stage.work(run)
        run.folder.delete([state.name])
    circuit_stage.work(run)
    assert load_file(run.folder.file("circuit.safetensors"))["gates"].equal(gates)


def test_a_state_of_one_lambda_is_never_gone_on_from_with_the_next(tmp_path, bundled, monkeypatch):
    """A kill between the end of a lambda and the note of it must not make its gates those of the next."""
    run = stages_begun(tmp_path / "run", bundled)
    append = RunFolder.append
    monkeypatch.setattr(RunFolder, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        circuit_stage.work(run)
    monkeypatch.setattr(RunFolder, "append", append)
    assert not run.folder.file(circuit_stage.PARTIAL).exists()
    learned = list(run.folder.path.glob("circuit-*.safetensors"))
    monkeypatch.setattr(circuit_stage, "_learn", lambda *_: pytest.fail("it is learned already"))
    circuit_stage.work(run)
    assert list(run.folder.path.glob("circuit-*.safetensors")) == learned


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "other shape", "no steps"])
def test_a_damaged_state_of_stage_3_is_named(damage, tmp_path, tiny):
    from cca.method.options import UpdateOptions
    from cca.method.update import Validation, train

    state = tmp_path / "update.partial.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"

    def go():
        delta = Delta.zeros(tiny, {name: torch.tensor([1, 2])})
        options = UpdateOptions(steps=1, validate_every=1)
        pivots = random_pivots(2, 50)
        return train(tiny, delta, pivots, [], lambda _: Validation(0.5, 1), options, state_path=state)

    go()
    if damage == "other shape":
        shape = {"step": "0", "metrics": "[]"}
        save_file({f"{kept}.{name}": torch.zeros(1, 1) for kept in ("now", "best")}, state, metadata=shape)
    elif damage == "no steps":
        save_file({f"{kept}.{name}": torch.zeros(2, 64) for kept in ("now", "best")}, state)
    else:
        after = DAMAGES[damage](state.read_bytes())
        assert after is not None
        state.write_bytes(after)
    with pytest.raises(InputError, match=r"update\.partial\.safetensors .*delete update\.partial\.safetensors"):
        go()


# ---- a full disk, a power cut, another system ----


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_on_a_full_disk_the_old_file_stays_and_no_half_one_is_left(tmp_path, monkeypatch, fails):
    file = tmp_path / "a.json"
    write_text(file, "old")
    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", full)
        write = lambda temporary: temporary.write_text("ne")
    else:
        write = lambda temporary: (temporary.write_text("ne"), full())
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, write)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match=r"missing.*a\.safetensors"):
        save_tensors(tmp_path / "missing" / "a.safetensors", {"a": torch.ones(2)})


def test_a_stage_that_the_disk_has_no_room_for_ends_with_one_line_and_is_not_finished(
    run, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    with monkeypatch.context() as patched:
        patched.setattr("cca.run.stages.report.write_report", full)
        assert cli.main(["report", str(path), "--redo", "--quiet"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not RunFolder.open(path).finished("report") and not list(path.glob(".*"))
    assert cli.main(["report", str(path), "--quiet"]) == 0


def test_records_are_the_same_bytes_on_every_system_and_any_text_is_read_back(tmp_path):
    text = "a\r\nb\rc\x85d\u2028e\u0000\U0001f600"
    file = tmp_path / "r.jsonl"
    append_records(file, [text, "two"])
    assert file.read_bytes().count(b"\n") == 2 and b"\r" not in file.read_bytes()
    assert list(read_records(file, str)) == [text, "two"]
    write_text(file, "a\nb\r\n")
    assert file.read_bytes() == b"a\nb\r\n"


def test_a_console_that_cannot_show_all_text_gets_it_escaped():
    code = "import sys; from cca import cli; cli.main = lambda: print('\\U0001f600 \\u00e9') or 0; cli.command()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert found.stdout == "\\U0001f600 \\xe9\n", found.stderr


@pytest.mark.parametrize(
    ("own", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")], ids=str
)
def test_threads_of_the_command_do_not_spin_for_long_unless_they_are_told_to_wait_otherwise(own, spins):
    code = "import sys, os; from cca import cli; assert 'torch' not in sys.modules; "
    code += "cli.main = lambda: print(os.environ.get('GOMP_SPINCOUNT')) or 0; cli.command()"
    rest = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=rest | own)
    assert found.stdout == spins + "\n", found.stderr


@pytest.mark.parametrize(("own", "order"), [({}, "AUTO,STRICT"), ({"MKL_CBWR": "AVX2"}, "AVX2")], ids=str)
def test_a_command_has_sums_in_one_order_unless_it_is_told_another(own, order):
    code = "import os; from cca import cli; cli.main = lambda: print(os.environ['MKL_CBWR']) or 0; cli.command()"
    rest = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=rest | own)
    assert found.stdout == order + "\n", found.stderr


def test_windows_syncs_no_folder_and_math_verify_says_what_it_needs(tmp_path, monkeypatch):
    from cca.grading.mathematics import MathVerify
    from cca.run import memory

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("Windows opens no folder"))
    write_text(tmp_path / "a", "b")
    with pytest.raises(InputError, match="needs Linux or macOS"):
        MathVerify()("1", "1")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory._resident() == 0


def test_without_the_modules_of_unix_everything_still_loads_and_a_folder_is_opened(tmp_path):
    code = (
        "import sys; sys.modules.update(fcntl=None, resource=None, pwd=None, grp=None)\n"
        "import os, random; del os.register_at_fork\n"
        "import pathlib, cca.cli, cca.run.run, cca.folder, cca.grading.graders\n"
        "f = cca.folder.RunFolder.create(pathlib.Path(sys.argv[1]), 'seed = 1')\n"
        "f.close(); print(sorted(p.name for p in f.path.iterdir()))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout == "['config.toml', 'manifest.json']\n", found.stderr
