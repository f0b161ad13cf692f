"""Stages 2 and 3 in several processes: the same as in one, to float32 rounding, and the same bits in each of them."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_pivots, tiny_qwen2
from families import VOCABULARY, family_model
from torch import distributed, multiprocessing

import cca
from cca import cli
from cca.controls.lora import LowRank
from cca.controls.vectors import OutputBias, Steering
from cca.errors import InputError
from cca.io import load_tensors
from cca.method.circuit import learn_gates, own_pivots
from cca.method.options import CircuitOptions, UpdateOptions
from cca.method.processes import ALONE, Processes
from cca.method.update import Validation, train, validator
from cca.model.checks import load_tokenizer
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.options import ModelOptions
from cca.records import Metric
from cca.run import together

GATES = CircuitOptions(penalty=0.02, learning_rate=0.05, batch=2, epochs=4, min_steps=0, patience=50.0)
STEPS = UpdateOptions(learning_rate="auto", steps=4, validate_every=1, patience=9, batch=3)
PIVOTS = random_pivots(7, VOCABULARY)
HELD = [replace(p, split="validation") for p in random_pivots(3, VOCABULARY, seed=1)]
TRAINED = ("delta", "lora", "bias", "steering")


def close(found: Any, wanted: Any) -> None:
    """Equal to float32 rounding: sums of the same terms in another order."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---- what is done in one process and in two ----


def gates(processes: Processes, pivots=PIVOTS, **more: Any) -> dict[str, torch.Tensor]:
    model = family_model("llama", "gqa")
    found = learn_gates(model, find_components(model), pivots, GATES, processes=processes, **more)
    return {"gates": found.gates, "history": found.history, "losses": found.losses}


def untrained(kind: str, model: Any) -> Any:
    parts = find_components(model)
    rows = parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(2)) > 0.7)
    match kind:
        case "lora":
            return LowRank.fresh(model, rows, 2, 2.0, seed=0)
        case "bias":
            return OutputBias.zeros(torch.arange(9))
        case "steering":
            return Steering.zeros(parts.layers[-1].name, model.config.hidden_size, model.device)
    return Delta.zeros(model, rows)


def update(
    processes: Processes, kind: str = "delta", pivots=PIVOTS, options=STEPS, state_path: Path | None = None, **more: Any
) -> dict[str, Any]:
    validated = 2 if state_path is not None and state_path.exists() else 0  # at step 0 and at the one that was kept
    model, rising = family_model("llama", "gqa"), iter(range(1 + validated, 99))
    options = options.changed({"learning_rate": 0.01}) if kind == "lora" else options
    found = train(
        model,
        untrained(kind, model),
        pivots,
        HELD,
        lambda _: Validation(next(rising) / 100, 1),
        options,
        optimizer="adam" if kind == "lora" else "descent",
        state_path=state_path,
        processes=processes,
        **more,
    )
    return {"values": dict(found.intervention.parameters), "metrics": found.metrics, "rate": found.rate}


def stopped_after(number: int, work: Callable[..., Any], processes: Processes, path: Path) -> None:
    """`work` until the user interrupts it."""

    def stop(done: int, *_: Any) -> None:
        if done == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(processes, state_path=path, progress=stop)


def gone_on(work: Callable[..., Any], processes: Processes, path: Path) -> Any:
    """What comes of `work` that was stopped before its second epoch or step was kept."""
    told: list[int] = []
    found = work(processes, state_path=path, progress=lambda done, *_: told.append(done))
    assert told[0] == 2
    return found


def of_the_front_door(processes: Processes) -> dict[str, Any]:
    grader = lambda text, _: len(text) % 3 == 0
    model = cca.open_model((tiny_qwen2(num_hidden_layers=1), load_tokenizer("bundled")), grader=grader)
    asked = [cca.Problem(str(n), "t", n, "validation", "What is 1 + 1?" * n, "2", "") for n in range(1, 8)]
    circuit = cca.learn_circuit(model, PIVOTS, GATES, processes=processes)
    few: dict[str, Any] = {"steps": 2, "max_new_tokens": 5, "learning_rate": 0.1}
    with pytest.warns(UserWarning, match="were cut at max_new_tokens = 5"):
        delta = cca.update(model, circuit, PIVOTS, validate=asked[:3], processes=processes, **few)
    scores = [validator(model, some, 5, processes=processes)(delta) for some in (asked, asked[:1])]
    return {"gates": circuit.gates, "scores": scores, **delta.parameters}


def refused(processes: Processes) -> str:
    """What is said where one process has other pivots."""
    with pytest.raises(InputError) as found:
        gates(processes, PIVOTS[: 6 + processes.rank])
    return str(found.value)


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    two = Processes.of_group()
    assert (two.rank, two.count) == (rank, 2)
    alone = gates(ALONE) if rank else None  # that there is a group says nothing
    found = {
        "gates": gates(two),
        "one gate pivot": gates(two, PIVOTS[:1]),
        "one pivot": update(two, pivots=PIVOTS[:1]),
        "front door": of_the_front_door(two),
        "refused": refused(two),
        "same": two.same(f"of {rank}"),
        "alone": alone,
        **{kind: update(two, kind) for kind in TRAINED},
        "resumed gates": gone_on(gates, two, folder / "gates of one"),
        "resumed lora": gone_on(lora, two, folder / "lora of one"),
    }
    stopped_after(2, gates, two, folder / "gates of two")
    stopped_after(2, lora, two, folder / "lora of two")
    torch.save(found, folder / f"found {rank}")
    distributed.destroy_process_group()


def lora(processes: Processes, **more: Any) -> dict[str, Any]:
    return update(processes, "lora", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two processes worked, after one had begun a training for them to go on with."""
    path = tmp_path_factory.mktemp("two")
    stopped_after(2, gates, ALONE, path / "gates of one")
    stopped_after(2, lora, ALONE, path / "lora of one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.spawn(one_of_two, (path,), nprocs=2)
    return path


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found {rank}", weights_only=False) for rank in (0, 1)]


def as_one(two: Any, one: Any) -> None:
    """What two processes found is what one finds."""
    if isinstance(one, dict):
        assert two.keys() == one.keys()
        for name in one:
            as_one(two[name], one[name])
    elif isinstance(one, list):
        assert len(two) == len(one)
        for a, b in zip(two, one, strict=True):
            as_one(a, b)
    elif isinstance(one, Metric):
        assert (two.step, two.accuracy, two.n, two.cut) == (one.step, one.accuracy, one.n, one.cut)
        for name in ("loss", "margin", "preference_accuracy"):
            as_one(getattr(two, name), getattr(one, name))
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    elif isinstance(one, torch.Tensor):
        close(two, one)
    else:
        assert two == one


def bits(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: bits(value) for name, value in found.items()}
    return found.tolist() if isinstance(found, torch.Tensor) else found


def test_both_processes_have_the_same_bits(found):
    first, second = (bits({name: value for name, value in one.items() if name != "alone"}) for one in found)
    assert first == second


def test_gates_of_two_processes_are_those_of_one(found):
    as_one(found[0]["gates"], gates(ALONE))
    assert found[0]["gates"]["gates"].min() < 0.9, "the comparison must be of something"


def test_a_step_whose_only_pivot_is_another_process_s_is_the_step_of_one(found):
    assert len(PIVOTS) % GATES.batch == 1, "the last step of an epoch is of one pivot"
    as_one(found[0]["one gate pivot"], gates(ALONE, PIVOTS[:1]))
    as_one(found[0]["one pivot"], update(ALONE, pivots=PIVOTS[:1]))


@pytest.mark.parametrize("kind", TRAINED)
def test_whatever_is_trained_in_two_processes_becomes_what_it_becomes_in_one(found, kind):
    as_one(found[0][kind], update(ALONE, kind))


def test_the_front_door_takes_processes_and_without_them_works_alone_whatever_group_there_is(found):
    one = of_the_front_door(ALONE)
    as_one(found[0]["front door"], one)
    assert found[0]["front door"]["scores"] == one["scores"], "shares of right answers are equal, not close"
    assert 0 < one["scores"][0].accuracy < 1
    assert bits(found[1]["alone"]) == bits(gates(ALONE))


@pytest.mark.parametrize("name", ["gates", "lora"])
def test_a_training_goes_on_in_another_number_of_processes(folder, found, name):
    work = {"gates": gates, "lora": lora}[name]
    whole = work(ALONE)
    as_one(found[0][f"resumed {name}"], whole)
    as_one(gone_on(work, ALONE, folder / f"{name} of two"), whole)
    assert (
        load_tensors(folder / f"{name} of two").tensors.keys() == load_tensors(folder / f"{name} of one").tensors.keys()
    )


def test_processes_that_were_given_different_pivots_refuse_to_learn_together(found):
    for one in found:
        assert one["same"] == "of 0"
        assert "were given different pivots" in one["refused"] and "processes.same(pivots)" in one["refused"]


def test_every_pivot_is_of_one_process_and_each_has_as_many_tokens():
    pivots = random_pivots(200, VOCABULARY)
    parts = [own_pivots(pivots, Processes(rank, 3)) for rank in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(200))
    tokens = [sum(len(pivots[number].prefix) for number in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(len(p.prefix) for p in pivots)


def test_without_a_group_there_are_no_processes_to_learn_with():
    with pytest.raises(InputError, match=r"no group of processes yet; .*init_process_group"):
        Processes.of_group()


# ---- the command ----

FEW_STEPS = ["circuit.target_density=", "circuit.lambda=0.03", "circuit.learning_rate=0.15", "circuit.epochs=2"]
COMMANDS = """
import os, sys
from cca import cli
folder, log, *changes = sys.argv[1:]

def look(event, arguments):
    path, mode, flags = arguments if event == "open" else (*arguments[:1], "w", 0)
    if str(path).startswith(folder) and (set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)):
        os.write(2, f"{event} {path}".encode())

if os.environ["RANK"] == "1":
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(2, 1)
    looked = ("open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.chmod", "os.truncate")
    sys.addaudithook(lambda event, arguments: look(event, arguments) if event in looked else None)
sys.exit(cli.main(["circuit", folder, "--redo", *changes]) or cli.main(["update", folder, "--quiet"]))
"""
FAILING = """
import os, sys
from cca import cli
from cca.run.stages import circuit

def fail(*_, **__):
    raise ValueError("of no use")

if os.environ["RANK"] == "1":
    circuit.learn_gates = fail
sys.exit(cli.main(["circuit", sys.argv[1], "--redo", "--quiet"]))
"""


def environment(**more: str) -> dict[str, str]:
    source = str(Path(cca.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **cli.WAITING, **cli.ROUNDING, **more}


def test_a_run_under_torchrun_ends_as_alone_and_the_second_process_writes_nothing(mended, tmp_path):
    alone, run, script, log = (tmp_path / name for name in ("alone", "run", "commands.py", "log"))
    shutil.copytree(mended, alone)
    shutil.copytree(mended, run)
    script.write_text(COMMANDS)
    changes = [word for change in FEW_STEPS for word in ("--set", change)]
    assert cli.main(["circuit", str(alone), "--redo", "--quiet", *changes]) == 0
    assert cli.main(["update", str(alone), "--quiet"]) == 0
    started = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, run, log, *changes]
    said = subprocess.run(
        [sys.executable, "-m", *map(str, started)], env=environment(), check=True, capture_output=True, text=True
    ).stderr
    assert log.read_text() == ""
    assert (said.count("circuit: done"), said.count(f"next: cca evaluate {run}")) == (1, 1)
    one, two = cca.Run.load(alone), cca.Run.load(run)
    assert {f.name for f in run.iterdir()} == {f.name for f in alone.iterdir()}
    assert two.folder.file("sweep.jsonl").read_bytes() == one.folder.file("sweep.jsonl").read_bytes()
    for name in ("circuit", "delta"):
        as_one(*(load_tensors(r.folder.file(f"{name}.safetensors")).tensors for r in (two, one)))
    as_one(*(r.folder.read("metrics.jsonl", Metric) for r in (two, one)))


def test_a_process_that_fails_ends_them_all(mended, tmp_path):
    run, script = tmp_path / "run", tmp_path / "failing.py"
    shutil.copytree(mended, run)
    script.write_text(FAILING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, str(script), str(run)],
            env=environment(RANK=rank, **shared),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    (_, leader), (_, follower) = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert leader == "cca: another of the 2 processes has ended; finished work is kept, the same command resumes\n"
    assert follower.strip().endswith("ValueError: of no use")
    assert cca.Run.load(run).folder.finished("pivots")


# ---- what is refused before anything slow ----


@pytest.mark.parametrize(
    "model, update, said",
    [
        ({}, {"method": "lora"}, r"update\.arm lora is trained in one process, and here are 2; start one"),
        ({}, {"method": "finetune"}, r"update\.arm finetune is trained in one"),
        ({"device_map": "auto"}, {}, r"model\.device_map spreads one model over all devices, and here are 2 processes"),
        ({"device": "cuda:1"}, {}, r"model\.device is 'cuda:1', and here are 2 processes .*; leave it auto"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_and_one_can(monkeypatch, model, update, said):
    options = ModelOptions(**model), UpdateOptions(**update)
    together.check(*options)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(together, "_team", together._Team(Processes(0, 2)))
    with pytest.raises(InputError, match=said):
        together.check(*options)
    together.check(ModelOptions(device="cpu"), UpdateOptions(method="lora-pivots"))


def test_processes_that_were_not_started_as_torch_expects_are_told_how(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["config"]) == 2
    said = capsys.readouterr().err
    assert "RANK, MASTER_ADDR, MASTER_PORT is not set; start them with torchrun, or unset WORLD_SIZE" in said
