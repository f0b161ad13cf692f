"""What each method trains on pivots, before its first step: an intervention that changes nothing."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from cca.controls.circuits import largest_rows, random_circuit
from cca.controls.lora import LowRank
from cca.controls.vectors import OutputBias, Steering
from cca.method.circuit import Circuit
from cca.method.options import UpdateOptions
from cca.method.processes import ALONE, Processes
from cca.method.update import full_gradient
from cca.model.delta import Delta
from cca.model.intervention import Trainable
from cca.model.open import Model
from cca.records import Pivot


def start(
    model: Model,
    circuit: Circuit,
    pivots: Sequence[Pivot],
    options: UpdateOptions,
    seed: int,
    progress: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> Trainable:
    """The intervention that `options.method` trains; controls are as large as the circuit's where that can be.

    Args:
        circuit: learned on the same pivots.
        pivots: those that will be trained on.
        seed: of what is drawn at random.
        progress: told of what is read to choose rows by, how many tokens.
        processes: that call this alike, and get the same.

    Raises:
        ValueError: the method learns no pivots.
    """
    network, parts, selected = model.network, model.components, circuit.selected
    everything = torch.ones_like(selected)
    rows = sum(len(r) for r in parts.rows(selected).values())
    match options.method:
        case "circuit":
            return Delta.zeros(model, parts.rows(selected))
        case "random":
            return Delta.zeros(model, parts.rows(random_circuit(parts, selected, seed)))
        case "all":
            return Delta.zeros(model, parts.rows(everything))
        case "gradient":
            every = Delta.zeros(network, parts.rows(everything))
            _, gradients = full_gradient(
                network, every, pivots, options.batch, options.loss, progress=progress, processes=processes
            )
            return Delta.zeros(model, largest_rows(every, gradients, rows))
        case "bias":
            seen = Counter(token for p in pivots for token in (p.desired, p.undesired))
            tokens = torch.tensor(sorted(t for t, _ in seen.most_common(rows)), device=network.device)
            return OutputBias.zeros(tokens)
        case "steering":
            width = network.config.get_text_config().hidden_size
            return Steering.zeros(parts.layers[-1].name, width, network.device)
        case "lora-pivots":
            rank = options.lora_rank
            return LowRank.fresh(network, parts.rows(everything), rank, options.lora_alpha / rank, seed)
    raise ValueError(f"{options.method} does not learn pivots")
