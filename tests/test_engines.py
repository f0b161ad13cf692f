"""All engines keep the protocol of `cca.model.engine`: the checks of `engine_conformance`, for each of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refuse
from engine_conformance import CHECKS, Subject, subject_of

from cca.errors import InputError
from cca.model.engines.choice import check_engine, choose_engine
from cca.model.network import open_network
from cca.model.options import EngineOptions, ModelOptions
from cca.run.config import load_config

ROOT = Path(__file__).parent.parent
PYTHON = Path(os.environ.get("CCA_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
ENGINES: dict[str, tuple[dict[str, Any], Any]] = {
    "transformers": ({}, ()),
    "ray-vllm": ({"workers": 1, "name": "vllm", "python": str(PYTHON)}, pytest.mark.vllm),
    "vllm": ({"name": "vllm", "python": str(PYTHON)}, pytest.mark.vllm),
    "vllm-lora": ({"name": "vllm", "python": str(PYTHON), "updates": "lora"}, pytest.mark.vllm),
}
"""By name: the options, and what marks its tests."""


@pytest.fixture(scope="module", params=[pytest.param(name, marks=marks) for name, (_, marks) in ENGINES.items()])
def subject(request, prompter, problems) -> Iterator[Subject]:
    options, model = EngineOptions(**ENGINES[request.param][0]), ModelOptions(device="cpu")
    if options.name == "vllm" and not PYTHON.exists():
        pytest.skip("there is no vLLM; build its environment with: make vllm")
    check_engine(options, model)
    network = open_network(model)
    engine = choose_engine(options, model, network)
    yield subject_of(engine, network, prompter, problems, grows=not options.workers)
    engine.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_engine_keeps_the_protocol(subject: Subject, check: Callable[[Subject], None]):
    with torch.no_grad():
        check(subject)


# ---- what is refused before anything slow ----


def test_vllm_is_refused_where_it_is_not_installed(capsys):
    refuse(["run", "--set", "engine.name=vllm"], capsys, "has no vLLM", "pip install", "engine.python")
    nowhere = EngineOptions(name="vllm", python="/nowhere/python")
    with pytest.raises(InputError, match=r"cannot run engine.python /nowhere/python"):
        check_engine(nowhere, ModelOptions())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("update.arm=bias", "update.arm bias is none; set engine.name=transformers"),
        ("update.arm=lora", "update.arm lora is none"),
        ("traces.temperature_if_correct=2.5", "up to 2, and one of traces or pivots is 2.5"),
    ],
)
def test_vllm_is_refused_for_what_it_cannot_do(setting, said):
    load_config(None, [setting])
    with pytest.raises(InputError, match=said):
        load_config(None, ["engine.name=vllm", setting])


def test_vllm_is_refused_for_models_that_it_does_not_take(tmp_path):
    options = EngineOptions(name="vllm")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="does not use for GGUF files"):
        check_engine(options, ModelOptions(path=str(tmp_path / "a.gguf")))
    with pytest.raises(InputError, match=r"leave out model.device_map"):
        check_engine(options, ModelOptions(device_map="auto"))
