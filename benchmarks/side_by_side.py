"""The library's exact shortcuts against the plain method, side by side in one process on the bundled model.

    python benchmarks/side_by_side.py [--traces 12] [--json]

Prints, for branch search, one circuit step and one update step, how long the plain method and the library took, and
their ratio. The plain methods are those against which the tests compare results (tests/reference.py). The circuit step
is also compared with a stronger baseline, full prefixes in one padded batch, and on prefixes of few-shot length, whose
reading is timed as well.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import reference

from cca.method.objective import pivot_loss
from cca.method.options import TraceOptions
from cca.method.pivots import search_pivots
from cca.method.prefixes import CachedPrefixes
from cca.method.traces import trace_pairs
from cca.method.update import full_gradient
from cca.model.components import Components
from cca.model.delta import Delta
from cca.model.gates import gated
from cca.model.open import Model, open_model
from cca.model.read import read, texts
from cca.problems.prompts import Prompter
from cca.problems.splits import ProblemOptions, build_problems, chosen_source
from cca.records import Pivot, Problem, TracePair

LIMIT = 160
BATCH = 8


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `repeats` calls after one warm-up call."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def branch_search(model: Model, problems: list[Problem], traces: int) -> tuple[dict[str, float], list[Pivot]]:
    """Tokens generated and seconds for the pivots of the same traces; all pivots are compared."""
    network, prompter = model.network, model.prompter
    by_id = {p.id: p for p in problems}
    pairs: list[TracePair] = []
    trace_pairs(network, prompter, problems, TraceOptions(max_new_tokens=LIMIT), 0, pairs.append)
    usable = sorted((pair for pair in pairs if pair.sampled), key=lambda pair: pair.problem)
    compared = usable[:: max(1, len(usable) // traces)][:traces]

    generated = 0
    began = time.perf_counter()
    plain = []
    for pair in compared:
        pivot, tokens = reference.branching_pivot(network, prompter, pair, by_id[pair.problem], LIMIT)
        plain.append(pivot)
        generated += tokens
    plain_seconds = time.perf_counter() - began

    counted = _CountTokens()
    began = time.perf_counter()
    with counted.on(network):
        fast = search_pivots(network, prompter, compared, by_id, max_new_tokens=LIMIT, slots=64)
    fast_seconds = time.perf_counter() - began
    assert [(p.prefix, p.desired, p.undesired) for p in fast] == [(p.prefix, p.desired, p.undesired) for p in plain]
    figures = {
        "traces": len(compared),
        "plain_tokens": generated,
        "cca_tokens": counted.tokens,
        "plain_seconds": plain_seconds,
        "cca_seconds": fast_seconds,
    }
    return figures, search_pivots(network, prompter, usable, by_id, max_new_tokens=LIMIT, slots=64)


class _CountTokens:
    """Counts the one-token decode rows of a model's forward passes."""

    def __init__(self) -> None:
        self.tokens = 0

    def on(self, model):
        def count(_, __, kwargs):
            ids = kwargs.get("input_ids")
            if ids is not None and ids.shape[1] == 1:
                self.tokens += ids.shape[0]

        return model.register_forward_pre_hook(count, with_kwargs=True)


def circuit_step(model, parts: Components, pivots: list[Pivot], repeats: int) -> dict[str, float]:
    """Forward and backward of random batches of 8 pivots.

    plain: the reference, one full prefix at a time; batched: full prefixes padded into one batch; cca: one token each
    against cached prefixes.
    """
    order = torch.randperm(len(pivots), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)][:8]
    desired = torch.tensor([p.desired for p in pivots])
    undesired = torch.tensor([p.undesired for p in pivots])
    gates = torch.ones(parts.size, requires_grad=True)
    prefixes = CachedPrefixes(model, pivots, budget_gib=4.0)

    def plain() -> None:
        for rows in batches:
            with reference.projections_gated(model, parts, gates):
                torch.autograd.grad(reference.pivot_loss(model, [pivots[i] for i in rows]), gates)

    def batched() -> None:
        for rows in batches:
            heads = [pivots[i].prefix for i in rows]
            width = max(map(len, heads))
            ids = torch.tensor([[0] * (width - len(h)) + list(h) for h in heads])
            mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in heads])
            places = (mask.cumsum(1) - 1).clamp(min=0)
            with gated(model, parts, gates):
                out = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)
                torch.autograd.grad(pivot_loss(out.logits[:, -1], desired[rows], undesired[rows]), gates)

    def fast() -> None:
        for rows in batches:
            step = prefixes.take(rows)
            with gated(model, parts, gates):
                torch.autograd.grad(pivot_loss(step.logits(model), desired[rows], undesired[rows]), gates)

    return {
        "prefix_tokens": statistics.mean(len(pivots[i].prefix) for rows in batches for i in rows),
        "plain_seconds": seconds(plain, repeats) / len(batches),
        "batched_seconds": seconds(batched, repeats) / len(batches),
        "cca_seconds": seconds(fast, repeats) / len(batches),
    }


def with_examples(pivots: list[Pivot], prompter: Prompter, problems, tokens: int = 700) -> list[Pivot]:
    """`pivots` with about `tokens` of solved problems before each prefix: the length of the paper's 8-shot prompts."""
    examples: list[int] = []
    for problem in problems:
        if len(examples) < tokens:
            examples += [*prompter.prompt(problem), *prompter.reference(problem.solution)]
    return [replace(p, prefix=(*examples, *p.prefix)) for p in pivots]


def reading(model, pivots: list[Pivot], repeats: int) -> dict[str, float]:
    """Keys and values of 32 prefixes that begin with the same examples: all of each, and what they share once."""
    sequences = [p.prefix for p in pivots[:32]]
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])

    @torch.no_grad()
    def plain() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    return {
        "plain_seconds": seconds(plain, repeats),
        "cca_seconds": seconds(lambda: read(model, texts(sequences)), repeats),
    }


def update_step(model, parts: Components, pivots: list[Pivot], repeats: int) -> dict[str, float]:
    """One full-batch gradient: of all weights, one pivot at a time, against rows of a 2% circuit in sorted batches."""
    selected = torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) < 0.02
    delta = Delta.zeros(model, parts.rows(selected))
    batch = pivots[:64]

    def plain() -> None:
        model.requires_grad_(True)
        reference.pivot_loss(model, batch).backward()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)

    def fast() -> None:
        full_gradient(model, delta, batch, 32)

    return {"pivots": len(batch), "plain_seconds": seconds(plain, repeats), "cca_seconds": seconds(fast, repeats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=12, help="traces whose pivots are searched token by token")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = open_model("bundled", device="cpu")
    network, parts = model.network, model.components
    drawn = ProblemOptions(train=4, validation=1, test=1, held_out=0.0)
    problems = build_problems(chosen_source(drawn), drawn, seed=11)
    train = [p for p in problems if p.split == "train"]
    search, pivots = branch_search(model, train, options.traces)
    few_shot = with_examples(pivots, model.prompter, train)
    figures = {
        "branch search": search,
        "circuit step": circuit_step(network, parts, pivots, options.repeats),
        "  few-shot": circuit_step(network, parts, few_shot, options.repeats),
        "few-shot read": reading(network, few_shot, options.repeats),
        "update step": update_step(network, parts, pivots, options.repeats),
    }
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{'':<14}{'plain':>12}{'cca':>12}{'ratio':>9}")
    tokens = search["plain_tokens"] / max(1, search["cca_tokens"])
    print(f"{'branch search':<14}{search['plain_tokens']:>7.0f} tok{search['cca_tokens']:>8.0f} tok{tokens:>8.1f}x")
    for name, figure in figures.items():
        for method in ("plain", "batched"):
            if plain := figure.get(f"{method}_seconds"):
                fast = figure["cca_seconds"]
                label = name if method == "plain" else "    batched"
                print(f"{label:<14}{plain:>10.3f} s{fast:>10.4f} s{plain / fast:>8.1f}x")


if __name__ == "__main__":
    main()
