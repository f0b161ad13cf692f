"""Copies of an engine in processes of Ray: their number, and the loss of one, change no result."""

import dataclasses
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from engine_conformance import CHECKS, Subject, subject_of

import cca
from cca import cli
from cca.errors import InputError
from cca.evaluation.scores import answer
from cca.method.traces import Traces
from cca.model.delta import Delta
from cca.model.engines import crew
from cca.model.engines.replicated import Replicated
from cca.model.generate import Row
from cca.model.network import open_network
from cca.model.open import Model
from cca.model.options import EngineOptions, ModelOptions
from cca.model.read import Text
from cca.run.changes import open_folder
from cca.run.config import Config

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def asked() -> list[cca.Problem]:
    return cca.load_problems("gsm-symbolic", templates=[57, 58, 62], n=5, max_number=60)


@pytest.fixture(scope="module")
def alone(bundled, asked) -> Traces:
    return cca.trace(bundled, asked, samples=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[Replicated]:
    made = Replicated(EngineOptions(workers=1), ModelOptions())
    yield made
    made.close()


@pytest.fixture(scope="module")
def subject(engine, prompter, problems) -> Subject:
    return subject_of(engine, open_network(ModelOptions(device="cpu")), prompter, problems, grows=False)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_copy_keeps_the_protocol(subject: Subject, check: Callable[[Subject], None]):
    with torch.no_grad():
        check(subject)


def grown(engine: Replicated, workers: int, model: Model) -> Model:
    """`model`, written with by at least so many workers of `engine`."""
    engine.options = engine.options.changed({"workers": max(workers, engine.options.workers)})
    return dataclasses.replace(model, engine=engine)


def ended(engine: Replicated) -> int:
    """End a process as a machine that fails does; its number."""
    number = ray.get(engine.copies[0].actor.open.remote())
    os.kill(number, signal.SIGKILL)
    return number


def other(model: Model) -> Delta:
    """A delta that changes some answers."""
    selected = torch.zeros(model.components.size, dtype=torch.bool)
    selected[::40] = True
    delta, generator = Delta.zeros(model, model.components.rows(selected)), torch.Generator().manual_seed(0)
    for values in delta.parameters.values():
        values.copy_(torch.randn(values.shape, generator=generator) * 0.05)
    return delta


def test_one_two_and_three_workers_give_the_traces_and_pivots_of_none(bundled, asked, alone, engine):
    wanted = cca.find_pivots(bundled, alone, confirm=2, gap=0.0)
    for workers in (1, 2, 3):
        model = grown(engine, workers, bundled)
        assert cca.trace(model, asked, samples=4).pairs == alone.pairs
        assert cca.find_pivots(model, alone, confirm=2, gap=0.0) == wanted
        assert len(engine.copies) == workers
        assert all(not copy.rows and not copy.reads for copy in engine.copies)


def test_every_worker_writes(bundled, asked, engine, monkeypatch):
    model, handed = grown(engine, 2, bundled), list[int]()
    hand_out = crew.Crew._hand_out

    def counted(self: Any, row: Any) -> None:
        hand_out(self, row)
        handed.append(next(n for n, copy in enumerate(self.copies) if row in copy.rows.values()))

    monkeypatch.setattr(crew.Crew, "_hand_out", counted)
    cca.trace(model, asked, samples=2)
    assert set(handed) == set(range(len(engine.copies)))


def test_answers_of_the_updated_model_and_of_the_base_after_it_are_those_of_no_workers(bundled, asked, engine):
    delta = other(bundled)
    wanted = cca.evaluate(bundled, asked, delta).scores
    assert {s.text for s in wanted if s.model == "base"} != {s.text for s in wanted if s.model == "updated"}
    model = grown(engine, 2, bundled)
    assert cca.evaluate(model, asked, delta).scores == wanted
    assert cca.evaluate(model, asked, delta).scores == wanted


def test_what_a_lost_worker_had_in_hand_is_done_by_others(bundled, asked, alone, engine):
    model, told, gone = grown(engine, 2, bundled), list[int](), list[int]()

    def progress(done: int, of: int) -> None:
        told.append(done)
        if done == len(alone) // 3:
            gone.append(ended(engine))

    assert cca.trace(model, asked, samples=4, progress=progress).pairs == alone.pairs
    assert told == list(range(1, len(alone) + 1)), "what was done is not done twice"
    assert gone and gone[0] not in {ray.get(copy.actor.open.remote()) for copy in engine.copies}


def test_a_lost_worker_s_successor_has_the_update_on(bundled, asked, engine):
    delta, model = other(bundled), grown(engine, 2, bundled)
    wanted = {s.problem: s.text for s in cca.evaluate(bundled, asked, delta).scores if s.model == "updated"}
    tested = [p for p in asked if p.split == "test"]
    with engine.changed(delta):
        engine.read([Text((5, 6, 7))])
        ended(engine)
        found = answer(engine, model.prompter, tested, model="updated", max_new_tokens=160, slots=8)
    assert [s.text for s in found] == [wanted[p.id] for p in tested]


def test_a_model_that_a_worker_cannot_load_is_named(tmp_path):
    made = Replicated(EngineOptions(workers=1), ModelOptions(path=str(tmp_path / "gone")))
    try:
        with pytest.raises(InputError, match="gone"):
            made.read([Text((1, 2))])
    finally:
        made.close()


def test_an_address_without_workers_or_without_ray_is_refused(capsys, monkeypatch):
    assert cli.main(["run", "--ray-address", "auto"]) == 2
    assert "engine.workers is 0; say how many workers" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["run", "--workers", "2"]) == 2
    assert "needs Ray; install it with" in capsys.readouterr().err


def test_how_many_workers_there_are_may_change_when_a_run_goes_on(tmp_path):
    with open_folder(tmp_path / "run", Config()) as folder:
        folder.write("problems.jsonl", [])  # what has nothing yet may have any settings
    open_folder(tmp_path / "run", Config(engine=EngineOptions(workers=7, ray_address="auto"))).close()
    with pytest.raises(InputError, match=r"engine\.name"):
        open_folder(tmp_path / "run", Config(engine=EngineOptions(name="vllm")))


def test_an_engine_that_is_closed_leaves_the_ray_of_another_one(bundled, engine):
    grown(engine, 1, bundled).engine.read([Text((5, 6))])
    first, second = (Replicated(EngineOptions(workers=1), ModelOptions()) for _ in range(2))
    first.read([Text((5, 6))])
    first.close()
    second.close()
    engine.read([Text((5, 6))])


def test_what_cannot_be_sent_to_a_worker_is_an_error_and_no_wait(bundled, engine):
    class Unreadable:
        def __reduce__(self):
            return (int, ("none",))

    rule = partial(lambda one, tokens: False, Unreadable())
    with pytest.raises(ray.exceptions.RaySystemError, match="none"):
        engine.write([Row(Text((5, 6)), 4, stop=rule)], slots=2, end_tokens=frozenset())


def test_a_delta_that_was_pickled_is_seen_to_fit_again(bundled):
    delta = other(bundled)
    again = pickle.loads(pickle.dumps(delta))
    again.check_fits(bundled)
    assert all(torch.equal(again.parameters[name], values) for name, values in delta.parameters.items())


@pytest.mark.slow
def test_workers_that_are_lost_again_and_again_are_an_error(bundled, asked, engine, monkeypatch):
    monkeypatch.setattr(crew, "_LOST", 0)

    def progress(done: int, of: int) -> None:
        if done == 1:
            ended(engine)

    with pytest.raises(InputError, match=r"1 processes of Ray were lost .* engine.workers, traces.batch"):
        cca.trace(grown(engine, 2, bundled), asked, samples=4, progress=progress)
    assert not engine.copies
