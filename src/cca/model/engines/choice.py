"""Which engine the options ask for."""

from typing import Any

from cca.model.engine import Engine, Transformers
from cca.model.options import EngineOptions, ModelOptions


def choose_engine(options: EngineOptions, model: ModelOptions, network: Any) -> Engine:
    """The engine of `options`, for the model of `model`, which is loaded here as `network`. Nothing is started yet."""
    if options.name == "vllm":
        from cca.model.engines.vllm_engine import Vllm

        return Vllm(options, model, network)
    return Transformers(network)


def check_engine(options: EngineOptions, model: ModelOptions) -> None:
    """See, before anything slow, that the engine of `options` can work.

    Raises:
        InputError: something that it needs is not installed, or it cannot take the model.
    """
    if options.name == "vllm":
        from cca.model.engines.vllm_check import check_vllm

        check_vllm(options, model)
