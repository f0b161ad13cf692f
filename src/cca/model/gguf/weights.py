"""The weights of a GGUF file, dequantised, under the names and in the order of rows that transformers has."""

from typing import Any

from cca.errors import InputError
from cca.model.gguf.config import FREQUENCIES, gguf_config
from cca.model.gguf.header import GgufFile
from cca.model.gguf.tokenizer import gguf_generation
from cca.model.weights import some


def read_config(file: GgufFile) -> Any:
    """The configuration of the model in `file`. Raises as `gguf_config`."""
    return gguf_config(file, _numbers(file, FREQUENCIES) if FREQUENCIES in file.tensors else None)


def check_gguf_weights(file: GgufFile, network: Any) -> dict[str, str]:
    """See that the tensors of `file` are the weights of `network` (on any device); returns weight -> tensor.

    Raises:
        InputError: one is missing, of another shape, or more than the network has; the message names it.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    known: MODEL_ARCH = next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(known, network.config.num_hidden_layers)
    found: dict[str, str] = {}
    for weight, values in network.named_parameters():
        module, _, suffix = weight.rpartition(".")
        tensor = f"{names.get_name(module) or module}.{suffix}"
        found[weight] = tensor
        if tensor in file.tensors and (shape := file.tensors[tensor].shape) != tuple(values.shape):
            raise InputError(
                f"{tensor} of {file.path} is {list(shape)} where {list(values.shape)} is needed; fetch the file again"
            )
    if missing := [tensor for tensor in found.values() if tensor not in file.tensors]:
        raise InputError(
            f"{file.path} lacks {len(missing)} of the {len(found)} tensors of {_kind(network)}, {some(missing)}; fetch "
            "the whole model"
        )
    if left := sorted(file.tensors.keys() - set(found.values()) - {FREQUENCIES}):
        raise InputError(
            f"{file.path} has tensors for which {_kind(network)} of transformers has no place, {some(left)}; set "
            "model.path to the folder or hub name that the file was made from"
        )
    return found


def gguf_weights(file: GgufFile, network: Any, dtype: Any) -> dict[str, Any]:
    """The weights of `network` (on any device) from `file`, as `dtype`. Raises as `check_gguf_weights`."""
    import torch

    found: dict[str, Any] = {}
    for weight, tensor in check_gguf_weights(file, network).items():
        values = torch.from_numpy(_numbers(file, tensor))
        found[weight] = _as_transformers(file.architecture, weight, values, network.config).to(dtype, copy=True)
    return found


def _numbers(file: GgufFile, tensor: str) -> Any:
    """A tensor as a float32 array of its shape."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    place = file.tensors[tensor]
    rows = np.fromfile(file.path, np.uint8, place.size, offset=place.start).reshape(*place.shape[:-1], -1)
    return np.ascontiguousarray(dequantize(rows, GGMLQuantizationType(place.type)), np.float32).reshape(place.shape)


def _as_transformers(architecture: str, weight: str, values: Any, config: Any) -> Any:
    """Undo what a converter did to a weight."""
    if architecture == "llama" and weight.endswith(("q_proj.weight", "k_proj.weight")):
        # rotated there in neighbouring pairs of rows, here in halves of a head
        heads = config.num_attention_heads if "q_proj" in weight else config.num_key_value_heads
        return values.reshape(heads, -1, 2, values.shape[-1]).transpose(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and weight.endswith("norm.weight"):
        return values - 1  # which the model adds
    return values


def _kind(network: Any) -> str:
    return type(network).__name__


def gguf_network(file: GgufFile, network: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The model of `file` with its weights, and what transformers reports of the load.

    network: that model without weights. settings: of ``from_pretrained``. Raises as `check_gguf_weights`.
    """
    weights = gguf_weights(file, network, settings["dtype"])
    loaded, report = type(network).from_pretrained(None, config=network.config, state_dict=weights, **settings)
    loaded.generation_config = gguf_generation(file)
    return loaded, report
