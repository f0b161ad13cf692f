"""A step of the circuit: forward and backward of 8 pivots' gates, against whole prefixes.

Plain: whole prefixes padded into one batch with the library's own gates; as many at once as memory allows, which of a
real model's few-shot prompts are two. Weaker: the reference of the tests, one prefix at a time. The gradients of all
are the same. Gates are neutral: the time does not depend on what they are, and rounding is least there.
"""

from collections.abc import Iterator, Sequence

import torch
import work
from lines import Line, Setting, part, skipped
from timing import Kept, compared, floor_of, in_turns
from torch import Tensor

from cca.method.objective import losses, margins, pivot_loss
from cca.method.prefixes import CachedPrefixes
from cca.model.gates import gated
from cca.model.open import Model
from cca.model.read import read, texts
from cca.records import Pivot

BATCH = 8
BAR = 40
WITHIN = 1e-3
"""How far gradients may be apart, as a share of their norm."""


class Steps:
    """A step for each 8 of `pivots`, by every method, which gives the last step's gradient (C,).

    at_once: whole prefixes of a pass.
    """

    def __init__(self, model: Model, pivots: Sequence[Pivot], at_once: int):
        self.network, self.parts, self.at_once = model.network, model.components, at_once
        self.batches = [pivots[i : i + BATCH] for i in range(0, len(pivots) - BATCH + 1, BATCH)]
        self.prefixes = CachedPrefixes(model.network, pivots, budget_gib=4.0)
        self.gates = torch.full((model.components.size,), 0.5, requires_grad=True)

    def reference(self) -> Tensor:
        import reference

        gradient = self.gates
        for batch in self.batches:
            with reference.projections_gated(self.network, self.parts, self.gates):
                (gradient,) = torch.autograd.grad(reference.pivot_loss(self.network, batch), self.gates)
        return gradient

    def padded(self) -> Tensor:
        gradient = self.gates
        for batch in self.batches:
            gradient = torch.zeros_like(self.gates)
            for some in (batch[i : i + self.at_once] for i in range(0, BATCH, self.at_once)):
                with gated(self.network, self.parts, self.gates):
                    margin = margins(work.padded_logits(self.network, some), *work.sides(some))
                    loss = losses(margin, "linear").sum() / BATCH
                    gradient += torch.autograd.grad(loss, self.gates)[0]
        return gradient

    def cca(self) -> Tensor:
        gradient = self.gates
        for number, batch in enumerate(self.batches):
            step = self.prefixes.take(range(number * BATCH, (number + 1) * BATCH))
            with gated(self.network, self.parts, self.gates):
                loss = pivot_loss(step.logits(self.network), *work.sides(batch))
                (gradient,) = torch.autograd.grad(loss, self.gates)
        return gradient


def step_lines(
    name: str, model: Model, pivots: Sequence[Pivot], repeats: int, at_once: int = BATCH, *, few_shot: bool = False
) -> Iterator[Line]:
    steps = Steps(model, pivots, at_once)
    methods = {"cca": Kept(steps.cca), "padded": Kept(steps.padded)}
    if at_once == BATCH:
        methods["one at a time"] = Kept(steps.reference)
    steps.cca()
    times, cca = in_turns(methods, repeats, warm=repeats > 1), methods.pop("cca")
    floor = floor_of(model.network, steps.cca, backward=True) / len(steps.batches)
    for method, plain in methods.items():
        apart = float((plain.found - cca.found).norm() / cca.found.norm())
        assert apart < WITHIN, f"{name}: the gradient of {method} is apart by {apart:.2g} of its norm"
        what = f"{name}, {work.tokens_of(pivots):.0f} tokens, {method}"
        what += f", {at_once} at once" if at_once < BATCH else ""
        bar = BAR if few_shot else None
        yield compared(what, times[method], times["cca"], len(steps.batches), floor=floor, bar=bar)


def reading(name: str, model: Model, pivots: Sequence[Pivot], repeats: int) -> Line:
    """Keys and values of prefixes that begin with the same examples: of all of each, and what they share once."""
    sequences = [p.prefix for p in pivots]
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])

    @torch.no_grad()
    def plain() -> None:
        model.network(input_ids=ids, use_cache=True, logits_to_keep=1)

    def cca() -> None:
        read(model.network, texts(sequences))

    times = in_turns({"plain": plain, "cca": cca}, repeats)
    what = f"{name}, {len(sequences)} prefixes read"
    return compared(what, times["plain"], times["cca"], floor=floor_of(model.network, cca))


def lines(setting: Setting) -> Iterator[Line]:
    model, repeats = work.bundled(), setting.of(5, 1)
    pivots = work.found_pivots(model, setting.of(32, BATCH))
    shown = work.with_examples(pivots[: setting.of(16, BATCH)], model, setting.of(work.SHOTS, 1))
    yield from step_lines("bundled", model, pivots, repeats)
    yield from step_lines("bundled, few-shot", model, shown, setting.of(3, 1), few_shot=True)
    yield reading("bundled, few-shot", model, shown, setting.of(3, 1))
    if setting.model is None:
        yield skipped("circuit step, a real model")
        return
    name, model = work.name_of(setting.model), work.given(setting.model, chat=False)
    own, examples = setting.of(200, 30), setting.of(900, 60)
    pivots = work.made_pivots(model.network, BATCH, own, vary=0.2)
    yield from step_lines(name, model, pivots, setting.of(2, 1), BATCH // 2)
    shown = work.made_pivots(model.network, BATCH, own, examples, vary=0.2)
    yield from step_lines(f"{name}, few-shot", model, shown, 1, 2, few_shot=True)


if __name__ == "__main__":
    part(__doc__, lines)
