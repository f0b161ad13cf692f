"""The experts of a mixture with gates on their neurons and row deltas on their weights, which no hook can reach.

transformers lets an experts module compute through a registered function. Ours does what the stock one does, expert
by expert, and on the way scales neurons at the last position and adds x @ delta.T to the gate and up rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cca.model.rows import Rows
from cca.model.state import registered

_PREFIX = "cca_experts_"
_STATE = "_cca_experts"


class Width:
    """How many positions the pass that is running has; some feed-forward parts see them with the batch as one axis."""

    positions = 1

    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of a decoder layer."""
        self.positions = (args[0] if args else kwargs["hidden_states"]).shape[1]


class ExpertGates(NamedTuple):
    """A factor for each neuron of each expert, (experts x I,)."""

    factor: Tensor
    width: Width


class _State(NamedTuple):
    """All that is on, the outermost first."""

    gates: tuple[ExpertGates, ...] = ()
    rows: tuple[Rows, ...] = ()


def is_experts(module: nn.Module) -> bool:
    """Whether `module` keeps the weights of experts in 3-D parameters."""
    parameter = module._parameters.get("gate_up_proj")
    return parameter is not None and parameter.dim() == 3


@contextmanager
def with_experts(module: Any, *, gates: ExpertGates | None = None, rows: Rows | None = None) -> Iterator[None]:
    """Within the context the experts compute with `gates` or `rows`, and with what an outer context has set."""
    from transformers.integrations.moe import ExpertsInterface

    before, config = getattr(module, _STATE, None), module.config
    outer, stock = before or _State(), config._experts_implementation
    with registered(ExpertsInterface, _PREFIX, _forward) as name:
        try:
            inner = _State(outer.gates + ((gates,) if gates else ()), outer.rows + ((rows,) if rows else ()))
            object.__setattr__(module, _STATE, inner)
            config._experts_implementation = name
            yield
        finally:
            config._experts_implementation = stock
            if before is None:
                module.__dict__.pop(_STATE, None)
            else:
                object.__setattr__(module, _STATE, before)


def _forward(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """hidden (B x T, E), chosen and weights (B x T, k): the experts of each token and what each counts."""
    state: _State = getattr(module, _STATE, None) or _State()
    out = torch.zeros_like(hidden)
    for expert in chosen.unique().tolist():
        token, place = torch.where(chosen == expert)
        x = hidden[token]
        both = nn.functional.linear(x, module.gate_up_proj[expert])
        for rows in state.rows:
            mine = _of_expert(rows, expert, both.shape[-1])
            change = nn.functional.linear(x, mine.values.to(x))
            both = both.index_add(-1, mine.index.to(x.device), change)
        neurons = module._apply_gate(both)
        for gates in state.gates:
            factor = gates.factor.view(-1, neurons.shape[-1])[expert].to(x.device)
            last = token % gates.width.positions == gates.width.positions - 1
            neurons = torch.where(last[:, None], neurons * factor, neurons).to(x.dtype)
        mixed = nn.functional.linear(neurons, module.down_proj[expert]) * weights[token, place, None]
        out = out.index_add(0, token, mixed.to(out.dtype))
    return out


def _of_expert(rows: Rows, expert: int, count: int) -> Rows:
    mine = rows.index // count == expert
    return Rows(rows.index[mine] % count, rows.values[mine])
