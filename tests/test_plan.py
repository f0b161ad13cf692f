"""`cca run CONFIG --dry-run`, for every config in the repository, on a tiny model of its family without weights."""

import json
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stand_in_harness
from families import family_config
from test_sources import write

from cca import cli
from cca.model.checks import load_tokenizer
from cca.model.components import find_components
from cca.model.open import open_prompter
from cca.model.weights import empty_model
from cca.records import Problem
from cca.run.config import load_config
from cca.run.problems import draw_problems
from cca.run.run import Run
from cca.run.stages import trace
from cca.show.progress import Lines

CONFIGS = Path(__file__).parent.parent / "configs"
PAPER = {
    "gemma-2-2b-it": "gemma2",
    "gemma-2-9b-it": "gemma2",
    "olmo-2-7b-instruct": "olmo2",
    "olmo-2-13b-instruct": "olmo2",
    "qwen2.5-3b-instruct": "qwen2",
}


def bare_model(folder: Path, family: str, **changes: Any) -> Path:
    """A configuration and a tokenizer, and no weights."""
    tokenizer = load_tokenizer("bundled")
    family_config(family, "gqa", vocab_size=len(tokenizer), max_position_embeddings=4096, **changes).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """What the configs take from elsewhere: eight worked examples for gsm8k_cot, and a hub that has GSM-Symbolic."""
    tasks = stand_in_harness(tmp_path, "gsm8k_cot")
    (file,) = tasks.iterdir()
    file.write_text(file.read_text().replace("target: It is", "target: 1 + 1 is 2. The answer is"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)  # the real one, where another test needed it
    rows = [
        {
            "id": t,
            "instance": i,
            "question": f"{t} and {i} more?",
            "answer": f"{t} + {i}\n#### {t + i}",
            "original_id": 9,
        }
        for t in (16, 43, 44)
        for i in range(50)
    ]
    write(tmp_path / "hub" / "main" / "test.jsonl", rows)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "hub"))


def dry_run(capsys, *arguments: str) -> dict[str, Any]:
    assert cli.main(["run", *arguments, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configs_are_planned_on_a_tiny_model_of_their_family(name, tmp_path, capsys, harness):
    folder = bare_model(tmp_path / "m", PAPER[name])
    few = ["--set", "problems.templates=[16, 43]"]
    found = dry_run(capsys, str(CONFIGS / f"{name}.toml"), "--model", str(folder), *few)
    parts = find_components(empty_model(family_config(PAPER[name], "gqa"), "m"))
    everything = torch.ones(parts.size, dtype=torch.bool)
    assert found["model"]["type"] == PAPER[name]
    assert found["components"] == {"all": parts.size, **parts.counts(everything)}
    assert found["rows"]["all"] == sum(len(rows) for rows in parts.rows(everything).values())
    assert found["work"]["problems"] == {"train": 52, "validation": 8, "test": 40}
    assert found["work"]["benchmarks"] == ["mmlu", "triviaqa", "truthfulqa_mc2"]
    assert found["work"]["prompt_tokens"]["longest"] > 8 * 10, "the examples are in the prompt"
    assert found["work"]["circuit_steps"] == 50 * 14, "seven a pass, twice an epoch"
    assert found["work"]["update_steps"] == 50
    assert found["work"]["validations"] == 15, "steps 0, 2, 4, 6, 8, 10, 15 ... 50"
    memory = found["memory_gib"]
    assert memory["peak"] == pytest.approx(
        memory["weights"] + max(memory[s] for s in ("trace", "pivots", "circuit", "update", "evaluate")), abs=2e-3
    )


def test_the_papers_prompts_are_lines_and_every_template_is_split_by_instance(harness):
    config = load_config(CONFIGS / "gemma-2-2b-it.toml", ("model.path=bundled",))
    prompter = open_prompter(config.model, config.prompt, config.problems.grader)
    text = prompter._text("How many?")
    shown = [
        f"Q: How many is {i}?\nA: Let's think step by step. 1 + 1 is 2. The final answer is {i}." for i in range(8)
    ]
    assert text.splitlines() == [
        config.prompt.preamble,
        *"\n".join(shown).splitlines(),
        "Q: How many?",
        "A: Let's think step by step.",
    ]
    assert prompter.grade(Problem("a", "t", 0, "test", "?", "7", ""), "It is 3. The final answer is 7. Q: 8").correct
    problems = draw_problems(config)
    assert Counter((p.template, p.split) for p in problems) == {
        (template, split): count
        for template in ("16", "43", "44")
        for split, count in (("train", 26), ("validation", 4), ("test", 20))
    }


def test_the_papers_configs_differ_in_their_model_alone():
    settings = [tomllib.loads((CONFIGS / f"{name}.toml").read_text()) for name in PAPER]
    models = [s.pop("model") for s in settings]
    paths = [model.pop("path") for model in models]
    assert models == [{"dtype": "float16"}] * len(models)
    assert len(set(paths)) == len(paths)
    assert all(s == settings[0] for s in settings)
    config = load_config(CONFIGS / "gemma-2-2b-it.toml")
    assert (config.circuit.penalty, config.circuit.learning_rate, config.circuit.patience) == (0.01, 5e-3, 0.2)
    assert (config.update.loss, config.update.learning_rate, config.update.steps) == ("linear", 1e-4, 50)
    assert (config.prompt.style, config.prompt.shots) == ("few-shot", 8)
    assert (config.traces.max_new_tokens, config.evaluation.max_new_tokens) == (2500, 1500)
    assert (config.traces.top_k, config.traces.skip_solved) == (50, 0.8)
    assert (config.update.lora_rank, config.update.lora_alpha, config.update.lora_dropout) == (16, 32, 0.1)


def test_a_dry_run_of_the_bundled_model_is_readable_and_makes_no_folder(capsys, tmp_path):
    few = ["--set", "problems.templates=[16, 43]", "--out", str(tmp_path / "run")]
    assert cli.main(["run", *few, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    for line in ("3,260: 30 query, 15 key, 15 value, 3,200 neuron", "5,120; 32 a head, 1 a neuron", "GiB at most"):
        assert line in shown.err
    assert "rounds" not in shown.err
    assert not (tmp_path / "run").exists()
    assert cli.main(["run", *few, "--dry-run", "--set", "rounds=2"]) == 0
    assert "at most 2 of these four stages" in capsys.readouterr().err


def test_prefixes_over_the_budget_are_said_to_be_read_again(capsys):
    few = ["--set", "problems.templates=[16, 43]"]
    kept = dry_run(capsys, *few)["memory_gib"]
    again = dry_run(capsys, *few, "--set", "circuit.cache_gib=1e-4")["memory_gib"]
    assert "read" not in kept["notes"]["circuit"]
    assert "over circuit.cache_gib" in again["notes"]["circuit"]
    assert again["circuit"] < kept["circuit"]
    alone = ["--set", "evaluation.batch=1"]  # the memory of a gradient, and not of a validation
    kept = dry_run(capsys, *few, *alone)["memory_gib"]
    less = dry_run(capsys, *few, *alone, "--set", "update.gradient_checkpointing=true")["memory_gib"]
    assert less["update"] < kept["update"] / 2


def test_answers_are_planned_with_their_own_limit(capsys):
    few = ["--set", "problems.templates=[16, 43]"]
    as_traces = dry_run(capsys, *few)
    assert as_traces["work"]["answer_tokens"] == as_traces["work"]["max_new_tokens"] == 160
    assert as_traces["memory_gib"]["evaluate"] == as_traces["memory_gib"]["trace"]
    own = dry_run(capsys, *few, "--set", "evaluation.max_new_tokens=320")
    assert (own["work"]["answer_tokens"], own["work"]["max_new_tokens"]) == (320, 160)
    for part in ("trace", "pivots", "circuit"):
        assert own["memory_gib"][part] == as_traces["memory_gib"][part]
    for part in ("update", "evaluate"):  # a validation's answers too
        assert own["memory_gib"][part] > as_traces["memory_gib"][part]


def test_a_dry_run_refuses_what_the_run_would(capsys, tmp_path, harness):
    few = ["--set", "problems.templates=[16]", "--dry-run"]
    folder = bare_model(tmp_path / "m", "gpt2")
    (tmp_path / "m" / "tokenizer.json").unlink()
    assert cli.main(["run", "--model", str(folder), *few]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert cli.main(["run", *few, "--set", "traces.max_new_tokens=9999"]) == 2
    assert "traces.max_new_tokens is 9999" in capsys.readouterr().err
    assert cli.main(["run", *few, "--set", "evaluation.max_new_tokens=9999"]) == 2
    assert "evaluation.max_new_tokens is 9999" in capsys.readouterr().err
    for settings, message in (
        (['prompt.style="few-shot"'], "with no examples"),
        (["prompt.shots=2"], "a plain prompt shows none"),
        (['prompt.style="chat"', "prompt.shots=2"], "prompt.examples names none"),
        (['prompt.style="chat"'], "no chat template"),
        (['prompt.style="few-shot"', "prompt.shots=9", 'prompt.examples="lm-eval:gsm8k_cot"'], "shows 8 examples"),
    ):
        assert cli.main(["run", *few, *(part for s in settings for part in ("--set", s))]) == 2
        assert message in capsys.readouterr().err


# ---- the run's start ----


FEW = ("problems.templates=[16, 43]", "problems.held_out=0")


def drawn(tmp_path: Path, *changes: str) -> Run:
    """A run whose problems are drawn, and whose model is not loaded."""
    run = Run.start(tmp_path / "run", load_config(None, (*FEW, *changes)), Lines())
    trace._draw(run)
    assert "model" not in vars(run)
    return run


def test_a_run_says_at_its_start_what_it_will_hold(tmp_path, capsys):
    with drawn(tmp_path) as run:
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("memory: ")]
        assert re.fullmatch(r"memory: about 0\.\d+ of \d+\.\d+ GiB at most; prefixes on the device", line)
        assert not run.folder.noted("warnings", "trace", [])


def test_a_run_warns_of_stages_that_may_need_more_than_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cca.model.memory.free_bytes", lambda _: 2**27)
    with drawn(tmp_path) as run:
        (said,) = run.folder.noted("warnings", "trace", [])
        assert re.search(r"trace may need 0\.\d of 0\.1 GiB \(set traces\.batch = \d+\)", said)
        assert "evaluation.batch" in said
        assert said in capsys.readouterr().err


def test_weights_that_cannot_fit_are_refused_before_they_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cca.model.memory.free_bytes", lambda _: 2**22)
    monkeypatch.setattr("cca.model.open.open_model", lambda *_, **__: pytest.fail("weights were read"))
    changes = [part for change in FEW for part in ("--set", change)]
    assert cli.main(["trace", str(tmp_path / "run"), "--quiet", *changes]) == 2
    assert "the weights of bundled take" in capsys.readouterr().err
    assert cli.main(["run", "--out", str(tmp_path / "other"), "--dry-run", *changes]) == 2
    shown = capsys.readouterr().err
    assert "needs GiB" in shown, "the plan is there to see what would do"
    assert 'set model.dtype = "bfloat16", model.device_map = "auto"' in shown


def test_layers_that_are_spread_are_planned_without_a_limit(capsys):
    few = [part for change in FEW for part in ("--set", change)]
    memory = dry_run(capsys, *few, "--set", "model.device_map=auto")["memory_gib"]
    assert memory["has"] is None
    assert {stage["fits"] for stage in memory["stages"].values()} == {None}
