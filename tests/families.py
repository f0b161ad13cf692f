"""Every supported family as a tiny random model, with as many kinds of attention as the family allows."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cca.model.checks import attention_for
from cca.model.components import Components

DEVICE = os.environ.get("CCA_TEST_DEVICE", "cpu")
"""Where the tests of families run."""
END = frozenset({0})
VOCABULARY = 60
GROUPS = {"mha": 4, "gqa": 2, "mqa": 1}
_ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "pad_token_id": None,
    "bos_token_id": None,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": _SLIDING,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "layer_types": _SLIDING, "query_pre_attn_scalar": 16},
    "olmo2": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 8,
    },
    "starcoder2": {"sliding_window": 6},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 32},
}
MIXTURES = ("mixtral", "qwen3_moe", "qwen2_moe")
ONLY_MULTI_HEAD = ("gpt2", "gpt_neox", "opt")
WITH_ONE_KEY_HEAD_TOO = ("llama", "gemma2", "phi3", "mixtral")
"""Of each layout one: plain, soft-capped, fused, a mixture."""
CASES = [
    (family, groups)
    for family in FAMILIES
    for groups in GROUPS
    if groups == "mha" or (family not in ONLY_MULTI_HEAD and (groups == "gqa" or family in WITH_ONE_KEY_HEAD_TOO))
]


def family_config(family: str, groups: str = "mha", **changes: Any) -> Any:
    """The tiny configuration of `family`."""
    shape = _ROTARY | FAMILIES[family]
    if family not in ONLY_MULTI_HEAD:
        shape = shape | {"num_key_value_heads": GROUPS[groups]}
    if family == "gpt2":
        shape = shape | {"n_inner": shape["intermediate_size"]}
    return AutoConfig.for_model(family, **(shape | changes))


def family_model(family: str, groups: str = "mha", seed: int = 0, **changes: Any) -> Any:
    """A random model of `family` whose biases and norms are random too, so that nothing hides behind a zero or one."""
    torch.manual_seed(seed)
    config = family_config(family, groups, **changes)
    attention = attention_for(config, None, family)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.requires_grad_(False)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def some_rows(parts: Components) -> dict[str, torch.Tensor]:
    return parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(2)) > 0.7)
