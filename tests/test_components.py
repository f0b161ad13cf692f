"""What cca cannot place it refuses by name, and a model that only looks like a known one is found out."""

from typing import Any

import pytest
import torch
from families import family_config, family_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cca.errors import InputError
from cca.model import components as layouts
from cca.model.components import find_components
from cca.model.gates import gated
from cca.model.verify import verify_components
from cca.model.weights import empty_model


def refused(model: Any, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        verify_components(model, find_components(model))
    for part in parts:
        assert part in str(caught.value)


def other(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float().eval()


def test_rows_of_a_fused_block_projection_are_queries_then_keys_then_values():
    layer = find_components(family_model("phi3", "gqa")).layers[0]
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert {layer.query.weight, layer.key.weight, layer.value.weight} == {name}
    assert layer.query.rows[1].tolist() == list(range(8, 16))
    assert layer.key.rows[0].tolist() == list(range(32, 40))
    assert layer.value.rows[1].tolist() == list(range(56, 64))
    assert layer.feed_forward[0].up.rows[3].tolist() == [24 + 3], "the gate's rows come first"


def test_rows_of_an_interleaved_projection_are_each_heads_query_key_value():
    layer = find_components(family_model("gpt_neox")).layers[0]
    assert layer.query.rows[1].tolist() == list(range(24, 32))
    assert layer.key.rows[1].tolist() == list(range(32, 40))
    assert layer.value.rows[1].tolist() == list(range(40, 48))


def test_a_neuron_of_a_mixture_is_one_row_of_one_expert():
    up = find_components(family_model("mixtral")).layers[0].feed_forward[0].up
    assert up.weight == "model.layers.0.mlp.experts.gate_up_proj"
    assert len(up) == 3 * 24
    assert up.rows[24 + 5].tolist() == [48 + 24 + 5], "expert 1, after its own gate rows"


def test_a_shared_expert_has_neurons_beside_those_of_the_experts():
    parts = find_components(family_model("qwen2_moe")).layers[0].feed_forward
    assert sorted(len(part.up) for part in parts) == [8, 48]


def test_layers_without_attention_are_refused_with_what_they_have():
    model = other("mamba", vocab_size=20, hidden_size=16, num_hidden_layers=2)
    refused(model, "backbone.layers.0 (MambaBlock)", "no attention", "mixer (MambaMixer)")


def test_hybrids_are_refused_at_the_first_layer_that_does_not_fit():
    config = AutoConfig.for_model("lfm2", vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config.num_key_value_heads = 1
    with pytest.raises(InputError, match=r"model\.layers\.0 \(Lfm2DecoderLayer\)"):
        find_components(empty_model(config, "m"))


def test_an_unknown_feed_forward_is_refused_by_its_layer():
    model = other("codegen", vocab_size=20, n_embd=16, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)
    refused(model, "transformer.h.0 (CodeGenBlock)")


def test_attention_outside_of_the_interface_is_refused():
    model = other("bloom", vocab_size=20, hidden_size=16, n_layer=1, n_head=2)
    refused(model, "attention of transformer.h.0 (BloomAttention)", "attention interface")


def test_experts_in_another_layout_are_refused_by_name():
    config = AutoConfig.for_model("gpt_oss", num_hidden_layers=1, hidden_size=16, num_local_experts=2, head_dim=8)
    with pytest.raises(InputError, match=r"mlp\.experts \(GptOssExperts\)"):
        find_components(empty_model(config, "m"))


def test_a_wrapped_projection_is_refused():
    model = family_model("llama")

    class Wrapped(nn.Linear):
        pass

    model.model.layers[1].self_attn.k_proj = Wrapped(32, 32, bias=False)
    refused(model, "model.layers.1.self_attn.k_proj is a Wrapped")


def test_a_fused_layout_that_is_taken_for_another_is_found_out(monkeypatch):
    monkeypatch.setattr(layouts, "BLOCKS", ("query_key_value",))
    monkeypatch.setattr(layouts, "INTERLEAVED", ("qkv_proj",))
    refused(family_model("gpt_neox"), "head", "gpt_neox.layers.0", "query_key_value", "cannot place this layout")
    refused(family_model("phi3", "gqa"), "head", "model.layers.0", "qkv_proj", "cannot place this layout")


def test_a_fused_feed_forward_in_the_other_order_is_found_out():
    model = family_model("phi3")

    def up_first(self, hidden):
        up, gate = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))

    for layer in model.model.layers:
        layer.mlp.forward = up_first.__get__(layer.mlp)
    refused(model, "model.layers.0.mlp.gate_up_proj.weight", "not linear")


def test_neurons_that_share_rows_are_found_out():
    model = family_model("llama")

    def summed(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).cumsum(-1))

    for layer in model.model.layers:
        layer.mlp.forward = summed.__get__(layer.mlp)
    refused(model, "neurons of model.layers.0.mlp.up_proj.weight", "also depends on row")


def test_a_model_that_remembers_more_than_keys_and_values_is_found_out():
    model = family_model("llama")
    layer = model.model.layers[1]
    layer.mlp.register_forward_hook(lambda _, __, out: out + out.cumsum(1))
    refused(model, "LlamaForCausalLM", "other logits from cached keys and values")


def test_the_stock_model_passes_the_checks_that_the_changed_ones_fail():
    for family in ("llama", "phi3", "gpt_neox"):
        model = family_model(family)
        verify_components(model, find_components(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "phi3", "mixtral"])
def test_the_checks_pass_in_sixteen_bits(family, dtype):
    model = family_model(family).to(dtype)
    verify_components(model, find_components(model))


def test_a_model_without_a_list_of_layers_is_refused():
    config = family_config("llama")
    model = AutoModelForCausalLM.from_config(config)
    model.model.layers = model.model.layers[:2]
    with pytest.raises(InputError, match=r"LlamaForCausalLM: LlamaModel has no list of its decoder layers"):
        find_components(model)


# ---- models beyond those that docs/method.md tabulates ----

WORK = [
    "arcee",
    "biogpt",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "ernie4_5",
    "exaone",
    "flex_olmo",
    "gemma",
    "glm",
    "glm4",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "minimax_m2",
    "ministral",
    "nemotron",
    "olmo",
    "olmo3",
    "olmoe",
    "phi",
    "phimoe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "vaultgemma",
]
DO_NOT = [
    "bloom",
    "deepseek_v3",
    "falcon_mamba",
    "gptj",
    "lfm2",
    "mamba",
    "minicpm3",
    "openai-gpt",
    "qwen3_5_text",
    "qwen3_next",
    "rwkv",
]
_SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
    "head_dim": 8,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 8,
}


def generic(kind: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {kind}")
    return other(kind, **_SHAPE)


@pytest.mark.parametrize("kind", WORK)
def test_models_beyond_the_table_pass_the_checks_and_neutral_gates_change_nothing(kind):
    model = generic(kind)
    parts = find_components(model)
    verify_components(model, parts)
    ids = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids).logits
    with gated(model, parts, torch.full((parts.size,), 0.5)):
        torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", DO_NOT)
def test_models_that_cannot_be_gated_exactly_are_refused(kind):
    model = generic(kind)
    with pytest.raises(InputError, match=r"layers|transformer\.h|blocks|\bmodel\b"):
        verify_components(model, find_components(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, in this model's code of transformers 5.16
def test_a_fused_projection_of_one_key_head_is_placed():
    model = other("gpt_bigcode", vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    layer = find_components(model).layers[0]
    assert layer.sizes[:3] == (4, 1, 1)
    assert layer.value.rows[0].tolist() == list(range(40, 48))
    verify_components(model, find_components(model))
