"""A step of the update against training the whole model, and against PEFT's LoRA of as many parameters.

All take a step of gradient descent by the same loss on the same pivots in the same batches, in float32. Full-gradient
training and LoRA pass each batch padded on the left, as trainers do; a second line gives full-gradient training the
library's own pass as well, which has no padding and computes once what prefixes begin with. Memory is what a process
of its own held at most in two steps, beyond what it held before them: the weights.

    python benchmarks/update_step.py --memory METHOD bundled    # or the path of a model: GiB of one method alone
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import work
from lines import Line, Setting, add_arguments, part, setting_of, skipped
from timing import CLEAR, compared, floor_of, in_own_process, in_turns, peak_beyond
from torch import Tensor

from cca.method.objective import last_margins, losses, margins
from cca.method.update import batches, full_gradient
from cca.model.delta import Delta
from cca.model.open import Model
from cca.records import Pivot

BATCH = 32
RATE = 1e-6
TIME, MEMORY = 0.75, 0.6
METHODS = {"full": "full gradient", "packed": "full gradient, packed", "lora": "PEFT LoRA"}
"""The plain ones, and what they are called in the table."""
if find_spec("peft") is None:
    print("update step: without peft there is no line for it; pip install peft", file=sys.stderr)
    del METHODS["lora"]


def padded_margins(network: Any, pivots: Sequence[Pivot]) -> Tensor:
    return margins(work.padded_logits(network, pivots), *work.sides(pivots))


def trained(network: Any, grouped: Sequence[Sequence[Pivot]], packed: bool = False) -> Callable[[], float]:
    """A step of those weights that take gradients, by all batches of pivots; it gives the loss before."""
    rule = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], RATE)
    count = sum(map(len, grouped))

    def step() -> float:
        total = 0.0
        for batch in grouped:
            if packed:
                with last_margins(network, batch) as found:
                    loss = losses(found, "linear").sum() / count
                    loss.backward()
            else:
                loss = losses(padded_margins(network, batch), "linear").sum() / count
                loss.backward()
            total += loss.item()
        rule.step()
        rule.zero_grad(set_to_none=True)
        return total

    return step


def projections(delta: Delta) -> list[str]:
    return [name.removesuffix(".weight") for name in delta.weights]


def lora(network: Any, delta: Delta) -> Any:
    """The network with an adapter of about as many parameters on the projections whose rows the delta changes."""
    from peft import LoraConfig, get_peft_model

    names = projections(delta)
    of_a_rank = sum(sum(network.get_submodule(name).weight.shape) for name in names)
    rank = max(1, round(delta.parameter_count / of_a_rank))
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft asks the model for what transformers calls otherwise by now
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(network, settings)


def circuit(network: Any, delta: Delta, pivots: Sequence[Pivot]) -> Callable[[], float]:
    """The library's step."""
    rule = torch.optim.SGD(list(delta.parameters.values()), RATE)

    def step() -> float:
        loss, gradients = full_gradient(network, delta, pivots, BATCH)
        for name, gradient in gradients.items():
            delta.parameters[name].grad = gradient
        rule.step()
        rule.zero_grad(set_to_none=True)
        return loss

    return step


def step_of(method: str, model: Model, pivots: Sequence[Pivot]) -> Callable[[], float]:
    """A step by `method`, on the model itself."""
    delta = Delta.zeros(model, work.a_circuit(model))
    if method == "cca":
        return circuit(model.network, delta, pivots)
    grouped = list(batches(model.network, pivots, BATCH))
    if method == "lora":
        return trained(lora(model.network, delta), grouped)
    return trained(model.network.requires_grad_(), grouped, packed=method == "packed")


def at_work(setting: Setting, path: str) -> tuple[Model, list[Pivot]]:
    """The bundled model with pivots as long as its own, or a real model with fewer and longer ones."""
    if path == "bundled":
        model = work.bundled()
        return model, work.made_pivots(model.network, setting.of(64, 8), 93, vary=0.4)
    model = work.given(path, chat=False)
    return model, work.made_pivots(model.network, setting.of(8, 4), setting.of(200, 30), vary=0.2)


def timed(setting: Setting, path: str, repeats: int) -> Iterator[Line]:
    model, pivots = at_work(setting, path)
    steps = {"cca": step_of("cca", model, pivots)}
    for method in METHODS:  # each changes a copy of its own
        steps[method] = step_of(method, replace(model, network=copy.deepcopy(model.network)), pivots)
    first = {method: step() for method, step in steps.items()}
    assert max(first.values()) - min(first.values()) < 1e-3 * (1 + abs(first["cca"])), f"losses differ: {first}"
    times = in_turns(steps, repeats, warm=False)
    floor = floor_of(model.network, steps["cca"], backward=True)
    what = f"{work.name_of(path)}, {len(pivots)} pivots of {work.tokens_of(pivots):.0f}"
    for method, called in METHODS.items():
        bar = TIME if method == "full" else None
        yield compared(f"{what}, {called}", times[method], times["cca"], share=True, bar=bar, floor=floor)


def remembered(setting: Setting, path: str) -> Iterator[Line]:
    """Each method's memory, in a process of its own."""
    name, quick = work.name_of(path), ["--quick"] * setting.quick
    if not CLEAR.exists():
        yield Line(f"{name}, memory", note="skipped: only Linux tells how much memory a process held at most")
        return
    gib = {method: in_own_process(__file__, "--memory", method, path, *quick) for method in ("cca", *METHODS)}
    for method, called in METHODS.items():
        bar = MEMORY if method == "full" else None
        yield Line(f"{name}, memory, {called}", gib["cca"], gib[method], unit="GiB", share=True, bar=bar)


def memory(method: str, path: str, setting: Setting) -> float:
    """GiB of two steps, beyond weights that have been read and threads that have been started."""
    model, pivots = at_work(setting, path)
    with torch.no_grad():
        model.network(input_ids=torch.tensor([pivots[0].prefix[:8]]))
    step = step_of(method, model, pivots)
    return peak_beyond(lambda: (step(), step()))


def lines(setting: Setting) -> Iterator[Line]:
    yield from timed(setting, "bundled", setting.of(5, 1))
    yield from remembered(setting, "bundled")
    if setting.model is None:
        yield skipped("update step, a real model")
        return
    yield from timed(setting, setting.model, 1)
    yield from remembered(setting, setting.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "MODEL"), required=True)
    add_arguments(parser)
    given = parser.parse_args()
    method, path = given.memory
    print(memory(method, path, setting_of(given)))


if __name__ == "__main__":
    main() if "--memory" in sys.argv else part(__doc__, lines)
