"""Load a model's network, where it computes."""

import atexit
import shutil
import sys
import tempfile
from functools import partial
from typing import Any

from cca.errors import InputError
from cca.model.bundled import location
from cca.model.checks import attention_for, check_model, check_network
from cca.model.gguf.header import is_gguf, open_gguf
from cca.model.gguf.weights import gguf_network
from cca.model.options import ModelOptions
from cca.model.precision import choose_dtype, main_device
from cca.model.weights import empty_model, load_network, some


def open_network(options: ModelOptions, config: Any = None) -> Any:
    """The network of `options`, with its weights, where it computes; config: what `check_model` gave, where it did.

    Raises:
        InputError: there is no such model, or not all of its weights.
    """
    import torch

    config = config or check_model(options.path, trust_remote_code=options.trust_remote_code)
    path, device_map = options.path, options.device_map
    settings: dict[str, Any] = {
        "dtype": getattr(torch, _dtype(options, config)),
        "device_map": device_map,
        "attn_implementation": attention_for(config, options.attention, path),
    }
    if is_gguf(path):
        loader = partial(gguf_network, open_gguf(path), empty_model(config, path))
    else:
        loader, settings["trust_remote_code"] = None, options.trust_remote_code
    if device_map is not None:
        settings["offload_folder"] = tempfile.mkdtemp(prefix="cca-offload-")
        atexit.register(shutil.rmtree, settings["offload_folder"], ignore_errors=True)
    asked = f"attention {options.attention}, device_map {device_map}"
    network, unused = load_network(location(path), settings, asked, loader)
    check_network(network, path)  # a device_map of auto may have found other devices
    if unused:
        print(f"warning: {path} has weights that the model does not use: {some(unused)}", file=sys.stderr, flush=True)
    if device_map is None:
        network.to(main_device(options.device, None))
    elif network.device.type == "meta":
        raise InputError(f"the embeddings of {path} fit on no device beside the rest; choose a smaller model")
    return network.eval().requires_grad_(False)


def _dtype(options: ModelOptions, config: Any) -> str:
    """The dtype that `options` ask for; what ``auto`` comes to is measured, and said."""
    if options.dtype != "auto":
        return options.dtype
    choice = choose_dtype(config, main_device(options.device, options.device_map))
    print(f"model.dtype auto: {choice.dtype} ({choice.why})", file=sys.stderr, flush=True)
    return choice.dtype
