"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from families import family_model
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from tokenizers_made import made

from cca.model.gguf.config import TYPES

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ARCHITECTURES = {name: architecture for architecture, name in TYPES.items()}
Tensors = dict[str, tuple[np.ndarray, GGMLQuantizationType]]


def gguf_model(family: str = "llama", tokenizer: Any = None, **changes: Any) -> Any:
    """A random model whose rows are whole blocks of 32 numbers."""
    tokenizer = tokenizer or made("byte-level")
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "intermediate_size": 64, "max_position_embeddings": 512}
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if family == "gemma3_text":  # a file does not say which layers are wide: every sixth is
        shape |= {"num_hidden_layers": 6, "layer_types": None}
    return family_model(family, "gqa", **(shape | ids | changes))


def gguf_tensors(network: Any, kind: GGMLQuantizationType = F32) -> Tensors:
    """The weights of `network` as a file has them; those of one dimension are F32 always."""
    config, architecture = network.config, ARCHITECTURES[network.config.model_type]
    known: MODEL_ARCH = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(known, config.num_hidden_layers)
    found: Tensors = {}
    for weight, values in network.named_parameters():
        module, _, suffix = weight.rpartition(".")
        array = values.detach().numpy()
        if architecture == "llama" and ("q_proj" in weight or "k_proj" in weight):
            heads = config.num_attention_heads if "q_proj" in weight else config.num_key_value_heads
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        if architecture.startswith("gemma") and weight.endswith("norm.weight"):
            array = array + 1
        found[f"{names.get_name(module)}.{suffix}"] = (array, kind if array.ndim > 1 else F32)
    return found


def gguf_fields(network: Any) -> dict[str, Any]:
    """What a file says of the model."""
    config = network.config
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    said = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if network.config.model_type in ("gemma2", "gemma3_text", "phi3") and config.sliding_window:
        said["attention.sliding_window"] = config.sliding_window
    if network.config.model_type == "gemma2":
        said["attn_logit_softcapping"] = config.attn_logit_softcapping
        said["final_logit_softcapping"] = config.final_logit_softcapping
    return said


def tokenizer_fields(tokenizer: Any, pre: str = "gpt-2", user_defined: Collection[str] = ()) -> dict[str, Any]:
    """What a file says of a byte-level or sentencepiece tokenizer."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model, special = described["model"], {t["content"] for t in described["added_tokens"] if t["special"]}
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    kinds = [4 if t in user_defined else 3 if t in special else 6 if t.startswith("<0x") else 1 for t in vocabulary]
    byte_level = not model["byte_fallback"]
    said: dict[str, Any] = {
        "model": "gpt2" if byte_level else "llama",
        "pre": pre if byte_level else "default",
        "tokens": vocabulary,
        "token_type": kinds,
        **{f"{name}_token_id": getattr(tokenizer, f"{short}_token_id") for name, short in _IDS.items()},
    }
    if byte_level:
        return said | {"merges": [" ".join(pair) for pair in model["merges"]]}
    made_by = {"".join(pair): float(-i) for i, pair in enumerate(model["merges"])}
    return said | {"scores": [made_by.get(token, -1e6) for token in vocabulary]}


_IDS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def write_gguf(
    path: Path,
    network: Any,
    tokenizer: Any = None,
    kind: GGMLQuantizationType = F32,
    *,
    fields: Mapping[str, Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Path:
    """Write `network` and `tokenizer`.

    fields, tokens: what to say of the model and the tokenizer instead; None leaves a field out.
    """
    architecture = ARCHITECTURES[network.config.model_type]
    said = {f"{architecture}.{key}": value for key, value in gguf_fields(network).items()} | dict(fields or {})
    described = tokenizer_fields(tokenizer or made("byte-level")) | {"chat_template": CHAT} | dict(tokens or {})
    for key, value in described.items():
        said["tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"] = value
    writer = GGUFWriter(path, said.pop("general.architecture", architecture))
    for key, value in said.items():
        if value is not None:
            _add(writer, key, value)
    for name, (array, of) in change(gguf_tensors(network, kind)).items():
        writer.add_tensor(name, array if of == F32 else quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)
