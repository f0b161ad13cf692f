"""All stages' steps on a model of the paper's sizes with random weights: seconds, peak memory, and the floor.

    python benchmarks/large_model.py gemma-2-2b --device cuda --dtype bfloat16 --tokens 1200
    python benchmarks/large_model.py gemma-2-2b --tokens 96 --pivots 16      # two CPU cores, float32, about 12 GiB

Weights are random, so neither the circuit nor the update means anything; time and memory do not depend on that.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from floor import decode_steps, linear_layers
from transformers import AutoConfig, AutoModelForCausalLM

from cca.method.objective import pivot_loss
from cca.method.prefixes import CachedPrefixes
from cca.method.update import full_gradient
from cca.model.checks import attention_for
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.gates import gated
from cca.model.verify import verify_components
from cca.records import Pivot

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-2-2b": (
        "gemma2",
        {
            "vocab_size": 256_000,
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 9216,
        },
    ),
    "qwen2.5-3b": (
        "qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11_008,
            "tie_word_embeddings": True,
        },
    ),
}
BATCH = 8
DENSITY = 0.016


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--tokens", type=int, default=1200, help="of a prefix (8 worked examples take about 1,000)")
    parser.add_argument("--pivots", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64, help="of a step of stage 1; 0 leaves it out")
    parser.add_argument("--update-batch", type=int, default=4)
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing in stage 3")
    options = parser.parse_args()

    began = time.perf_counter()
    kind, shape = SHAPES[options.shape]
    torch.manual_seed(0)
    with torch.device(options.device):
        config = AutoConfig.for_model(kind, **shape)
        attention = attention_for(config, None, options.shape)
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, options.dtype), attn_implementation=attention
        )
    model.eval().requires_grad_(False)
    parts = find_components(model)
    report("parameters", sum(p.numel() for p in model.parameters()), f"{time.perf_counter() - began:.0f} s to make")
    report("components", parts.size)
    seconds(options.device, lambda: verify_components(model, parts), "verifying the components")
    report("peak memory while they were made", memory(options.device))

    generator = torch.Generator().manual_seed(0)
    if options.rows:
        vocabulary = shape["vocab_size"]
        prompts = torch.randint(10, vocabulary, (options.rows, 100), generator=generator).tolist()
        temperatures = (0.0, 1.2)
        steps, floor = decode_steps(model, prompts, temperatures)
        for temperature, took in zip(temperatures, steps, strict=True):
            said = f"{options.rows / took:,.0f} tokens/s; linear layers alone {floor:.4f} s ({floor / took:.0%})"
            report(f"stage 1: a step at temperature {temperature:g}", f"{took:.4f} s", said)
        report("peak memory of stage 1's steps", memory(options.device))
    ids = torch.randint(10, shape["vocab_size"], (options.pivots, options.tokens), generator=generator).tolist()
    pivots = [Pivot(tuple(prefix), 3, 4, problem=str(i)) for i, prefix in enumerate(ids)]

    prefixes: list[CachedPrefixes] = []
    seconds(
        options.device,
        lambda: prefixes.append(CachedPrefixes(model, pivots, 64.0)),
        f"stage 2: {options.pivots} prefixes read",
    )
    report("their keys and values", f"{prefixes[0].gib:.2f} GiB")
    report("peak memory of reading them", memory(options.device))
    gates = torch.ones(parts.size, device=options.device, requires_grad=True)
    desired, undesired = torch.full((BATCH,), 3), torch.full((BATCH,), 4)

    def step() -> None:
        one_token = prefixes[0].take(range(BATCH))
        with gated(model, parts, gates):
            loss = pivot_loss(one_token.logits(model), desired, undesired)
            torch.autograd.grad(loss, gates)

    step()
    for _ in range(options.steps):
        seconds(options.device, step, f"stage 2: a step of {BATCH} pivots, one token each")
    report("  its linear layers alone, forward and backward, at least", f"{2 * linear_layers(model, BATCH):.3f} s")
    report("peak memory of stage 2's steps", memory(options.device))
    prefixes.clear()

    rows = parts.rows(torch.rand(parts.size, generator=generator) < DENSITY)
    delta = Delta.zeros(model, rows)
    report("parameters changed", delta.parameter_count)
    again = [] if options.keep_activations else [layer.module for layer in parts.layers]
    few = pivots[: 2 * options.update_batch]
    for _ in range(2):
        seconds(
            options.device,
            lambda: full_gradient(model, delta, few, options.update_batch, recompute=again),
            f"stage 3: gradient over {len(few)} pivots, {options.update_batch} at once",
        )
    report("peak memory of stage 3", memory(options.device))


def report(what: str, value: object, more: str = "") -> None:
    print(f"{what:55} {value:,} {more}" if isinstance(value, int) else f"{what:55} {value} {more}", flush=True)


def seconds(device: str, work, what: str) -> None:
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    report(what, f"{time.perf_counter() - began:.3f} s")


def memory(device: str) -> str:
    """Peak since the last call: of the GPU where there is one, else of the whole process (Linux)."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    else:
        (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM")]
        peak = int(line.split()[1]) / 2**20
        Path("/proc/self/clear_refs").write_text("5")
    return f"{peak:.2f} GiB"


if __name__ == "__main__":
    main()
