"""What finished runs took, against what the cost model of `cca plan` says of the same counts: seconds and memory.

    python benchmarks/cost_model.py runs/cost-bundled runs/cost-smollm2 runs/cost-qwen

The counts are the runs' own (tokens, samples, steps, pivots), so that what is compared is the model of costs, and not
the guess of what a run will find. The device is this machine, probed at the beginning; where runs computed elsewhere,
name it: --device H200. Nothing else may run meanwhile. Three runs of 4, 14 and
19 minutes on two slow cores:

    cca run --set problems.train=6 --set problems.validation=3 --set problems.test=6 --set evaluation.per_skill=20 \\
        --out runs/cost-bundled
    cca run configs/smollm2.toml --set model.path=smollm2.gguf --set model.dtype=float32 --set problems.train=4 \\
        --set problems.validation=1 --set problems.test=3 --set update.steps=4 --set pivots.confirm=0 \\
        --out runs/cost-smollm2
    cca run configs/qwen2.5-coder-0.5b-instruct.toml --set model.path=qwen2.5-coder-0.5b-instruct.gguf \\
        --set model.dtype=float32 --set problems.source=gsm-symbolic --set problems.max_number=0 \\
        --set problems.templates="[9, 12, 15]" --set problems.held_out=0 --set problems.train=3 \\
        --set problems.validation=1 --set problems.test=1 --set traces.samples=3 --set traces.max_new_tokens=200 \\
        --set pivots.confirm=0 --set circuit.epochs=20 --set update.steps=1 --set evaluation.max_new_tokens=200 \\
        --set evaluation.per_skill=4 --set evaluation.drift_problems=8 --out runs/cost-qwen

Memory is the process's peak less 0.45 GiB, which Python, torch and transformers take. What is predicted is what a plan
says before a run: at most, where buffers of a CPU are there only once they are written to.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cca.evaluation.scores import evaluated_sets
from cca.method.circuit import Circuit
from cca.model.checks import check_model
from cca.model.weights import empty_model
from cca.records import Metric, Pivot, Score, TracePair, Trial, WithoutPivot
from cca.run.config import Config
from cca.run.cost import Passes, costs
from cca.run.counts import Counts, Lengths
from cca.run.devices import Device, devices_of
from cca.run.plan import SHARED
from cca.run.plan_memory import Free, bytes_of, plan_memory, training_of
from cca.run.run import Run
from cca.run.shape import shape_of

PROCESS_GIB = 0.45


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("| run | stage | read | written | predicted s | measured s | ratio | binds | predicted GiB | measured GiB |")
    print("| --- " * 10 + "|")
    for path in options.runs:
        compare(path, options.device)


def compare(path: Path, name: str) -> None:
    """Print a line for each stage of the run in `path`."""
    run = Run.load(path)
    config = run.config.model_copy(update={"model": run.config.model.changed({"dtype": run.dtype})})
    size = bytes_of(config.model.dtype)
    device = devices_of(name, size).device
    model_config = check_model(config.model.path, trust_remote_code=config.model.trust_remote_code, weights=False)
    shape = shape_of(model_config, empty_model(model_config, config.model.path))
    counts = counted(run, config)
    longest = max(len(pair.prompt) for pair in run.folder.read("traces.jsonl", TracePair))
    free = Free(device.memory, None, device.is_cpu)
    memory = plan_memory(config, shape, counts.lengths, longest, counts.pivots, free)
    found = costs(Passes(shape, size, device), counts, training_of(config, shape), memory.prefixes.place)
    seconds, peaks = (run.folder.manifest[kept] for kept in ("seconds", "peak_gib"))
    told(device)
    for stage, cost in found.items():
        print(
            f"| {path.name} | {stage} | {cost.read:,.0f} | {cost.written:,.0f} | {cost.seconds:.1f} "
            f"| {seconds[stage]:.1f} | {cost.seconds / seconds[stage]:.2f} | {cost.binds} "
            f"| {memory.stages[stage].needs:.2f} | {peaks[stage] - PROCESS_GIB:.2f} |",
            flush=True,
        )
    every = sum(cost.seconds for cost in found.values()), sum(seconds[stage] for stage in found)
    print(f"| {path.name} | all | | | {every[0]:.1f} | {every[1]:.1f} | {every[0] / every[1]:.2f} | | | |", flush=True)


def told(device: Device) -> None:
    print(
        f"<!-- {device.name}: {device.flops_16 / 1e9:,.0f} GFLOP/s, {device.bandwidth / 1e9:,.1f} GB/s -->", flush=True
    )


def counted(run: Run, config: Config) -> Counts:
    """What the run did. Discarded samples are taken to be as long as those that were kept."""
    pairs, pivots = run.folder.read("traces.jsonl", TracePair), run.pivots()
    metrics, scores = run.folder.read("metrics.jsonl", Metric), run.folder.read("scores.jsonl", Score)
    circuit = Circuit.load(run.folder.file("circuit.safetensors"))
    counts = Counter(pivot.split for pivot in pivots)
    confirmed = sum(2 * pivot.samples for pivot in pivots)
    unsearched = Counter(w.reason for w in run.folder.read("without_pivot.jsonl", WithoutPivot))
    kept = metrics[-1].step > 0 and max(metrics, key=lambda m: (m.accuracy, -m.step)).step > 0
    sizes = [len(problems) for problems in evaluated_sets(run.problems).values()]
    return Counts(
        lengths_of(run, pairs, pivots, scores),
        traced=len(pairs),
        samples=sum(pair.drawn for pair in pairs),
        pairs=len(pairs) - unsearched["no_opposite"] - unsearched["template_solved"],
        completions=sum(pivot.completions for pivot in pivots) + confirmed,
        pivots=counts["train"],
        held_out=counts["validation"],
        trainings=len(run.folder.read("sweep.jsonl", Trial)),
        steps=len(circuit.losses),
        batch=config.circuit.batch,
        updates=metrics[-1].step,
        trained_on=counts["train"],
        validations=len(metrics),
        validated=metrics[0].n,
        answers=len(scores) if kept else len(scores) // 2,
        drift=sum(min(config.evaluation.drift_problems, size) for size in sizes) if kept else 0,
        trace_slots=config.traces.batch,
        answer_slots=config.evaluation.batch,
    )


def lengths_of(run: Run, pairs: Sequence[TracePair], pivots: Sequence[Pivot], scores: Sequence[Score]) -> Lengths:
    shared = len(run.prompter.start) if len(run.prompter.start) >= SHARED else 0
    traces = [trace for pair in pairs for trace in pair.by_kind().values()]
    answer = fmean(len(trace.tokens) for trace in traces)
    pivot = fmean(pivot.position for pivot in pivots)
    solved = [p for p in run.problems if p.skill is None and p.solution.strip()][:100]
    return Lengths(
        shared,
        fmean(len(pair.prompt) for pair in pairs) - shared,
        answer,
        fmean(len(run.prompter.reference(p.solution)) for p in solved) if solved else answer,
        pivot,
        max(1.0, answer - pivot),
        fmean(score.tokens for score in scores),
    )


if __name__ == "__main__":
    main()
