"""What a run would do, hold in memory and change, told from the configuration alone: no weights are read."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cca.model.components import Components, find_components
from cca.model.experts import is_experts
from cca.model.open import check_model, check_prompts, empty_model
from cca.records import Problem
from cca.run.config import Config
from cca.run.workspace import make_problems, make_prompter

TYPICAL_DENSITY = 0.016
"""Of the paper's circuits; a run's own is known once its circuit is learned."""
WAVE = 3
"""Samples of a problem that are drawn at once, at most."""


def plan(config: Config) -> dict[str, Any]:
    """Components, rows, memory and work of the run of `config`.

    Raises:
        InputError: as the run itself would before it loads weights.
    """
    import torch

    path, trust = config.model.path, config.model.trust_remote_code
    model_config = check_model(path, trust_remote_code=trust, weights=False)
    prompter, problems = make_prompter(config), make_problems(config)
    prompts = [prompter.prompt(p) for p in problems]
    check_prompts(prompts, config.traces.max_new_tokens, model_config, path)
    model = empty_model(model_config, trust_remote_code=trust)
    parts = find_components(model)
    everything = torch.ones(parts.size, dtype=torch.bool)
    rows = {name: len(owned) for name, owned in parts.rows(everything).items()}
    parameters = sum(p.numel() for p in model.parameters())
    lengths = [len(p) for p in prompts]
    work = _work(config, problems, lengths)
    return {
        "model": {"path": path, "type": model_config.model_type, "parameters": parameters, "layers": len(parts.layers)},
        "components": {"all": parts.size, **parts.counts(everything)},
        "rows": {"all": sum(rows.values()), "per_head": parts.layers[0].query.rows.shape[1], "per_neuron": 1},
        "circuit": {"density": TYPICAL_DENSITY, "components": round(parts.size * TYPICAL_DENSITY)},
        "memory_gib": _memory(config, model_config.get_text_config(), parts, parameters, lengths, work["pivots"]),
        "work": work,
    }


def _memory(
    config: Config, text: Any, parts: Components, parameters: int, lengths: Sequence[int], pivots: int
) -> dict[str, Any]:
    """GiB, estimated: weights, and what the hungriest moment of a stage takes besides."""
    size = 4 if config.model.dtype == "float32" else 2
    longest = max(lengths) + config.traces.max_new_tokens
    typical = sum(lengths) / len(lengths) + config.traces.max_new_tokens / 2
    cached = size * sum(layer.key.rows.numel() + layer.value.rows.numel() for layer in parts.layers)
    sampling = config.traces.batch * ((1 + WAVE) * longest * cached + WAVE * text.vocab_size * 32)
    prefixes = pivots * typical * cached
    kept = prefixes <= config.circuit.cache_gib * 2**30
    step = 2 * config.circuit.batch * longest * cached
    a_layer = [size * _activations(layer, text) for layer in parts.layers]
    again = config.update.gradient_checkpointing
    held = max(a_layer) + size * text.hidden_size * len(a_layer) if again else sum(a_layer)
    gib = {
        "weights": parameters * size,
        "trace": sampling,
        "circuit": (prefixes if kept else 0) + step,
        "update": config.update.batch * longest * held,
    }
    found: dict[str, Any] = {name: round(value / 2**30, 3) for name, value in gib.items()}
    found["peak"] = round(found["weights"] + max(found["trace"], found["circuit"], found["update"]), 3)
    found["notes"] = {
        "circuit": " (keys and values of all prefixes)"
        if kept
        else f" (all prefixes take {prefixes / 2**30:.1f}, over circuit.cache_gib, so each step reads its own again)",
        "update": " (activations of one layer at a time)" if again else " (activations)",
    }
    return found


def _activations(layer: Any, text: Any) -> float:
    """Numbers that the backward pass keeps for one token of one layer: what goes into and out of each product."""
    heads = layer.query.rows.numel() + layer.key.rows.numel() + layer.value.rows.numel()
    neurons = 0.0
    for part in layer.feed_forward:
        active = 1.0
        if is_experts(part.down):
            active = text.num_experts_per_tok / part.down.get_parameter("gate_up_proj").shape[0]
        neurons += len(part.up) * active
    return 6 * text.hidden_size + 4 * heads + 4 * neurons


def _work(config: Config, problems: Sequence[Problem], lengths: Sequence[int]) -> dict[str, Any]:
    splits = Counter(p.split.split(":")[0] for p in problems)
    traced = splits["train"] + splits["validation"]
    update = config.update
    at = {*update.validate_at, *range(update.validate_every, update.steps + 1, update.validate_every), 0, update.steps}
    return {
        "problems": dict(splits),
        "prompt_tokens": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "max_new_tokens": config.traces.max_new_tokens,
        "greedy_traces": traced,
        "sampled_traces": traced * config.traces.samples,
        "pivots": splits["train"],
        "circuit_steps": config.circuit.epochs * math.ceil(splits["train"] / config.circuit.batch),
        "circuit_batch": config.circuit.batch,
        "update_steps": update.steps,
        "validations": len([step for step in at if step <= update.steps]),
        "validation_problems": splits["validation"],
        "rounds": config.rounds,
        "answers": 2 * (len(problems) - traced),
        "benchmarks": list(config.evaluation.tasks),
    }
