"""Would training on one pivot move another? How far the gradients of a run's pivots agree, before anything is trained.

    python experiments/agreement.py RUN -n 120

Takes the gradient of each pivot's margin with respect to all rows that components own, on the base model. In a small
step along the gradient of one pivot the margin of another rises by their product, so that the mean cosine c over pairs
says what an update has to build on: of one template (unseen problems), of different templates (held-out templates), and
by kind of token. In a step along the sum of n gradients of one length a trained margin rises by c + (1 - c) / n, and
that of another pivot by c: their ratio is how much of such a step generalises. Intervals are of a U-statistic's mean.

What all prompts begin with is left out of the products, since it belongs to no pivot alone.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cca.errors import InputError
from cca.evaluation.pivot_kinds import between
from cca.method.objective import last_margins
from cca.method.update import batches
from cca.model.open import Model
from cca.model.read import common_start
from cca.records import Pivot
from cca.run.run import Run

Sides = dict[str, list[tuple[Tensor, Tensor]]]
"""By weight, for each pivot what goes into its rows (T, in) and the gradients of what comes out of them (T, rows)."""


@contextmanager
def watched(modules: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes in and comes out of each of `modules` in the last pass; the gradients of the latter are kept."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            out.retain_grad()
            seen[name] = args[0].detach(), out

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        yield seen


def both_sides(model: Model, pivots: list[Pivot]) -> tuple[list[Pivot], Sides]:
    """The pivots in the order in which they were read, and what their gradients are made of."""
    rows = model.components.rows(torch.ones(model.components.size, dtype=torch.bool))
    modules: dict[str, nn.Linear] = {}
    for name in rows:
        module = model.network.get_submodule(name.removesuffix(".weight"))
        if not isinstance(module, nn.Linear):
            raise InputError(f"{name} is of a {type(module).__name__}; this looks into linear layers only")
        modules[name] = module
    order, sides = list[Pivot](), Sides()
    embeddings: Any = model.network.get_input_embeddings()
    with watched(modules) as seen:
        handle = embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_())  # what is frozen has none
        for batch in batches(model.network, pivots, 16):
            with torch.enable_grad(), last_margins(model.network, batch) as margins:
                margins.sum().backward()
            shared = common_start([p.prefix for p in batch], min(len(p.prefix) for p in batch) - 1)
            sizes = [len(p.prefix) - shared for p in batch]
            for name, (into, out) in seen.items():
                assert out.grad is not None
                found = (side[0, shared:].split(sizes) for side in (into, out.grad[..., rows[name]]))
                sides.setdefault(name, []).extend(zip(*found, strict=True))
            seen.clear()
            order += batch
        handle.remove()
    return order, sides


def products(sides: Sides) -> Tensor:
    """Products (P, P) of the pivots' gradients, over all weights."""
    found = torch.zeros((), dtype=torch.float64)
    for pairs in sides.values():
        gradients = torch.stack([(out.mT.float() @ into.float()).flatten() for into, out in pairs])
        found = found + (gradients @ gradients.mT).double()
    return found


def mean(cosines: Tensor, chosen: Tensor) -> str:
    """Over the chosen pairs, with its 95% interval (Hoeffding 1948: twice the spread of each pivot's own mean)."""
    counts = chosen.sum(1)
    if int((counts > 0).sum()) < 2:
        return "-"
    own = (cosines * chosen).sum(1)[counts > 0] / counts[counts > 0]
    value, error = float(cosines[chosen].mean()), 2 * float(own.std()) / len(own) ** 0.5
    return f"{value:.3f} ({value - 1.96 * error:.3f} to {value + 1.96 * error:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="finished up to the pivots")
    parser.add_argument("-n", type=int, default=100, help="pivots, drawn where there are more")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    run = Run.load(options.run)
    found = run.pivots()
    drawn = np.random.default_rng(options.seed).permutation(len(found))[: options.n]
    order, sides = both_sides(run.model, [found[i] for i in sorted(drawn)])
    product = products(sides)
    cosines = product / torch.outer(product.diag().sqrt(), product.diag().sqrt())
    problems = {p.id: p for p in run.problems}
    kinds = [between(p, run.prompter, problems[p.problem].answer).kind for p in order]
    other = ~torch.eye(len(order), dtype=torch.bool)
    same = torch.tensor([[a.template == b.template for b in order] for a in order])
    print(f"{len(order)} pivots; mean cosine of two: {mean(cosines, other)}")
    print(f"of one template {mean(cosines, other & same)}, of two templates {mean(cosines, other & ~same)}")
    c = float(cosines[other].mean())
    for n in (count := len(run.pivots_of("train")), 4 * count):
        print(f"first step on {n} pivots: others rise by {c / (c + (1 - c) / n):.0%} of what these do")
    of_kind = {name: torch.tensor([kind == name for kind in kinds]) for name in sorted(set(kinds))}
    print("\n| two templates | pivots | " + " | ".join(of_kind) + " |\n" + "| --- " * (len(of_kind) + 2) + "|")
    for name, of in of_kind.items():
        cells = (mean(cosines, other & ~same & torch.outer(of, to)) for to in of_kind.values())
        print(f"| {name} | {int(of.sum())} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
