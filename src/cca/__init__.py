"""Constructive Circuit Amplification: find the pivotal token, find the circuit, update only its rows.

The method is that of arXiv 2512.16914. Data flows one way: problems -> traces -> pivots -> circuit -> update ->
evaluation. Stage by stage, on a model of your own:

    model = cca.open_model("bundled")
    problems = cca.load_problems("gsm-symbolic", templates=[12, 62], max_number=60)
    traces = cca.trace(model, problems)
    pivots = cca.find_pivots(model, traces)
    circuit = cca.learn_circuit(model, pivots)
    delta = cca.update(model, circuit, pivots, validate=problems)
    result = cca.evaluate(model, problems, delta)

A finished run of the command: `cca.Run.load("runs/bundled")`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cca.errors import InputError
    from cca.evaluation.evaluate import evaluate
    from cca.method.circuit import Circuit, learn_circuit
    from cca.method.options import CircuitOptions, TraceOptions, UpdateOptions
    from cca.method.pivots import find_pivots
    from cca.method.processes import Processes
    from cca.method.traces import trace
    from cca.method.update import update
    from cca.model.delta import Delta
    from cca.model.open import open_model
    from cca.problems.load import load_problems
    from cca.problems.prompts import PromptOptions
    from cca.records import Pivot, Problem
    from cca.run.run import Run

__version__ = "0.7.0"
_HOME = {
    "open_model": "model.open",
    "load_problems": "problems.load",
    "trace": "method.traces",
    "find_pivots": "method.pivots",
    "learn_circuit": "method.circuit",
    "update": "method.update",
    "evaluate": "evaluation.evaluate",
    "Pivot": "records",
    "Problem": "records",
    "Circuit": "method.circuit",
    "Delta": "model.delta",
    "Processes": "method.processes",
    "Run": "run.run",
    "PromptOptions": "problems.prompts",
    "TraceOptions": "method.options",
    "CircuitOptions": "method.options",
    "UpdateOptions": "method.options",
    "InputError": "errors",
}
"""Public name -> its module. Loaded on first use, since most of them load torch."""
__all__ = [
    "Circuit",
    "CircuitOptions",
    "Delta",
    "InputError",
    "Pivot",
    "Problem",
    "Processes",
    "PromptOptions",
    "Run",
    "TraceOptions",
    "UpdateOptions",
    "__version__",
    "evaluate",
    "find_pivots",
    "learn_circuit",
    "load_problems",
    "open_model",
    "trace",
    "update",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cca' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"cca.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
