"""Row deltas: the change of a circuit's weight rows, as indices and float32 values."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cca.errors import InputError
from cca.model.base import TYPES, Base, BaseRows, identity
from cca.model.components import Component, find_components, in_order
from cca.model.delta_file import Contents, read_delta, write_delta
from cca.model.experts import is_experts, with_experts
from cca.model.rows import Rows
from cca.model.state import network_of


class Rounding(NamedTuple):
    """What became of a delta when it was merged into weights of another type.

    unchanged: share of its parameters that rounded to nothing. error: size of what was lost or added by rounding, as a
    share of the delta's size (root mean square); 0 where the weights are float32, up to their own rounding.
    """

    unchanged: float
    error: float

    @classmethod
    def of(cls, merged: Iterable[tuple[Tensor, Tensor, Tensor]]) -> "Rounding":
        """From the change of some rows, what they held, and what they hold since."""
        nothing, count, lost, size = 0, 0, 0.0, 0.0
        for change, base, summed in merged:
            kept = summed.float() - base.float()
            nothing += int(((kept == 0) & (change != 0)).sum())
            count += change.numel()
            lost += float(((kept - change).double() ** 2).sum())
            size += float((change.double() ** 2).sum())
        return cls(nothing / max(1, count), (lost / size) ** 0.5 if size else 0.0)


@dataclass(frozen=True, eq=False)
class Delta:
    """The change of some rows of some weights.

    weights: by name, which rows (n,) change, and by how much (n, E) in float32.
    base: the model that it is for; None for one that was put together by hand, which fits any model of its shapes.
    components: whose rows they are; none are known of one that was put together by hand.
    metrics: what was measured with it, by set of problems, where it was exported from a run.
    """

    weights: dict[str, Rows]
    base: Base | None = None
    components: tuple[Component, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    _fits: WeakSet[nn.Module] = field(default_factory=WeakSet, repr=False)
    """Networks that it was made on, or found to fit: to look again at each use would take too long."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fits": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _fits=WeakSet())  # in another process are other networks

    def __repr__(self) -> str:
        return f"Delta({self.row_count:,} rows of {len(self.weights)} weights, {self.parameter_count:,} parameters)"

    @classmethod
    def zeros(cls, model: Any, rows: Mapping[str, Tensor]) -> "Delta":
        """A delta that changes nothing yet, where the model computes. `rows`: weight name -> row numbers.

        Raises:
            InputError: as `find_components` does, of a network that is not opened.
        """
        weights: dict[str, Rows] = {}
        network = network_of(model)
        for name, index in rows.items():
            device = _home(network, name)
            width = row_view(network, name).shape[1]
            weights[name] = Rows(index.to(device), torch.zeros(len(index), width, dtype=torch.float32, device=device))
        held = {name: _held(network, name, index) for name, index in rows.items()}
        return cls(weights, Base(*identity(model), held), _owners(model, rows), _fits=WeakSet([network]))

    @property
    def row_count(self) -> int:
        """How many rows change."""
        return sum(len(rows.index) for rows in self.weights.values())

    @property
    def parameter_count(self) -> int:
        """How many parameters that are."""
        return sum(rows.values.numel() for rows in self.weights.values())

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The values (n, E) by weight name."""
        return {name: rows.values for name, rows in self.weights.items()}

    def copy(self) -> "Delta":
        """An independent copy of the values."""
        weights = {name: Rows(r.index, r.values.detach().clone()) for name, r in self.weights.items()}
        return replace(self, weights=weights)

    def plus(self, other: "Delta") -> "Delta":
        """The sum of two deltas, on the rows of either. `other` may be of the model as this one left it.

        What was measured with either is not said of both.
        """
        summed = dict(self.weights)
        for name, more in other.weights.items():
            if name not in summed:
                summed[name] = more
                continue
            mine = summed[name]
            index, where = torch.cat([mine.index, more.index]).unique(return_inverse=True)
            values = torch.zeros(len(index), mine.values.shape[1], device=mine.values.device)
            summed[name] = Rows(index, values.index_add(0, where, torch.cat([mine.values, more.values])))
        components = tuple(sorted({*self.components, *other.components}, key=in_order))
        return Delta(summed, _base_of_both(self, other, summed), components)

    def active(self, model: Any) -> AbstractContextManager[None]:
        """Within the context `model` (a `cca.model.open.Model`, or its network) computes with base + delta.

        In the way that keeps all of it: float32 weights hold the sum (`applied`: nothing slower than the base); 16-bit
        or offloaded ones stay as they are (`attached`), for a small change would be lost to their rounding.
        """
        self.check_fits(model)
        weights = [network_of(model).get_parameter(name) for name in self.weights]
        whole = all(w.dtype == torch.float32 and w.device.type != "meta" for w in weights)
        return self.applied(model) if whole else self.attached(model)

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Within the context the model computes with base + delta, the base weights untouched.

        Each projection's output gets x @ values.T added to the delta's rows, so gradients reach `values`.
        """

        def adding(rows: Rows):
            def add(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
                change = nn.functional.linear(args[0].to(out.device), rows.values.to(out))
                return out.index_add(-1, rows.index.to(out.device), change)

            return add

        with ExitStack() as stack:
            for name, rows in self.weights.items():
                module = network_of(model).get_submodule(name.rpartition(".")[0])
                if is_experts(module):
                    stack.enter_context(with_experts(module, rows=rows))
                else:
                    stack.callback(module.register_forward_hook(adding(rows)).remove)
            yield

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Within the context the weights hold base + delta; afterwards the base rows are restored bit by bit."""
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for weight, rows, base, summed in self._sums(model):
                saved.append((weight, rows.index, base))
                weight[rows.index] = summed
            yield
        finally:
            for weight, index, original in saved:
                weight[index] = original

    def _sums(self, model: Any) -> Iterator[tuple[Tensor, Rows, Tensor, Tensor]]:
        """For each weight its view, the delta's rows beside it, what they hold, and that plus the delta, rounded."""
        for name, changed in self.weights.items():
            weight = row_view(network_of(model), name)
            if weight.device.type == "meta":
                raise ValueError(f"{name} is offloaded; load the model on one device to merge into it")
            rows = changed.at(weight)
            base = weight[rows.index]  # a copy
            yield weight, rows, base, (base.float() + rows.values).to(weight.dtype)

    def rounding(self, model: Any) -> Rounding:
        """What merging into the model's weights would leave of the delta."""
        return Rounding.of((rows.values, base, summed) for _, rows, base, summed in self._sums(model))

    def merge(self, model: Any) -> Rounding:
        """Add the delta to the model's weights for good, and say how much of it survived their rounding."""
        self.check_fits(model)
        rounding = self.rounding(model)
        for weight, rows, _, summed in self._sums(model):
            weight[rows.index] = summed
        self._fits.discard(network_of(model))  # a second time would be once too often
        return rounding

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file: the format of `cca.model.delta_file`.

        Raises:
            InputError: the delta was put together by hand, so that nobody could see later what it fits.
        """
        if self.base is None and self.weights:
            raise InputError(
                "this delta does not know the model that it is for; begin with cca.Delta.zeros(model, rows) and fill "
                "in its values"
            )
        write_delta(path, Contents(self.weights, self.base, self.components, self.metrics))

    @classmethod
    def load(cls, path: str | Path, model: Any = None, *, device: str | torch.device = "cpu") -> "Delta":
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the model that the delta is for: it is checked to fit, and loaded to where the model computes.
            device: where to, without a `model`.

        Raises:
            InputError: the file cannot be read, holds something else or numbers that no delta has, or is for another
                model.
        """
        delta = cls(*read_delta(path, str(device if model is None else network_of(model).device)))
        if model is not None:
            delta.check_fits(model, str(path))
        return delta

    def is_known_to_fit(self, model: Any) -> None:
        """Leave out `check_fits` for this model: it is another copy of one that the delta fits."""
        self._fits.add(network_of(model))

    def check_fits(self, model: Any, name: str = "the delta") -> None:
        """See that the model is the one that the delta is for: that it has the rows, and that they hold the same.

        Raises:
            InputError: it is not; the message names the weight.
        """
        network = network_of(model)
        if network in self._fits:
            return
        known = {weight for weight, _ in network.named_parameters(remove_duplicate=False)}
        for weight, rows in self.weights.items():
            if weight not in known:
                raise InputError(f"{name} changes {weight}, which this model has not; use the one it was made for")
            count, width = row_view(network, weight).shape
            outside = len(rows.index) and not 0 <= int(rows.index.min()) <= int(rows.index.max()) < count
            if outside or rows.values.shape != (len(rows.index), width):
                raise InputError(
                    f"{name} changes rows of {weight} that do not fit its {count} rows of {width}; use the model that "
                    "it was made for"
                )
        if self.base:
            self._check_base(self.base, model, name)
        index = {weight: rows.index for weight, rows in self.weights.items()}
        if self.components and _owners(model, index) != self.components:
            raise InputError(f"{name} names other components than own its rows; it is damaged, train it again")
        self._fits.add(network)

    def _check_base(self, base: Base, model: Any, name: str) -> None:
        here, revision = identity(model)
        for weight, rows in self.weights.items():
            now, held = _held(network_of(model), weight, rows.index), base.rows[weight]
            if held.agrees(now) or (not held.comparable(now) and base.same_files(revision)):
                continue
            raise InputError(
                f"{name} is for {base}, and rows of {weight} that it changes hold other numbers in {here}: that is "
                "another model, or one that was changed since (a delta that is merged is in it already); open the one "
                "that it is for, or learn a delta on this one"
                + ("" if held.comparable(now) else f". If it is the same, load it as {held.dtype} or as float32")
            )


def _owners(model: Any, rows: Mapping[str, Tensor]) -> tuple[Component, ...]:
    """The components of a model, opened or not, that own `rows`."""
    return (getattr(model, "components", None) or find_components(network_of(model))).owners(rows)


def _held(network: Any, name: str, index: Tensor) -> BaseRows:
    """What rows of a weight hold, wherever it lies between passes."""
    from accelerate.utils import align_module_device

    offloaded = network.get_parameter(name).device.type == "meta"
    module = network.get_submodule(name.rpartition(".")[0])
    with align_module_device(module, torch.device("cpu")) if offloaded else nullcontext():
        weight = row_view(network, name)
        return BaseRows.of(weight[index.to(weight.device)])


def _base_of_both(first: Delta, second: Delta, summed: Mapping[str, Rows]) -> Base | None:
    """What the rows of either held before the first of them: of a row of both, what the first one knows."""
    if not (first.weights and second.weights):
        return first.base if first.weights else second.base
    if first.base is None or second.base is None:
        return None
    both = (second.weights, second.base.rows), (first.weights, first.base.rows)
    held: dict[str, BaseRows] = {}
    for name, rows in summed.items():
        known = [(weights[name].index.cpu(), before[name]) for weights, before in both if name in weights]
        held[name] = known[0][1]
        if len(known) == 2:  # the sum's rows are in order
            sums = torch.zeros(len(rows.index), len(TYPES), dtype=torch.int64)
            for index, part in known:
                sums[torch.searchsorted(rows.index.cpu(), index)] = part.sums
            held[name] = BaseRows(next((p.dtype for _, p in known if p.dtype != torch.float32), torch.float32), sums)
    return Base(first.base.name, first.base.revision, held)


def row_view(model: Any, name: str) -> Tensor:
    """The weight `name` as (rows, E), a row for each output; what is written into it is written into the model.

    A Conv1D keeps its rows as columns, experts theirs one expert after the other.
    """
    return rows_first(model, name, model.get_parameter(name).detach())


def rows_first(model: Any, name: str, weight: Tensor) -> Tensor:
    """`weight`, which is of the shape that the model's weight `name` has, as `row_view` gives that one."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
        return weight.T
    return weight.view(-1, weight.shape[-1])


def _home(model: Any, name: str) -> torch.device:
    """Where a weight is computed with. One that is offloaded lies on the meta device between passes."""
    weight = model.get_parameter(name)
    hook = getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None)
    if weight.device.type != "meta":
        return weight.device
    return torch.device(getattr(hook, "execution_device", None) or "cpu")
