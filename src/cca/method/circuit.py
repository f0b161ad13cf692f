"""Stage 2: learn which components favour the desired token (Desiderata-based Component Masking, paper section 3.2).

Gates act at the last position only, so keys and values of all earlier positions are constants. They are computed
once; every optimiser step is then a forward and backward of one token per pivot against a cached prefix.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from cca.method.objective import pivot_loss
from cca.model.components import Components
from cca.model.gates import gated
from cca.model.generate import OneTokenStep, Prefill, prefill
from cca.model.numerics import check_finite
from cca.model.recompute import is_offloaded, recomputed
from cca.records import Pivot, Record
from cca.show.progress import no_progress


class CachedPrefixes:
    """Keys and values of every pivot's prefix but its last token.

    They are kept where they take at most `budget_gib`; otherwise each batch reads its prefixes again. constant: steps
    leave their cache as it is, so that a layer can be computed twice.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pivots: Sequence[Pivot],
        budget_gib: float,
        read_batch: int = 32,
        constant: bool = False,
    ):
        self.model, self.room = model, 0 if constant else 1
        self.heads = [list(p.prefix[:-1]) for p in pivots]
        self.last = torch.tensor([p.prefix[-1] for p in pivots], device=model.device)
        self.lengths = torch.tensor([len(h) for h in self.heads])
        if not self.heads or int(self.lengths.min()) < 1:
            raise ValueError("a pivot needs a prefix of at least two tokens")
        first = prefill(model, self.heads[:1])
        per_token = sum(k[:, :, :1].nbytes + v[:, :, :1].nbytes for k, v in zip(first.keys, first.values, strict=True))
        self.gib = per_token * int(self.lengths.max()) * len(self.heads) / 2**30
        self.stored = self._read_all(read_batch) if self.gib <= budget_gib else None

    def _read_all(self, read_batch: int) -> Prefill:
        width, count = int(self.lengths.max()), len(self.heads)
        order = self.lengths.argsort(stable=True).tolist()
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for start in range(0, count, read_batch):
            rows = order[start : start + read_batch]
            read = prefill(self.model, [self.heads[i] for i in rows])
            if not keys:
                shape = [(count, k.shape[1], width, k.shape[3]) for k in read.keys]
                keys = [k.new_zeros(s) for k, s in zip(read.keys, shape, strict=True)]
                values = [v.new_zeros(s) for v, s in zip(read.values, shape, strict=True)]
            for store, new in ((keys, read.keys), (values, read.values)):
                for kept, fresh in zip(store, new, strict=True):
                    kept[rows, :, : fresh.shape[2]] = fresh
        return Prefill(keys, values, self.lengths, torch.empty(0, device=self.model.device), None)

    def take(self, rows: Sequence[int]) -> OneTokenStep:
        """What a forward pass of the last tokens of the prefixes `rows` needs. Call it outside of any gating."""
        if self.stored is not None:
            cache, mask = self.stored.take(rows, self.lengths[list(rows)].tolist(), self.room)
        else:
            read = prefill(self.model, [self.heads[i] for i in rows])
            cache, mask = read.take(range(len(rows)), read.lengths.tolist(), self.room)
        return OneTokenStep(cache, mask, self.last[list(rows)])


@dataclass(frozen=True)
class Circuit:
    """Learned gates and how they came about.

    gates: (C,) float32. history: (epochs done, C), the gates after each epoch. losses: (steps done,) mean of
    logit[undesired] - logit[desired] of each step's batch, without the penalty. sizes: (L, 4), how many query, key and
    value heads and neurons each layer has, in which order the gates stand.
    """

    gates: Tensor
    history: Tensor
    losses: Tensor
    sizes: Tensor
    stopped: str

    @property
    def selected(self) -> Tensor:
        """The circuit: a (C,) mask of the gates that round to 1."""
        return self.gates > 0.5

    @property
    def density(self) -> float:
        return float(self.selected.float().mean())

    def by_layer(self) -> list[tuple[Tensor, ...]]:
        """The gates of each layer: its query (H,), key (K,) and value heads (K,) and neurons (I,)."""
        parts = self.gates.split(self.sizes.flatten().tolist())
        return [parts[i : i + 4] for i in range(0, len(parts), 4)]

    def save(self, path: Path) -> None:
        tensors = {"gates": self.gates, "history": self.history, "losses": self.losses, "sizes": self.sizes}
        save_file(tensors, path, metadata={"stopped": self.stopped})

    @classmethod
    def load(cls, path: Path) -> "Circuit":
        from safetensors import safe_open

        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            stopped = (file.metadata() or {}).get("stopped", "")
        return cls(tensors["gates"], tensors["history"], tensors["losses"], tensors["sizes"], stopped)


def learn_circuit(
    model: PreTrainedModel,
    components: Components,
    pivots: Sequence[Pivot],
    *,
    penalty: float,
    learning_rate: float,
    decay: float,
    decay_every: int,
    batch_size: int,
    epochs: int,
    patience: float,
    cache_gib: float,
    seed: int,
    state_path: Path | None = None,
    progress: Callable[[int, float, float], None] = no_progress,
) -> Circuit:
    """Minimise mean(logit[undesired] - logit[desired]) + penalty * sum(gates) over gates in [0, 1].

    Adam from gates of 1, learning rate x `decay` every `decay_every` epochs, gates clamped after every step; stops
    when the rounded circuit has not changed for `patience` epochs (a fraction of one, in the paper 0.2), counted
    from its first change. State goes to `state_path` after each epoch, and a later call resumes from there.
    progress: called after each epoch with the epochs done, the density and the mean loss of the epoch's steps.

    Raises:
        FloatingPointError: the loss is not finite; the message says in which step, and which module gave the first
            such value.
    """
    model.requires_grad_(False)
    offloaded = is_offloaded(model)  # its backward pass would hold every layer's weights unless they are read twice
    layers = [layer.module for layer in components.layers] if offloaded else []
    prefixes = CachedPrefixes(model, pivots, cache_gib, constant=offloaded)
    desired = torch.tensor([p.desired for p in pivots], device=model.device)
    undesired = torch.tensor([p.undesired for p in pivots], device=model.device)
    steps_per_epoch = math.ceil(len(pivots) / batch_size)
    allowed = max(1, math.ceil(patience * steps_per_epoch))

    gates = torch.ones(components.size, device=model.device, requires_grad=True)
    adam = torch.optim.Adam([gates], lr=learning_rate)
    history: list[Tensor] = []
    losses: list[float] = []
    unchanged, changed_once, first_epoch = 0, False, 0
    if state_path is not None and state_path.exists():
        state = load_file(state_path, device=str(model.device))
        with torch.no_grad():
            gates.copy_(state["gates"])
        adam.state[gates] = {"step": state["step"].cpu(), "exp_avg": state["mean"], "exp_avg_sq": state["square"]}
        history, losses = list(state["history"].cpu()), state["losses"].tolist()
        unchanged, changed_once, first_epoch = int(state["unchanged"]), bool(state["changed_once"]), len(history)

    stopped = "epochs"
    for epoch in range(first_epoch, epochs):
        if unchanged >= allowed:  # it was interrupted after its last epoch
            stopped = "unchanged"
            break
        adam.param_groups[0]["lr"] = learning_rate * decay ** (epoch // decay_every)
        order = torch.randperm(len(pivots), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)).tolist()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            step = prefixes.take(rows)
            with gated(model, components, gates), recomputed(layers):
                loss = pivot_loss(step.logits(model), desired[rows], undesired[rows])
                what = f"the loss in epoch {epoch + 1}, step {start // batch_size + 1} is"
                check_finite(loss, what, model, lambda rows=rows: prefixes.take(rows).logits(model))
                (gradient,) = torch.autograd.grad(loss, gates)
            gates.grad = gradient + penalty
            before = gates.detach() > 0.5
            adam.step()
            with torch.no_grad():
                gates.clamp_(0, 1)
            losses.append(loss.item())
            same = bool(((gates.detach() > 0.5) == before).all())
            changed_once |= not same
            unchanged = unchanged + 1 if same and changed_once else 0
            if unchanged >= allowed:
                stopped = "unchanged"
                break
        history.append(gates.detach().cpu().clone())
        ran = losses[epoch * steps_per_epoch :]
        progress(epoch + 1, float((history[-1] > 0.5).float().mean()), sum(ran) / len(ran))
        if state_path is not None:
            _save_state(state_path, gates, adam, history, losses, unchanged, changed_once)
        if stopped == "unchanged":
            break
    sizes = torch.tensor([layer.sizes for layer in components.layers])
    return Circuit(gates.detach().cpu(), torch.stack(history), torch.tensor(losses), sizes, stopped)


def _save_state(path: Path, gates: Tensor, adam, history, losses, unchanged: int, changed_once: bool) -> None:
    from cca.folder import replace_file

    moments = adam.state[gates]
    tensors = {
        "gates": gates.detach(),
        "step": moments["step"],
        "mean": moments["exp_avg"],
        "square": moments["exp_avg_sq"],
        "history": torch.stack(history),
        "losses": torch.tensor(losses, dtype=torch.float64),
        "unchanged": torch.tensor(unchanged),
        "changed_once": torch.tensor(changed_once),
    }
    replace_file(path, lambda temporary: save_file(tensors, temporary))


TOLERANCE = 0.1
"""A density within this share of the wanted one is as good as it."""
SPARSE = 0.02
"""The paper's circuits are below this density."""


@dataclass(frozen=True)
class Trial(Record):
    """A penalty that was tried, and the density of the circuit it gave."""

    penalty: float
    density: float

    def line(self) -> str:
        return json.dumps({"lambda": self.penalty, "density": self.density})

    @classmethod
    def parse(cls, line: str) -> "Trial":
        known = json.loads(line)
        return cls(known["lambda"], known["density"])


def is_near(density: float, target: float) -> bool:
    """Whether a density is as good as the wanted one."""
    return abs(density - target) <= TOLERANCE * target


def next_penalty(trials: Sequence[Trial], start: float, target: float | None, limit: int = 12) -> float | None:
    """The penalty to try next for a circuit of density `target`; None once one is near it.

    `start` is tried first; it is doubled or halved until the target lies between two, whose geometric mean is tried
    then: a higher penalty gives a sparser circuit. Without a target, `start` alone is tried.
    """
    if not trials:
        return start
    if target is None or len(trials) >= limit or any(is_near(t.density, target) for t in trials):
        return None
    dense = [t.penalty for t in trials if t.density > target]
    sparse = [t.penalty for t in trials if t.density < target]
    if not dense:
        return min(sparse) / 2
    if not sparse:
        return max(dense) * 2 or 0.01
    low, high = max(dense), min(sparse)
    return (low * high) ** 0.5 if 0 < low < high else None


def random_circuit(components: Components, like: Tensor, seed: int) -> Tensor:
    """A (C,) mask with as many components of each kind as `like`, drawn at random: the control for a circuit."""
    generator = torch.Generator().manual_seed(seed)
    selected = torch.zeros_like(like)
    kinds = [component.kind for component in components]
    for kind in dict.fromkeys(kinds):
        members = torch.tensor([i for i, k in enumerate(kinds) if k == kind])
        count = int(like[members].sum())
        selected[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return selected
