"""The engine of one process."""

from typing import Any

from cca.model.engine import Engine, Transformers
from cca.model.network import open_network
from cca.model.options import EngineOptions, ModelOptions


def local_engine(options: EngineOptions, model: ModelOptions, network: Any = None) -> Engine:
    """The engine of `options` for the model of `model`. network: that model, where it is loaded."""
    del options
    return Transformers(open_network(model) if network is None else network)
