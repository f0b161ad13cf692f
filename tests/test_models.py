"""Loading: what is refused before anything slow, and layers that lie on the disk between passes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CIRCUIT, last_delta, random_pivots
from families import VOCABULARY, family_config, family_model

from cca import cli
from cca.errors import InputError
from cca.method.circuit import learn_gates
from cca.model.bundled import BUNDLED
from cca.model.checks import check_model, end_tokens, load_tokenizer
from cca.model.components import find_components
from cca.model.open import open_model
from cca.model.recompute import is_offloaded, recomputed
from cca.model.verify import verify_components


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny model of `family` with the bundled tokenizer, as save_pretrained writes it."""
    tokenizer = load_tokenizer("bundled")
    model = family_model(family, **{"vocab_size": len(tokenizer), "max_position_embeddings": 512, **changes})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refused(tmp_path: Path, capsys, model: Path, *parts: str, settings: tuple[str, ...] = ()) -> None:
    """`cca run` on `model` stops with exit code 2 and a message, before there is a trace."""
    settings = ("problems.templates=[16, 43]", "evaluation.transfer=[]", "evaluation.retention=[]", *settings)
    arguments = ["run", "--model", str(model), "--out", str(tmp_path / "run"), "--quiet"]
    capsys.readouterr()
    assert cli.main([*arguments, *(part for s in settings for part in ("--set", s))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cca: ")
    for part in parts:
        assert part in error
    assert not (tmp_path / "run" / "traces.jsonl").exists()


# ---- bad input ----


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_quantised_model_is_refused(tmp_path, capsys, method):
    folder = saved(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refused(tmp_path, capsys, folder, f"is quantised ({method})", "unquantised")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "num_experts"])
def test_a_count_beyond_all_models_is_refused_before_something_of_each_is_made(tmp_path, capsys, key):
    folder = saved(tmp_path / "m", "qwen3_moe" if key == "num_experts" else "llama")
    config = json.loads((folder / "config.json").read_text())
    config[key] = 10**30
    (folder / "config.json").write_text(json.dumps(config))
    refused(tmp_path, capsys, folder, f"{key} in its config.json is 1,000,000", "more than any model has")


def test_a_context_shorter_than_the_prompt_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    short = saved(tmp_path / "m", "gpt2", max_position_embeddings=20)
    monkeypatch.setattr("cca.model.network.load_network", lambda *_: pytest.fail("weights were read"))
    refused(tmp_path, capsys, short, "the longest prompt has", "context of 20")
    refused(
        tmp_path, capsys, BUNDLED, "traces.max_new_tokens is 1000", settings=("traces.max_new_tokens=1000",)
    )  # in the same folder, in which nothing was begun


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_answers_so_long_that_others_in_a_pass_would_turn_with_them_are_refused(kind, tmp_path, capsys):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    folder = saved(tmp_path / "m", "llama", rope_parameters=rope)
    refused(tmp_path, capsys, folder, "after 128", f"({kind})", "lower traces.max_new_tokens")


def test_a_model_with_code_of_its_own_is_refused_unless_it_is_trusted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OWN_CODE_RAN", raising=False)
    folder = saved(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "import os\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "os.environ['OWN_CODE_RAN'] = 'yes'\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    refused(tmp_path, capsys, folder, "Python code of its own", "model.trust_remote_code=true")
    assert "OWN_CODE_RAN" not in os.environ
    loaded = open_model(folder, device="cpu", trust_remote_code=True)
    assert type(loaded.network).__name__ == "Own"
    assert os.environ.pop("OWN_CODE_RAN") == "yes"


def test_a_model_that_cannot_be_placed_is_refused_before_the_first_trace(tmp_path, capsys):
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer("bundled")
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "ffn_dim": 16, "eos_token_id": 0, "max_position_embeddings": 512}
    for kind, message in (
        ("bloom", "takes no position_ids"),
        ("xglm", "attention of model.layers.0 (XGLMAttention) does not call transformers' attention interface"),
    ):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        refused(tmp_path, capsys, tmp_path / kind, message)


def test_an_attention_function_that_is_not_installed_is_named(tmp_path, capsys):
    folder = saved(tmp_path / "m", "llama")
    refused(tmp_path, capsys, folder, "flash_attention_2", settings=('model.attention="flash_attention_2"',))


def test_soft_capped_attention_is_eager_and_refused_where_it_would_be_left_out(tmp_path, capsys):
    folder = saved(tmp_path / "m", "gemma2")
    assert open_model(folder, device="cpu").network.config._attn_implementation == "eager"
    refused(tmp_path, capsys, folder, "soft-caps its attention", settings=('model.attention="sdpa"',))


def test_a_model_without_an_end_token_is_refused(tmp_path):
    tokenizer = load_tokenizer("bundled")
    tokenizer.eos_token = None
    config = family_config("llama", eos_token_id=None)
    with pytest.raises(InputError, match="end-of-text token"):
        end_tokens(str(tmp_path), None, config, tokenizer)
    config.eos_token_id = [5, 7]
    assert end_tokens(str(tmp_path), None, config, tokenizer).all == {5, 7}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_before_the_first_trace(tmp_path, capsys, value):
    folder = saved(tmp_path / "m", "llama")
    model = family_model("llama", vocab_size=len(load_tokenizer("bundled")), max_position_embeddings=512)
    model.model.layers[2].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder)
    refused(tmp_path, capsys, folder, "model.layers.2.mlp.up_proj.weight has values that are not finite in float32")


def test_the_check_of_a_model_reads_no_weights(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    assert check_model(str(tmp_path / "m"), weights=False).model_type == "qwen2"
    with pytest.raises(InputError, match="holds no weights"):
        check_model(str(tmp_path / "m"))


# ---- layers on several devices ----


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_stages_2_and_3_are_the_same_with_layers_on_the_disk(tmp_path, family):
    folder, layers = saved(tmp_path / "m", family), "transformer.h" if family == "gpt2" else "model.layers"
    whole = open_model(folder, device="cpu")
    places = {name: "cpu" for name, m in whole.network.named_modules() if name and not list(m.children())}
    places = {name: place for name, place in places.items() if not name.startswith(layers)}
    places |= {f"{layers}.0": "cpu", f"{layers}.1": "disk", f"{layers}.2": "disk"}
    spread = open_model(folder, device="cpu", device_map=places)
    assert is_offloaded(spread.network)
    assert not is_offloaded(whole.network)
    pivots = random_pivots(6, VOCABULARY)
    circuit = learn_gates(whole.network, whole.components, pivots, CIRCUIT)
    kept: dict[str, int] = {}
    for name, loaded in (("whole", whole), ("spread", spread)):
        sizes: list[int] = []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            again = learn_gates(loaded.network, loaded.components, pivots, CIRCUIT)
        torch.testing.assert_close(again.gates, circuit.gates, atol=1e-6, rtol=0)
        kept[name] = sum(sizes)
    assert kept["spread"] < 0.8 * kept["whole"], "the weights of offloaded layers are not held for the backward pass"
    rows = whole.components.rows(circuit.gates > 0.8)
    ours = last_delta(spread.network, rows, pivots, recompute=[layer.module for layer in spread.components.layers])
    for name, plain in last_delta(whole.network, rows, pivots).weights.items():
        torch.testing.assert_close(ours.weights[name].values, plain.values, atol=1e-6, rtol=1e-5)
    ids = torch.tensor([[3, 4, 5, 6]])
    with ours.active(whole.network):
        applied = whole.network(input_ids=ids).logits
    with ours.active(spread.network):
        torch.testing.assert_close(spread.network(input_ids=ids).logits, applied, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="offloaded"):
        ours.merge(spread.network)


def test_recomputing_layers_drops_their_activations_and_restores_the_model():
    model = family_model("llama")
    layers = [layer.module for layer in find_components(model).layers]
    kept: list[int] = []

    def count() -> int:
        sizes: list[int] = []
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor
        embeddings = model.get_input_embeddings()(torch.arange(12)[None]).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(inputs_embeds=embeddings, use_cache=False)
        return sum(sizes)

    kept.append(count())
    with pytest.raises(RuntimeError, match="inside"), recomputed(layers):
        kept.append(count())
        raise RuntimeError("inside")
    assert kept[1] < kept[0] / 3
    assert count() == kept[0]


@pytest.mark.parametrize("seed", [0, 1, 2, 10])
def test_a_model_with_nearly_silent_neurons_is_placed_all_the_same(seed):
    model = open_model("bundled", device="cpu")
    torch.manual_seed(seed)
    for parameter in model.network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    verify_components(model.network, model.components)
