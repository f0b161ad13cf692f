"""One side's work for benchmarks/real_model.py: ``python real_model_work.py PART SIDE MODEL WORK.json``.

`cca` is what PYTHONPATH says: this commit (SIDE is now) or an earlier one (before), where things had other names and
places. Both do the same work on the same token ids, and print one line of JSON.
"""

import inspect
import json
import re
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WORK = __file__
PLACES = {
    "now": {
        "records": "records",
        "traces": "method.traces",
        "pivots": "method.pivots",
        "update": "method.update",
        "engine": "model.engine",
    }
    | {"components": "model.components", "delta": "model.delta", "options": "method.options"},
    "before": {"records": "records", "traces": "traces", "pivots": "pivots", "update": "update"}
    | {"components": "anatomy", "delta": "delta"},
}


class Asked:
    """Problems whose prompts are token ids, graded by the last number of an answer."""

    def __init__(self, work: dict[str, Any], tokenizer: Any, records: Any):
        self.end_tokens, self.start = frozenset(work["end_tokens"]), ()
        self.tokenizer, self.records = tokenizer, records
        self.ids = {name: tuple(ids) for name, _, ids, _ in work["problems"]}
        self.problems = [
            made(records.Problem, id=name, template=template, instance=0, split="train", answer=answer)
            for name, template, _, answer in work["problems"]
        ]

    def prompt(self, problem: Any) -> tuple[int, ...]:
        return self.ids[problem.id]

    def stopped(self, _: Any) -> bool:
        return False

    def stop_rule(self, _: Any = None) -> None:
        return None

    def trace(self, problem: Any, tokens: Any) -> Any:
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        value = found[-1].replace(",", "") if found else ""
        right = bool(value) and float(value) == float(problem.answer.replace(",", ""))
        return made(self.records.Trace, tokens=tuple(tokens), text=text, answer=value, correct=right)


def made(kind: Any, **known: Any) -> Any:
    """A record of either commit: what it does not know is left out, what it needs besides is empty."""
    wanted = inspect.signature(kind).parameters
    empty = {name: "" for name, p in wanted.items() if p.default is inspect.Parameter.empty}
    return kind(**(empty | {name: value for name, value in known.items() if name in wanted}))


def stage1(cca: dict[str, Any], side: str, network: Any, asked: Asked, work: dict[str, Any]) -> dict[str, Any]:
    how = {"samples": work["samples"], "max_new_tokens": work["limit"]}
    how |= {"temperature_if_correct": 1.2, "temperature_if_wrong": 0.8}
    pairs: list[Any] = []
    began = time.perf_counter()
    if side == "now":
        options = cca["options"].TraceOptions(**how)
        cca["traces"].trace_pairs(cca["engine"].Transformers(network), asked, asked.problems, options, 0, pairs.append)
    else:
        for chunk in cca["traces"].chunks(asked.problems, asked, 64):
            pairs += cca["traces"].trace_chunk(network, asked, chunk, **how, seed=0)
    took = time.perf_counter() - began
    opposite = [p for p in pairs if p.sampled]
    right = sum(p.greedy.correct for p in pairs)
    written = sum(len(p.greedy.tokens) for p in pairs) * (1 + sum(p.drawn for p in pairs) / len(pairs))
    return {
        "seconds": took,
        "said": f"{right} of {len(pairs)} right, {len(opposite)} opposite, {sum(p.drawn for p in pairs)} samples",
        "tokens": written,
        "pairs": [asdict(p) for p in opposite],
    }


def branch(cca: dict[str, Any], side: str, network: Any, asked: Asked, work: dict[str, Any]) -> dict[str, Any]:
    records = cca["records"]
    traces = [{k: made(records.Trace, **p[k]) for k in ("greedy", "sampled")} for p in work["pairs"]]
    for trace in (t for both in traces for t in both.values()):
        object.__setattr__(trace, "tokens", tuple(trace.tokens))
    pairs = [
        made(records.TracePair, **(p | both | {"prompt": tuple(p["prompt"])}))
        for p, both in zip(work["pairs"], traces, strict=True)
    ]
    by_id = {p.id: p for p in asked.problems}
    more = {"slots": 128} if side == "now" else {}
    began = time.perf_counter()
    search = cca["pivots"].search_pivots if side == "now" else cca["pivots"].branching_pivots
    writes = cca["engine"].Transformers(network) if side == "now" else network
    found = search(writes, asked, pairs, by_id, max_new_tokens=work["limit"], **more)
    took = time.perf_counter() - began
    said = f"{sum(p.completions for p in found)} completions, {sum(p.deviations for p in found)} deviations"
    return {"seconds": took, "said": said, "count": len(found), "positions": [p.position for p in found]}


def gradient_work(count: int, length: int, shared: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Prefixes of `length` tokens on average after `shared` ones that all begin with."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(int(length * 0.8), int(length * 1.2) + 1, (count,), generator=draw).tolist()
    start = torch.randint(10, 30_000, (shared,), generator=draw).tolist()
    prefixes = [[*start, *torch.randint(10, 30_000, (n,), generator=draw).tolist()] for n in lengths]
    return {"prefixes": prefixes, "batches": batches}


def gradient(cca: dict[str, Any], side: str, network: Any, work: dict[str, Any]) -> dict[str, Any]:
    """Of rows of a circuit of 0.6%; before at the best of the batch sizes; now at the default, whatever it is."""
    find = getattr(cca["components"], "find_components", None) or cca["components"].anatomy
    parts = find(network)
    selected = torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) < 0.006
    delta = cca["delta"].Delta.zeros(network, parts.rows(selected))
    pivots = [
        made(cca["records"].Pivot, prefix=tuple(p), desired=13, undesired=14, problem=str(i), split="train")
        for i, p in enumerate(work["prefixes"])
    ]
    full_gradient, best = cca["update"].full_gradient, 32
    if side == "before":
        few, tried = pivots[: max(work["batches"])], dict[int, float]()
        for size in work["batches"]:
            began = time.perf_counter()
            full_gradient(network, delta, few, size)
            tried[size] = time.perf_counter() - began
        best = min(tried, key=tried.__getitem__)
    clear_peak()
    began = time.perf_counter()
    loss, values = full_gradient(network, delta, pivots, best)
    took = time.perf_counter() - began
    norm = sum(float(v.norm()) ** 2 for v in values.values()) ** 0.5
    return {"seconds": took, "said": f"batch {best}, loss {loss:.4f}, norm {norm:.3f}"}


def clear_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    (kept,) = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM")]
    return int(kept.split()[1]) / 2**20


def main() -> None:
    part, side, folder, file = sys.argv[1:]
    cca = {name: import_module(f"cca.{place}") for name, place in PLACES[side].items()}
    work = json.loads(Path(file).read_text(encoding="utf-8"))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    clear_peak()
    if part == "gradient":
        found = gradient(cca, side, network, work)
    else:
        asked = Asked(work, AutoTokenizer.from_pretrained(folder), cca["records"])
        found = {"stage1": stage1, "branch": branch}[part](cca, side, network, asked, work)
    print(json.dumps(found | {"gib": peak_gib()}))


if __name__ == "__main__":
    main()
