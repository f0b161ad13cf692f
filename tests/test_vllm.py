"""vLLM serves the adapters: the same greedy answers as the merged model. Run with: make vllm, then pytest -m vllm."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from test_adapter import merged
from test_delta import made

from cca import cli
from cca.model.adapter import adapter_of
from cca.records import Score
from cca.run.run import Run

ROOT = Path(__file__).parent.parent
PYTHON = Path(os.environ.get("CCA_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no vLLM; build its environment with: make vllm"),
]
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96,
    "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
"""vLLM on a CPU takes heads of 32 and more."""
SERVED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "phi3",
    "gpt_neox",
    "starcoder2",
    "opt",
)
PROMPTS = [[11, 42, 7, 199], [5, 6], [100, 200, 300, 400, 500, 60, 70, 80, 90], [250, 3, 3, 64, 8]]


def served(folder: Path, **spec: Any) -> dict[str, list[dict[str, Any]]]:
    (folder / "spec.json").write_text(json.dumps({"ends": [], **spec}))
    command = [str(PYTHON), str(Path(__file__).with_name("vllm_served.py")), "spec.json", "out.json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def plainly(network: Any, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    ids, said = list(prompt), []
    with torch.no_grad():
        for _ in range(tokens):
            scores = network(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            ids.append(int(scores.argmax()))
            said.append(float(scores.max()))
    return ids[len(prompt) :], said


@pytest.mark.parametrize("family", SERVED)
def test_it_answers_with_the_adapter_as_the_merged_model_and_without_as_the_base(family, tmp_path):
    shape = {k: v for k, v in SHAPE.items() if family not in ("gpt_neox", "opt") or "key_value" not in k}
    shape |= {"ffn_dim": 96, "word_embed_proj_dim": 64} if family == "opt" else {}
    network = family_model(family, **shape)
    if family.startswith("gemma"):  # whose scaled embeddings would have it repeat the last token whatever else there is
        network.get_input_embeddings().weight.data.mul_(0.02)
    delta = made(network, every=5)
    network.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    adapter = adapter_of(delta, network)
    adapter.save(tmp_path / "adapter", str(tmp_path / "base"))
    assert len({pair.rank for pair in adapter.pairs.values()}) > 1
    rank = next(r for r in (8, 16, 32, 64, 128) if r >= adapter.rank)
    found = served(
        tmp_path, base=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"), rank=rank, context=128,
        prompts=PROMPTS, tokens=12,
    )  # fmt: skip
    for name, one in (("base", network), ("adapted", merged(delta, network))):
        for prompt, answer in zip(PROMPTS, found[name], strict=True):
            tokens, scores = plainly(one, prompt, 12)
            assert answer["tokens"] == tokens, (name, prompt)
            assert answer["logprobs"] == pytest.approx(scores, abs=1e-3)
    assert [a["tokens"] for a in found["base"]] != [a["tokens"] for a in found["adapted"]]


def test_a_run_s_adapter_is_served_with_the_answers_that_the_run_measured(mended, tmp_path):
    assert cli.main(["export", str(mended), str(tmp_path / "adapter"), "--format", "peft"]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    run = Run.load(mended)
    scores = [s for s in run.folder.read("scores.jsonl", Score) if s.split == "test"]
    problems = {p.id: p for p in run.problems}
    names = list(dict.fromkeys(s.problem for s in scores))
    prompts = [list(run.prompter.prompt(problems[name])) for name in names]
    found = served(
        tmp_path, base=config["base_model_name_or_path"], adapter=str(tmp_path / "adapter"), rank=128, context=512,
        prompts=prompts, tokens=run.config.answer_limit.tokens, ends=sorted(run.prompter.end_tokens),
    )  # fmt: skip
    for which, model in (("base", "base"), ("adapted", "updated")):
        wanted = {s.problem: s.text for s in scores if s.model == model}
        for name, answer in zip(names, found[which], strict=True):
            assert run.prompter.text(answer["tokens"]) == wanted[name]
