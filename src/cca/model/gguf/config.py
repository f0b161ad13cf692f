"""The configuration of the model in a GGUF file: each word that the header says of it has a place, or it is refused."""

import math
from collections.abc import Mapping
from typing import Any

from cca.errors import InputError
from cca.model.gguf.header import GgufFile
from cca.model.weights import first_line

TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "olmo2": "olmo2",
}
"""Architectures, and what transformers calls them. Mistral's models are of llama here."""
_NEEDED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {"final_logit_softcapping": "final_logit_softcapping", "attn_logit_softcapping": "attn_logit_softcapping"}
_OF_SOME = {"gemma2": {**_WINDOW, **_CAPS}, "gemma3": {**_WINDOW, **_CAPS}, "phi3": _WINDOW}
"""What only some architectures have a place for."""
_WITH_A_SCALE_OF_ITS_OWN = {"gemma2": 46, "gemma3": 62}
"""Layers of the largest model of a family, whose attention is scaled by width over heads; no file says so."""
FREQUENCIES = "rope_freqs.weight"


def gguf_config(file: GgufFile, frequencies: Any = None) -> Any:
    """The configuration, as transformers has it, of the model in `file`.

    frequencies: the numbers (D/2,) of the tensor `FREQUENCIES`, where the file has it.

    Raises:
        InputError: the architecture is not known, or the header says something of the model that transformers has no
            place for.
    """
    from transformers import AutoConfig

    architecture, path = file.architecture, file.path
    if architecture not in TYPES:
        raise InputError(
            f"{path} is of architecture {architecture}, which cca does not read from GGUF files; known are "
            f"{', '.join(TYPES)}. Set model.path to the folder or hub name that the file was made from"
        )
    said = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.fields.items()
        if key.startswith(f"{architecture}.")
    }
    if absent := [key for key in _NEEDED if key not in said]:
        raise InputError(f"{path} does not say {architecture}.{absent[0]}; fetch it again")
    settings = {name: said.pop(key) for key, name in (_NEEDED | _OF_SOME.get(architecture, {})).items() if key in said}
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    settings["num_key_value_heads"] = said.pop("attention.head_count_kv", heads)
    layers = settings["num_hidden_layers"]
    if isinstance(layers, int) and layers > len(file.tensors):
        raise InputError(f"{path} says {architecture}.block_count = {layers} and has fewer tensors; fetch it again")
    try:
        if settings["num_key_value_heads"] == 0:
            raise ValueError("it has no key heads")
        settings["head_dim"] = said.pop("attention.key_length", width // heads)
        settings |= _vocabulary(file) | _rotation(architecture, settings["head_dim"], said, frequencies)
        if architecture in _WITH_A_SCALE_OF_ITS_OWN:
            largest = layers == _WITH_A_SCALE_OF_ITS_OWN[architecture]
            settings["query_pre_attn_scalar"] = width // heads if largest else settings["head_dim"]
        _check_rest(file, said, settings)
        if not settings.get("sliding_window"):  # some files say 0 where there is none
            settings |= _without_window(architecture, layers)
        return AutoConfig.for_model(TYPES[architecture], **settings)
    except InputError:
        raise
    except Exception as error:  # transformers says in many ways that a value is not what it should be
        raise InputError(f"{path} describes no {architecture} model: {first_line(error)}; fetch it again") from error


def _without_window(architecture: str, layers: int) -> dict[str, Any]:
    """What keeps transformers from giving a window where a file names none."""
    if architecture == "gemma3":
        return {"layer_types": ["full_attention"] * layers}
    return {"sliding_window": None} if architecture == "phi3" else {}


def _vocabulary(file: GgufFile) -> dict[str, Any]:
    tensors = file.tensors
    if "token_embd.weight" not in tensors:
        raise InputError(f"{file.path} lacks the tensor token_embd.weight; name the file of a whole model")
    vocabulary = tensors["token_embd.weight"].shape[0]
    return {
        "vocab_size": vocabulary,
        "tie_word_embeddings": "output.weight" not in tensors,
        **{f"{role}_token_id": file.token_id(role, vocabulary) for role in ("bos", "eos", "pad")},
    }


def _rotation(architecture: str, head_dim: int, said: dict[str, Any], frequencies: Any) -> dict[str, Any]:
    """Of rotary embeddings. What has a place is taken out of `said`."""
    base = said.pop("rope.freq_base", 10000.0)
    turned = said.pop("rope.dimension_count", head_dim)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    factor = said.pop("rope.scaling.factor", 1.0)
    if (kind := said.pop("rope.scaling.type", "linear")) not in ("linear", "none"):
        said["rope.scaling.type"] = kind  # yarn and others
    elif kind == "linear" and factor not in (0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    for silent in ("rope.scaling.finetuned", "rope.scaling.original_context_length"):
        said.pop(silent, None)
    if turned != head_dim and architecture == "phi3":
        rope["partial_rotary_factor"] = turned / head_dim
    elif turned != head_dim:
        said["rope.dimension_count"] = turned
    if frequencies is not None:
        rope |= _llama3(frequencies, base, head_dim)
    if architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": said.pop("rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    return {"rope_parameters": rope}


def _llama3(found: Any, base: float, head_dim: int) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later, which a file holds as numbers by which frequencies are divided.

    Raises:
        InputError: the numbers are of no such scaling.
    """
    import numpy as np

    length, low, high, factor = 8192, 1.0, 4.0, float(max(found))
    waves = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    if len(found) != len(waves) or not np.allclose(found, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise InputError(
            f"its tensor {FREQUENCIES} scales rotations in another way than Llama 3's, which has no place in "
            "transformers; choose a model folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def _check_rest(file: GgufFile, said: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """See that what the header says besides is what `settings` say, or says nothing.

    Raises:
        InputError: it is not.
    """
    same = {
        "vocab_size": settings["vocab_size"],
        "attention.value_length": settings["head_dim"],
        "attention.causal": True,
    }
    for key, value in said.items():
        if value != same[key] if key in same else value not in (0, "", [], "none"):
            raise InputError(
                f"{file.path} says {file.architecture}.{key} = {value!r}, for which {TYPES[file.architecture]} of "
                "transformers has no place; set model.path to the folder or hub name that the file was made from"
            )
    if lists := [name for name, value in settings.items() if isinstance(value, list)]:
        raise InputError(
            f"{file.path} has another {lists[0]} in each layer, for which {TYPES[file.architecture]} of transformers "
            "has no place; choose another model"
        )
