"""A stage that is done again with other settings: what comes before is kept, and a kill anywhere mixes nothing."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

from cca import cli
from cca.errors import InputError
from cca.folder import RunFolder, differences
from cca.records import Problem
from cca.run import changes
from cca.run.changes import open_folder
from cca.run.config import Config, dump_toml, load_config
from cca.run.run import Run, config_of
from cca.run.stages import STAGES, first_to_use, trace

CONFIG = load_config(None)
ORDER = list(STAGES)
SCRATCH = {"circuit": "circuit-0.05.safetensors", "update": "update.partial.safetensors", "evaluate": "base.jsonl"}


def finished(path: Path, config: Config = CONFIG) -> Path:
    """A folder that looks like a finished run of two rounds, with files that are scratch beside."""
    with RunFolder.create(path, dump_toml(config)) as folder:
        for stage in STAGES.values():
            for name in (*stage.artifacts, *([SCRATCH[stage.name]] if stage.name in SCRATCH else [])):
                folder.file(name).write_text(f"of {stage.name}")
            folder.note("seconds", stage.name, 1.0)
            folder.finish(stage.name, stage.artifacts)
        folder.manifest |= {"revision": "abc", "lambda": 0.05}
        folder.save_manifest()
        folder.file("round-2").mkdir()
        folder.file("round-notes").mkdir()
    return path


def state(path: Path) -> tuple[dict[str, str], dict, dict]:
    files = {p.name: p.read_text() if p.is_file() else "" for p in path.iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    return files, manifest, tomllib.loads(files["config.toml"])


def test_every_setting_belongs_to_a_stage_and_every_stage_names_settings_that_there_are():
    whole = tomllib.loads(dump_toml(load_config(None, ("evaluation.max_new_tokens=9",))))
    keys = differences({}, whole).keys()
    named = {name for stage in STAGES.values() for name in stage.settings}
    assert {key.partition(".")[0] for key in keys} <= {name for name in named if "." not in name}
    assert named <= keys | whole.keys()
    where = {"seed": "trace", "model.dtype": "trace", "prompt.template": "trace", "problems.grader": "trace"}
    where |= {"traces.max_new_tokens": "trace", "evaluation.per_skill": "trace", "evaluation.transfer": "trace"}
    where |= {"pivots.method": "pivots", "circuit.lambda": "circuit", "update.arm": "update", "rounds": "update"}
    where |= {
        "evaluation.batch": "update",
        "evaluation.max_new_tokens": "update",
        "evaluation.text": "evaluate",
        "evaluation.task_limit": "evaluate",
    }
    assert {key: first_to_use(key) for key in where} == where


UNNAMED = sorted(differences({}, tomllib.loads(dump_toml(CONFIG))))


@pytest.mark.parametrize("key", ["traces.top_k", "update.batch", *UNNAMED[:: len(UNNAMED) // 4]])
def test_a_begun_run_whose_config_does_not_name_a_setting_goes_on_with_its_default(tmp_path, key):
    """As those do that were begun before there was such a setting."""
    path = finished(tmp_path / "run")
    folder = RunFolder.open(path)
    older = tomllib.loads(folder.config)
    section, _, name = key.rpartition(".")
    del (older[section] if section else older)[name]
    folder.manifest["config"] = tomli_w.dumps(older)
    folder.save_manifest()
    folder.file("config.toml").write_text(folder.manifest["config"])
    for _ in range(2):
        open_folder(path, config_of(path)).close()
    assert RunFolder.open(path).manifest["stages"].keys() == STAGES.keys()
    open_folder(path, config_of(path), redo="report").close()
    assert tomllib.loads(RunFolder.open(path).config) == tomllib.loads(dump_toml(CONFIG))


def test_a_begun_run_whose_config_does_not_name_a_setting_is_not_one_of_another_value(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, dump_toml(CONFIG).replace("top_k = 0\n", "")).close()
    RunFolder.open(path).file("problems.jsonl").write_text("")
    with pytest.raises(
        InputError, match=r"there traces.top_k = None, here 50.*cca trace .* --redo --set traces.top_k=50"
    ):
        open_folder(path, load_config(None, ("traces.top_k=50",)))


@pytest.mark.parametrize(("older", "now"), [("true", "1.0"), ("false", "0")])
def test_a_run_begun_when_skip_solved_was_true_or_false_goes_on(tmp_path, older, now):
    path = tmp_path / "run"
    RunFolder.create(path, dump_toml(CONFIG).replace("skip_solved = 1.0\n", f"skip_solved = {older}\n")).close()
    RunFolder.open(path).file("problems.jsonl").write_text("")
    for config in (config_of(path), load_config(None, (f"traces.skip_solved={now}",))):
        open_folder(path, config).close()
    assert f"skip_solved = {older}" in RunFolder.open(path).config


@pytest.mark.parametrize("stage", ORDER)
def test_what_comes_before_a_redone_stage_is_kept_and_all_else_is_gone(tmp_path, stage):
    path = finished(tmp_path / "run")
    open_folder(path, CONFIG, redo=stage).close()
    files, manifest, settings = state(path)
    before = ORDER[: ORDER.index(stage)]
    assert list(manifest["stages"]) == list(manifest.get("seconds", {})) == before
    assert "redo" not in manifest
    assert ("revision" in manifest) == (stage != "trace"), "traces that are made anew may be of another model"
    kept = {name for s in before for name in STAGES[s].artifacts} | {SCRATCH[s] for s in before if s in SCRATCH}
    rounds = {"round-2"} if "update" in before else set()
    assert set(files) == kept | rounds | {"round-notes", "config.toml"}
    assert settings == tomllib.loads(dump_toml(CONFIG))


@pytest.mark.parametrize(("redo", "changed", "first"), [
    ("circuit", ("traces.samples=20",), "trace"),
    ("update", ("update.steps=3", "circuit.lambda=0.1"), "circuit"),
    ("evaluate", ("evaluation.batch=3",), "update"),
    ("evaluate", ("evaluation.per_skill=3",), "trace"),
    ("report", ("evaluation.text=['a.txt']",), "evaluate"),
    ("pivots", ("model.dtype=bfloat16",), "trace"),
])  # fmt: skip
def test_settings_of_an_earlier_stage_are_refused_with_the_command_that_takes_them(tmp_path, redo, changed, first):
    path = finished(tmp_path / "run")
    before = state(path)
    config = load_config(None, changed)
    with pytest.raises(InputError) as refused:
        open_folder(path, config, redo=redo)
    assert f"belongs to stage {first}, which comes before {redo}" in str(refused.value)
    assert state(path) == before
    with pytest.raises(InputError) as refused:
        open_folder(path, config)
    assert f"cca {first} {path} --redo --set " in str(refused.value)
    assert state(path) == before
    open_folder(path, config, redo=first).close()
    assert state(path)[2] == tomllib.loads(dump_toml(config))


class Killed(BaseException):
    pass


def test_a_kill_anywhere_in_a_redo_with_other_settings_leaves_what_the_next_start_completes(tmp_path, monkeypatch):
    other = load_config(None, ("circuit.lambda=0.1", "update.steps=3"))
    before, whole = finished(tmp_path / "before"), finished(tmp_path / "whole")
    open_folder(whole, other, redo="circuit").close()
    calls, deadline = 0, 0

    def dying(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == deadline:
                raise Killed
            return real(*args, **kwargs)

        return call

    for deadline in range(1, 200):
        path, calls = tmp_path / str(deadline), 0
        shutil.copytree(before, path)
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "save_manifest", dying(RunFolder.save_manifest))
            patched.setattr(changes, "write_text", dying(changes.write_text))
            patched.setattr(Path, "unlink", dying(Path.unlink))
            patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                open_folder(path, other, redo="circuit").close()
            except Killed:
                pass
            else:
                break
        kept = json.loads((path / "manifest.json").read_text())
        if "redo" in kept or "circuit" not in kept["stages"]:
            open_folder(path, config_of(path)).close()  # the redo is completed, whatever command comes next
        else:
            assert state(path)[0] == state(before)[0], "nothing was begun"
            open_folder(path, other, redo="circuit").close()
        assert state(path)[0] == state(whole)[0]
        assert state(path)[1]["stages"] == state(whole)[1]["stages"]
    assert deadline > 10


def test_a_config_that_was_edited_by_hand_is_noticed_and_can_be_had_back(tmp_path, capsys):
    path = finished(tmp_path / "run")
    config = path / "config.toml"
    good = config.read_text()
    for edited in (good.replace("lambda = 0.05", "lambda = 0.5"), good + "[", "", good + "[more]\nx = 1\n", "\ud800"):
        config.write_bytes(edited.encode("utf-8", "surrogatepass"))
        for command in (["circuit", str(path)], ["run", "--out", str(path)], ["show", "pivots", str(path)]):
            assert cli.main([*command]) == 2, command
            error = capsys.readouterr().err
            assert str(config) in error and "delete it" in error and len(error.splitlines()) == 1
    config.unlink()
    assert Run.load(path).config == CONFIG
    RunFolder.create(path, good).close()
    assert config.read_text() == good


@pytest.mark.parametrize("command", [["run", "--out"], ["trace"]])
def test_a_run_whose_config_was_deleted_goes_on_with_the_one_in_its_manifest(tmp_path, monkeypatch, command):
    other = load_config(None, ("circuit.lambda=0.02",))
    path, begun = finished(tmp_path / "run", other), []
    (path / "config.toml").unlink()
    monkeypatch.setattr(Run, "execute", lambda self, *_: begun.append(self.config))
    cli.main([*command, str(path), "--quiet"])  # whose summary is a stand-in
    assert begun == [other]
    assert "lambda = 0.02" in (path / "config.toml").read_text()


def test_the_path_of_a_model_that_was_moved_may_be_edited(tmp_path, monkeypatch):
    path = finished(tmp_path / "run")
    config = path / "config.toml"
    config.write_text(config.read_text().replace('path = "bundled"', 'path = "elsewhere"'))
    assert Run.load(path).config.model.path == "elsewhere"
    monkeypatch.setattr(Run, "check", staticmethod(lambda *_, **__: None))
    Run.resume(path).close()
    assert Run.load(path).config.model.path == "elsewhere"


def test_a_run_goes_on_with_its_own_config_where_no_other_is_named(tmp_path, monkeypatch, capsys):
    path = finished(tmp_path / "run", load_config(None, ("seed=5",)))
    started = []
    monkeypatch.setattr(Run, "execute", lambda self, stages: started.append(self.config.seed))
    monkeypatch.setattr("cca.commands.run._execute", lambda opened, stages, _: opened.execute(stages) or 0)
    assert cli.main(["run", "--out", str(path)]) == 0
    assert cli.main(["run", "--out", str(path), "--set", "seed=5"]) == 0
    assert cli.main(["trace", str(path), "--set", "seed=5"]) == 0
    assert started == [5, 5, 5]
    assert cli.main(["run", "--out", str(path), "--set", "seed=6"]) == 2
    assert f"cca trace {path} --redo --set seed=6" in capsys.readouterr().err


def test_without_its_manifest_a_run_keeps_its_traces_and_pivots_and_does_the_rest_again(tmp_path, capsys):
    path = finished(tmp_path / "run")
    (path / "manifest.json").unlink()
    with open_folder(path, CONFIG) as folder:
        assert not any(folder.finished(stage) for stage in STAGES)
    assert "manifest.json is gone" in capsys.readouterr().err
    kept = {name for stage in ("trace", "pivots") for name in STAGES[stage].artifacts}
    assert {p.name for p in path.iterdir()} == kept | {"config.toml", "manifest.json", "round-notes"}


def test_another_lambda_takes_the_traces_and_pivots_that_there_are(mended, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(mended, path)
    before = {name: (path / name).stat().st_mtime_ns for s in ("trace", "pivots") for name in STAGES[s].artifacts}
    config = str(mended.parent / "mended.toml")
    changed = ["--set", "circuit.lambda=0.02", "--set", "circuit.epochs=4", "--set", "circuit.target_density="]
    assert cli.main(["run", config, "--out", str(path), *changed, "--quiet"]) == 2
    (command,) = [line for line in capsys.readouterr().err.split("in that one: ") if line.startswith("cca ")]
    assert "circuit.target_density= " in command or command.endswith("circuit.target_density=\n")
    assert cli.main([*command.split()[1:], "--quiet"]) == 0
    assert {name: (path / name).stat().st_mtime_ns for name in before} == before
    found = Run.load(path)
    assert (found.config.circuit.penalty, found.config.circuit.target_density) == (0.02, None)
    assert [s for s in STAGES if found.folder.finished(s)] == ["trace", "pivots", "circuit"]
    assert found.folder.manifest["lambda"] == 0.02


def test_an_interrupted_run_goes_on_with_the_problems_it_began_with_whatever_became_of_their_file(
    tmp_path, monkeypatch
):
    source = tmp_path / "own.jsonl"
    rows = [{"question": f"What is {n} and 2?", "answer": str(n + 2)} for n in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("traces.samples=1", "traces.batch=2", "traces.max_new_tokens=4", "evaluation.transfer=[]")
    config = load_config(None, (f"problems.source={json.dumps(str(source))}", "evaluation.retention=[]", *settings))
    work, kept = trace.trace_pairs, []

    def twice(network, prompter, problems, options, seed, done, *more, **named):
        def keep(pair):
            if kept:
                raise KeyboardInterrupt
            kept.append(pair)
            done(pair)

        work(network, prompter, problems, options, seed, keep, *more, **named)

    with monkeypatch.context() as patched, Run.start(tmp_path / "run", config) as run:
        patched.setattr(trace, "trace_pairs", twice)
        with pytest.raises(KeyboardInterrupt):
            run.execute(("trace",))
    asked = {problem.question for problem in run.folder.read("problems.jsonl", Problem)}
    assert asked <= {row["question"] for row in rows}
    source.unlink()
    with Run.start(tmp_path / "run", config) as run:
        run.execute(("trace",))
        assert {problem.question for problem in run.problems} == asked
    source.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError, match="too few"), Run.start(tmp_path / "run", config, redo="trace") as run:
        run.execute(("trace",))
