"""Stage 2: learn which components favour the desired token (Desiderata-based Component Masking, paper section 3.2)."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from cca.errors import InputError, NothingToLearnError
from cca.io import header_of, save_tensors
from cca.method.density import best_trial, is_near, missed, next_penalty
from cca.method.objective import pivot_loss, too_long, training_pivots
from cca.method.options import CircuitOptions
from cca.method.prefixes import CachedPrefixes
from cca.method.processes import ALONE, Processes
from cca.method.resume import check_shape, load_state, of_a_state
from cca.model.components import Component, Components
from cca.model.gates import gated
from cca.model.memory import Halving
from cca.model.numerics import check_finite
from cca.model.open import Model, opened
from cca.model.recompute import is_offloaded, recomputed
from cca.model.state import frozen
from cca.options import check_seed
from cca.records import KINDS, Pivot, Trial

Progress = Callable[[int, float, float], None]
"""Told after each epoch: the epochs done, the circuit's density and the mean loss of the epoch's steps."""
Work = Callable[[int, float], None]
"""Told after each step how many tokens it read, and how many epochs are done, the part of this one included; before the
first step of a training that goes on, of 0 tokens."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Learned gates and how they came about.

    Attributes:
        gates: (C,) float32 in [0, 1].
        history: (epochs done, C), the gates after each epoch.
        losses: (steps done,) mean of logit[undesired] - logit[desired] of each step's batch, without the penalty.
        sizes: (L, 4), how many query, key and value heads and neurons each layer has, in which order the gates stand.
        stopped: why training ended, ``unchanged`` or ``epochs``.
    """

    gates: Float[Tensor, " C"]
    history: Float[Tensor, "epochs C"]
    losses: Float[Tensor, " steps"]
    sizes: Int[Tensor, "L 4"]
    stopped: str

    def __repr__(self) -> str:
        members = self.components()
        kinds = ", ".join(f"{sum(c.kind == kind for c in members)} {kind}" for kind in KINDS)
        return f"Circuit({len(members)} of {len(self.gates):,} components, {self.density:.2%}: {kinds})"

    @property
    def selected(self) -> Bool[Tensor, " C"]:
        """The circuit: a (C,) mask of the gates that round to 1."""
        return self.gates > 0.5

    @property
    def density(self) -> float:
        """Its share of all components."""
        return float(self.selected.float().mean())

    def components(self) -> list[Component]:
        """Its members, in flat order: the heads and neurons whose gates round to 1."""
        return [
            Component(layer, kind, number)
            for layer, parts in enumerate(self.by_layer())
            for kind, part in zip(KINDS, parts, strict=True)
            for number in (part > 0.5).nonzero().flatten().tolist()
        ]

    def by_layer(self) -> list[tuple[Tensor, ...]]:
        """The gates of each layer: its query (H,), key (K,) and value heads (K,) and neurons (I,)."""
        parts = self.gates.split(self.sizes.flatten().tolist())
        return [parts[i : i + 4] for i in range(0, len(parts), 4)]

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        tensors = {"gates": self.gates, "history": self.history, "losses": self.losses, "sizes": self.sizes}
        metadata = {"stopped": self.stopped}
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what `save` wrote.

        Raises:
            InputError: the file cannot be read, or holds something else.
        """
        try:
            with safe_open(path, "pt") as file:
                stopped = header_of(file).get("stopped", "")
                gates, history, losses, sizes = map(file.get_tensor, ("gates", "history", "losses", "sizes"))
        except (OSError, SafetensorError, InputError) as error:
            raise InputError(f"cannot read a circuit from {path} ({error}); name a file of Circuit.save") from error
        return cls(gates, history, losses, sizes, stopped)


def learn_circuit(
    model: Model,
    pivots: Sequence[Pivot],
    options: CircuitOptions | None = None,
    *,
    seed: int = 0,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    **changes: Any,
) -> Circuit:
    """The components of `model` that favour the desired tokens of `pivots` (paper section 3.2).

    Args:
        model: stays as it is.
        pivots: found by `cca.find_pivots`, or one's own. Those of validation problems are left out.
        options: how gates are learned; by default `CircuitOptions()`.
        seed: of the order of the pivots.
        processes: that call this alike, to share the work; each gets the same circuit.
        progress: see `Progress`.
        **changes: fields of `CircuitOptions` that differ from `options`, such as ``target_density=0.016``.

    Returns:
        The circuit; where a density is wanted, of the lambdas that were tried the nearest to it. A warning says where
        that is not near, or where no gate fell.

    Raises:
        InputError: there is no pivot to train on, a token is outside the vocabulary, the seed is no int, the steps are
            too few for any gate to fall, or (NothingToLearnError) no component is left.
        FloatingPointError: the loss is not finite; the message says in which step, and which module gave the first
            such value.
    """
    opened(model)
    check_seed(seed)
    options = CircuitOptions.of(options, changes)
    chosen = training_pivots(model.network, pivots)
    options.check_reach(len(chosen))
    circuits: dict[float, Circuit] = {}
    trials: list[Trial] = []
    prefixes = read_prefixes(model.network, chosen, options, processes=processes)
    while (penalty := next_penalty(trials, options.penalty, options.target_density)) is not None:
        circuits[penalty] = learn_gates(
            model.network,
            model.components,
            chosen,
            options,
            penalty=penalty,
            seed=seed,
            prefixes=prefixes,
            processes=processes,
            progress=progress,
        )
        trials.append(Trial(penalty, circuits[penalty].density))
    best = best_trial(trials, options.target_density)
    if best.density == 0:
        raise NothingToLearnError(
            f"lambda {best.penalty:g} leaves an empty circuit; lower it, for example penalty={best.penalty / 2:g}"
        )
    _say_what_is_wrong(trials, options, len(circuits[best.penalty].losses))
    return circuits[best.penalty]


def _say_what_is_wrong(trials: Sequence[Trial], options: CircuitOptions, steps: int) -> None:
    wanted = options.target_density
    best = best_trial(trials, wanted)
    if best.density == 1 and options.penalty:
        said = f"no gate fell below one half in {steps} steps, so the circuit is the whole model"
        warnings.warn(f"{said}; raise the penalty (lambda), for example to {4 * best.penalty:g}", UserWarning, 3)
    elif wanted is not None and not is_near(best.density, wanted):
        warnings.warn(missed(trials, wanted), UserWarning, stacklevel=3)


@torch.inference_mode(False)  # whatever the caller's mode is
def read_prefixes(
    network: PreTrainedModel,
    pivots: Sequence[Pivot],
    options: CircuitOptions,
    progress: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> CachedPrefixes | None:
    """The prefixes of `pivots` as `learn_gates` uses them: read once, they serve any number of trainings.

    Of several processes each reads those of its own pivots; None where it has none. progress: see `CachedPrefixes`.
    """
    own = [pivots[number] for number in own_pivots(pivots, processes)]
    if pivots and not own:
        return None
    with frozen(network):
        # a step of an offloaded network computes its layers twice
        return CachedPrefixes(network, own, options.cache_gib, constant=is_offloaded(network), progress=progress)


def own_pivots(pivots: Sequence[Pivot], processes: Processes) -> list[int]:
    """Which pivots are this process's, whose prefixes it alone keeps: as many tokens as those of each other."""
    return sorted(processes.part(sorted(range(len(pivots)), key=lambda number: len(pivots[number].prefix))))


@torch.inference_mode(False)  # whatever the caller's mode is
def learn_gates(
    network: PreTrainedModel,
    components: Components,
    pivots: Sequence[Pivot],
    options: CircuitOptions,
    *,
    penalty: float | None = None,
    seed: int = 0,
    state_path: Path | None = None,
    prefixes: CachedPrefixes | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    work: Work | None = None,
) -> Circuit:
    """Minimise mean(logit[undesired] - logit[desired]) + penalty * sum(gates) over gates in [0, 1].

    Adam from gates of 1, learning rate x `decay` every `decay_every` epochs, gates clamped after every step; stops
    when the rounded circuit has not changed for `patience` epochs (a fraction of one, in the paper 0.2), counted
    from its first change.

    Args:
        penalty: lambda, by default that of `options`, whose target density is not looked at.
        state_path: state goes there after each epoch, and a later call resumes from there, bit for bit; of several
            processes the first writes and reads it, and with another number it goes on as well.
        prefixes: of `pivots`, by `read_prefixes`; by default they are read here.
        processes: that call this alike; each computes its own pivots of a step, and all learn the same gates.
        progress: see `Progress`; called before the epoch's state is kept.
        work: see `Work`; of several processes it is what this one reads.

    Raises:
        InputError: the processes were given different pivots or options.
        FloatingPointError: the loss is not finite; the message says in which step, and which module gave the first
            such value.
        TooLargeError: a pivot alone does not fit in memory.
        ConnectionError: another process has ended.
    """
    penalty = options.penalty if penalty is None else penalty
    with frozen(network), torch.enable_grad():
        processes.check_alike(network.device, pivots=pivots, options=(options, penalty, seed), model=components.size)
        prefixes = prefixes or read_prefixes(network, pivots, options, processes=processes)
        learning = _Learning(network, components, pivots, options, penalty, seed, prefixes, processes)
        if state_path is not None and (saved := load_state(state_path, processes)):
            learning.load(state_path, saved.tensors)
            if work:
                work(0, float(learning.epochs_done))
        while learning.epochs_done < options.epochs and not learning.settled:
            loss = learning.run_epoch(work)
            if progress:
                progress(learning.epochs_done, float((learning.history[-1] > 0.5).float().mean()), loss)
            if state_path is not None and processes.first:
                learning.save(state_path)
        return learning.circuit()


def _too_long(pivot: Pivot) -> str:
    return too_long(pivot, "circuit.cache_gib lower, ")


class _Learning:
    """Gates under training: what an epoch does to them, and whether they have settled."""

    def __init__(
        self,
        network: PreTrainedModel,
        components: Components,
        pivots: Sequence[Pivot],
        options: CircuitOptions,
        penalty: float,
        seed: int,
        prefixes: CachedPrefixes | None,
        processes: Processes,
    ):
        self.network, self.components, self.options = network, components, options
        self.penalty, self.seed, self.count = penalty, seed, len(pivots)
        offloaded = is_offloaded(network)  # its backward pass would hold every layer's weights unless read twice
        self.read_twice = [layer.module for layer in components.layers] if offloaded else []
        self.prefixes, self.processes = prefixes, processes
        own = own_pivots(pivots, processes)
        self.place = {number: place for place, number in enumerate(own)}
        self.halving = Halving[int](lambda i: len(pivots[own[i]].prefix), lambda i: _too_long(pivots[own[i]]))
        self.desired = torch.tensor([pivots[number].desired for number in own], device=network.device)
        self.undesired = torch.tensor([pivots[number].undesired for number in own], device=network.device)
        self.gates = torch.ones(components.size, device=network.device, requires_grad=True)
        self.adam = torch.optim.Adam([self.gates], lr=options.learning_rate)
        self.history: list[Tensor] = []
        self.losses: list[float] = []
        self.unchanged, self.changed_once = 0, False

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def settled(self) -> bool:
        """Whether the rounded circuit has not changed for `patience` epochs' steps."""
        return self.unchanged >= max(1, math.ceil(self.options.patience * self.options.steps(self.count)))

    def run_epoch(self, work: Work | None = None) -> float:
        """Passes over the pivots in shuffled batches, fewer where the gates settle; the mean loss of its steps."""
        epoch, before = self.epochs_done, len(self.losses)
        self.adam.param_groups[0]["lr"] = self.options.learning_rate * self.options.decay ** (
            epoch // self.options.decay_every
        )
        for number, rows in enumerate(self._batches(epoch), 1):
            self._step(rows, f"epoch {epoch + 1}, step {number}")
            read = self.prefixes.to_read(self._own(rows)) if self.prefixes else 0
            if work and read:
                work(read, epoch + number / self.options.steps(self.count))
            if self.settled:
                break
        self.history.append(self.gates.detach().cpu().clone())
        ran = self.losses[before:]
        return sum(ran) / len(ran)

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        """The pivots of each step of an epoch: shuffled anew in each pass over them."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        for _ in range(self.options.passes(self.count)):
            order = torch.randperm(self.count, generator=generator).tolist()
            yield from (order[i : i + self.options.batch] for i in range(0, self.count, self.options.batch))

    def _step(self, rows: list[int], where: str) -> None:
        own, loss, gradient = self._own(rows), self.gates.new_zeros(()), torch.zeros_like(self.gates)

        def add(part: Sequence[int]) -> None:
            assert self.prefixes is not None
            part = list(part)
            step = self.prefixes.take(part)  # outside of gating
            with gated(self.network, self.components, self.gates), recomputed(self.read_twice):
                value = pivot_loss(step.logits(self.network), self.desired[part], self.undesired[part])
                value = value * (len(part) / len(rows))
                (fresh,) = torch.autograd.grad(value, self.gates)
            gradient.add_(fresh)
            loss.add_(value.detach().to(loss.device))

        if own:
            self.halving.run([own], add)
        self.processes.sum(loss, gradient)
        check_finite(loss, f"the loss in {where} is", self.network, lambda: self._logits(own))
        self.gates.grad = gradient + self.penalty
        before = self.gates.detach() > 0.5
        self.adam.step()
        with torch.no_grad():
            self.gates.clamp_(0, 1)
        self.losses.append(loss.item())
        same = bool(((self.gates.detach() > 0.5) == before).all())
        self.changed_once |= not same
        self.unchanged = self.unchanged + 1 if same and self.changed_once else 0

    def _own(self, rows: list[int]) -> list[int]:
        """Where those of the pivots `rows` that are this process's stand among its own."""
        return [self.place[number] for number in rows if number in self.place]

    def _logits(self, own: list[int]) -> None:
        if own and self.prefixes:
            step = self.prefixes.take(own)
            with gated(self.network, self.components, self.gates):
                step.logits(self.network)

    def circuit(self) -> Circuit:
        sizes = torch.tensor([layer.sizes for layer in self.components.layers])
        stopped = "unchanged" if self.settled else "epochs"
        return Circuit(self.gates.detach().cpu(), torch.stack(self.history), torch.tensor(self.losses), sizes, stopped)

    def save(self, path: Path) -> None:
        moments = self.adam.state[self.gates]
        tensors = {
            "gates": self.gates.detach(),
            "step": moments["step"],
            "mean": moments["exp_avg"],
            "square": moments["exp_avg_sq"],
            "history": torch.stack(self.history),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "unchanged": torch.tensor(self.unchanged),
            "changed_once": torch.tensor(self.changed_once),
        }
        save_tensors(path, tensors)

    @torch.no_grad()
    def load(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, which stood in `path`."""
        with of_a_state(path):
            for name in ("gates", "mean", "square"):
                check_shape(state[name], self.gates.shape)
            check_shape(state["history"][0], self.gates.shape)
            history, losses = list(state["history"]), state["losses"].tolist()
            mean, square = state["mean"].to(self.gates), state["square"].to(self.gates)
            self.unchanged, self.changed_once = int(state["unchanged"]), bool(state["changed_once"])
            self.gates.copy_(state["gates"])
        self.adam.state[self.gates] = {"step": state["step"], "exp_avg": mean, "exp_avg_sq": square}
        self.history, self.losses = history, losses
