"""The engine of one process."""

from typing import Any

from cca.model.engine import Transformers
from cca.model.engines.vllm_engine import Vllm
from cca.model.network import open_network
from cca.model.options import EngineOptions, ModelOptions


def local_engine(options: EngineOptions, model: ModelOptions, network: Any = None) -> Transformers | Vllm:
    """The engine of `options` for the model of `model`. network: that model, where it is loaded here already."""
    if options.name == "transformers":
        return Transformers(open_network(model) if network is None else network)
    # vLLM has the GPU; here only the names and the numbers of the weights are needed
    return Vllm(options, model, open_network(model.changed({"device": "cpu"})) if network is None else network)
