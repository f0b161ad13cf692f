"""The sizes of a model that decide what it costs: of one that is here, of a config.json, or of a known name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cca.errors import InputError

if TYPE_CHECKING:
    from cca.model.components import Layer

_GEMMA = {"head_dim": 256, "vocab_size": 256_000, "tie_word_embeddings": True, "max_position_embeddings": 8192}
_OLMO = {"vocab_size": 100_352, "tie_word_embeddings": False, "max_position_embeddings": 4096}


def _sizes(width: int, layers: int, heads: int, key_heads: int, neurons: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": neurons,
        **more,
    }


KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-2-2b": ("gemma2", _sizes(2304, 26, 8, 4, 9216, **_GEMMA)),
    "gemma-2-9b": ("gemma2", _sizes(3584, 42, 16, 8, 14_336, **_GEMMA)),
    "olmo-2-1124-7b": ("olmo2", _sizes(4096, 32, 32, 32, 11_008, **_OLMO)),
    "olmo-2-1124-13b": ("olmo2", _sizes(5120, 40, 40, 40, 13_824, **_OLMO)),
    "qwen2.5-3b": (
        "qwen2",
        _sizes(2048, 36, 16, 2, 11_008, vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=32_768),
    ),
    "qwen2.5-1.5b": (
        "qwen2",
        _sizes(1536, 28, 12, 2, 8960, vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=32_768),
    ),
    "qwen2.5-coder-0.5b": (
        "qwen2",
        _sizes(896, 24, 14, 2, 4864, vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=32_768),
    ),
    "smollm2-135m": (
        "llama",
        _sizes(576, 30, 9, 3, 1536, vocab_size=49_152, tie_word_embeddings=True, max_position_embeddings=8192),
    ),
    "llama-3.1-70b": (
        "llama",
        _sizes(8192, 80, 64, 8, 28_672, vocab_size=128_256, tie_word_embeddings=False, max_position_embeddings=131_072),
    ),
}
"""transformers' type, and the values of the public config.json."""


@dataclass(frozen=True)
class Shape:
    """Numbers of a model, over all its layers where nothing else is said.

    parameters: all. linear: those of the layers' products that a token passes (of a mixture the active experts').
    width: E. vocabulary: V. queries: H x D. key_values: 2 x K x D, what a token adds to the cache. activations: what a
    backward pass keeps for a token. widest: that of the largest layer. neurons: of the largest layer, active ones.
    heads: H of a layer. rows: numbers in all rows that components own. adapted: inputs and outputs of their matrices.
    components: C. eager: attention scores are written to memory.
    """

    type: str
    layers: int
    parameters: int
    linear: int
    width: int
    vocabulary: int
    queries: int
    key_values: int
    activations: float
    widest: float
    neurons: float
    heads: int
    rows: int
    adapted: int
    components: int
    eager: bool = False

    @property
    def head(self) -> int:
        """Numbers of the output embedding."""
        return self.width * self.vocabulary


def known_config(path: str) -> Any:
    """The configuration of a model whose name is known, such as ``owner/name-instruct`` or a file ``name-it.Q4.gguf``;
    None of another."""
    from transformers import AutoConfig

    name = re.sub(r"[.-](q\d\w*|bf16|f16|f32)$", "", path.rpartition("/")[2].lower().removesuffix(".gguf"))
    name = re.sub(r"-(it|instruct|chat|base)$", "", name.removeprefix("meta-"))
    if name not in KNOWN:
        return None
    kind, values = KNOWN[name]
    return AutoConfig.for_model(kind, **values)


def config_at(path: str) -> Any:
    """The configuration that `path` names: a known model, a config.json, or a folder or GGUF file that has one.

    Raises:
        InputError: there is none.
    """
    from cca.model.checks import check_model

    if (config := known_config(path)) is not None:
        return config
    where = Path(path)
    try:
        return check_model(str(where.parent if where.name == "config.json" else where), weights=False)
    except InputError as error:
        raise InputError(f"--shape {path}: {error}; or name one of {', '.join(KNOWN)}") from error


def shape_of(model_config: Any, model: Any) -> Shape:
    """The shape of `model`, which may be without weights.

    Raises:
        InputError: its components are not found.
    """
    import torch

    from cca.model.components import find_components

    parts, text = find_components(model), model_config.get_text_config()
    owned = parts.rows(torch.ones(parts.size, dtype=torch.bool))
    weights = {name: model.get_parameter(name) for name in owned}
    kept = [_activations(layer, text) for layer in parts.layers]
    query, key, value = (
        sum(getattr(layer, side).rows.numel() for layer in parts.layers) for side in ("query", "key", "value")
    )
    return Shape(
        type=model_config.model_type,
        layers=len(parts.layers),
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(_linear(layer, text) for layer in parts.layers),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        queries=query,
        key_values=key + value,
        activations=sum(kept),
        widest=max(kept),
        neurons=max(_neurons(layer, text) for layer in parts.layers),
        heads=max(len(layer.query) for layer in parts.layers),
        rows=sum(len(rows) for rows in owned.values()) * text.hidden_size,
        adapted=sum(sum(weight.shape[-2:]) for weight in weights.values()),
        components=parts.size,
        eager=bool(getattr(text, "attn_logit_softcapping", None)),
    )


def _linear(layer: "Layer", text: Any) -> int:
    """Numbers of a layer's matrices that a token passes."""
    shared = sum(p.numel() for p in layer.module.parameters() if p.dim() == 2)
    experts = [p for p in layer.module.parameters() if p.dim() == 3]
    return shared + round(sum(p.numel() / p.shape[0] * text.num_experts_per_tok for p in experts))


def _neurons(layer: "Layer", text: Any) -> float:
    """Neurons of a layer that a token passes."""
    from cca.model.experts import is_experts

    count = 0.0
    for part in layer.feed_forward:
        experts = part.down.get_parameter("gate_up_proj").shape[0] if is_experts(part.down) else 0
        count += len(part.up) * (text.num_experts_per_tok / experts if experts else 1.0)
    return count


def _activations(layer: "Layer", text: Any) -> float:
    """Numbers that the backward pass keeps for one token of one layer: what goes into and out of each product."""
    heads = layer.query.rows.numel() + layer.key.rows.numel() + layer.value.rows.numel()
    return 6 * text.hidden_size + 4 * heads + 4 * _neurons(layer, text)
