"""Which engine the options ask for."""

from pathlib import Path
from typing import Any

from cca.model.bundled import is_bundled
from cca.model.engine import Engine
from cca.model.engines.local import local_engine
from cca.model.engines.replicated import Replicated, check_ray
from cca.model.engines.vllm_check import check_vllm
from cca.model.options import EngineOptions, ModelOptions


def choose_engine(options: EngineOptions, model: ModelOptions, network: Any) -> Engine:
    """The engine of `options`, for the model of `model`, which is loaded here as `network`. Nothing is started yet."""
    if not options.workers:
        return local_engine(options, model, network)
    dtype, path = str(network.dtype).removeprefix("torch."), model.path
    if not is_bundled(path) and Path(path).exists():  # processes have working directories of their own
        path = str(Path(path).absolute())
    return Replicated(options, model.changed({"dtype": dtype, "path": path}))


def check_engine(options: EngineOptions, model: ModelOptions) -> None:
    """See, before anything slow, that the engine of `options` can work.

    Raises:
        InputError: something that it needs is not installed, or it cannot take the model.
    """
    if options.name == "vllm":
        check_vllm(options, model)
    check_ray(options)
