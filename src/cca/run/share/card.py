"""The README.md of what leaves a run: what it is, what was measured, its limits, how it is asked and taken out."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cca import __version__
from cca.evaluation.results import Interval, Summary, difference, percent, points
from cca.model.adapter import Adapter
from cca.model.components import Component
from cca.model.delta import Delta, Rounding
from cca.model.gguf.header import is_gguf, open_gguf
from cca.model.open import Model
from cca.records import KINDS
from cca.run.run import Run
from cca.run.share.asked import asking
from cca.show import words
from cca.show.tables import markdown_table

_NOTEWORTHY = 0.01
"""A larger change of the update by rounding, as a share of its size, is told beside what was measured without it."""
TAGS = ["constructive-circuit-amplification", "cca"]
PAPER = "[arXiv 2512.16914](https://arxiv.org/abs/2512.16914)"
_SERVED = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes as its largest."""


# ---- a merged model ----


def model_card(run: Run, model: Model, delta: Delta, rounding: Rounding, dtype: str, called: str | Path) -> str:
    """The README.md of a merged model. called: the folder where it will be, or its name on the hub."""
    count, base = delta.row_count, _base(run, model.revision)
    if any(bool(rows.values.any()) for rows in delta.weights.values()):
        left = f"; rounding left {rounding.unchanged:.1%} of their parameters as they were"
        changed = (
            f"Its base is {base}; {count:,} rows of {len(delta.weights)} weights were changed "
            f"(method {run.config.update.method}{left if rounding.unchanged else ''}), and nothing else."
        )
    else:
        changed = f"It is its base, {base}: no step of the update helped, so nothing was changed."
    trust = _trust(run)
    loading = [
        *_IMPORTS,
        "",
        f"folder = {str(called)!r}" + ("  # where this file is" if isinstance(called, Path) else ""),
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{trust})',
    ]
    parts = [
        front_matter(run, shown_name(run.config.model.path), "transformers"),
        f"# {shown_name(model.name)}, updated by Constructive Circuit Amplification",
        f"An ordinary transformers model ({dtype}). {changed}",
        *_about(run, _otherwise(run, rounding, dtype), "this folder"),
        "## How it is asked",
        asking(run, model.prompter, model.network.generation_config, loading),
        "`cca merge` made sure that AutoTokenizer reads every prompt and every trace of the run as the run did.",
        "## How to take it out",
        "`cca revert FOLDER OUT` puts back what the rows held, bit by bit.",
    ]
    return _joined(parts)


def _otherwise(run: Run, rounding: Rounding, dtype: str) -> list[str]:
    """In what the merged weights are not those that were measured."""
    found = [f"in {run.dtype}"] if dtype != run.dtype else []
    if rounding.error > _NOTEWORTHY:
        found.append(f"before the update was rounded, which changed it by {rounding.error:.1%} of its size")
    return found


# ---- an adapter ----


def adapter_card(
    run: Run, adapter: Adapter, components: Sequence[Component], base: str, settings: Any, called: str | None
) -> str:
    """The README.md of an adapter.

    base: what it is loaded on. settings: those of `generate` that the base has. called: its name on the hub; None: it
    is in a folder.
    """
    path = run.config.model.path
    rank, trust = adapter.rank, _trust(run)
    whose = f"of {components_in_words(components)} " if components else ""
    cut = ""
    if adapter.lost:
        worst = adapter.worst
        cut = (
            f" Its rank was lowered in {len(adapter.lost)} of {len(adapter.pairs)} modules, which leaves out "
            f"{adapter.error:.1%} of the change's size ({worst}: {adapter.lost[worst]:.1%})."
        )
    network = (
        f"cca.open_model({base!r}).network  # dequantised"
        if is_gguf(path)
        else f'AutoModelForCausalLM.from_pretrained({base!r}, dtype="{run.dtype}"{trust})'
    )
    loading = [
        *(("import cca",) if is_gguf(path) else ()),
        *_IMPORTS,
        "from peft import PeftModel",
        "",
        f"adapter = {called!r}" if called else "adapter = '.'  # the folder where this file is",
        f"tokenizer = AutoTokenizer.from_pretrained(adapter{trust})",
        f"model = {network}",
        "model = PeftModel.from_pretrained(model, adapter)",
    ]
    parts = [
        front_matter(run, base, "peft"),
        f"# {shown_name(path)}, with an adapter by Constructive Circuit Amplification",
        f"A LoRA adapter {whose}for {_base(run, revision_of(run))}, of rank {rank} at most in {len(adapter.pairs)} "
        f"modules (method {run.config.update.method}).{cut}",
        *_about(run, [f"with the {adapter.error:.1%} that is left out here"] if cut else [], "the adapter"),
        "## How it is loaded and asked",
        asking(run, run.prompter, settings, loading, ends=True),
        "## How it is served",
        _serving(base, rank, called or "FOLDER", gguf=is_gguf(path)),
        "## How to take it out",
        "Do not load it: the base is as it was.",
    ]
    return _joined(parts)


def _serving(base: str, rank: int, called: str, *, gguf: bool) -> str:
    if gguf:
        return "The base is a GGUF file; llama.cpp has `convert_lora_to_gguf.py`, which was not tried."
    fits = next((known for known in _SERVED if known >= rank), None)
    if fits is None:
        return (
            f"vLLM serves ranks up to {_SERVED[-1]}, and this has {rank}: `cca export RUN OUT --format peft --max-rank "
            f"{_SERVED[-1]}` takes the nearest change of that rank and says what it leaves out; `cca merge` leaves out "
            "nothing."
        )
    return (
        f"With vLLM:\n\n    vllm serve {base} --enable-lora --max-lora-rank {fits} --max-loras 2 "
        f"--lora-modules cca={called}\n\nThe second place for an adapter stays free: without one, vLLM 0.32 on a CPU "
        "answers requests to the base with the adapter where both are in a batch."
    )


# ---- a model that a delta was applied to ----


def applied_card(model: str, name: str, delta: Delta, rounding: Rounding, dtype: str) -> str:
    """The README.md of a model's files with a delta applied."""
    base = shown_name(model)
    said = f", made on {shown_name(delta.base.name)}" if delta.base else ""
    parts = [
        f"# {base}, changed by Constructive Circuit Amplification",
        f"`cca apply` added the delta `{shown_name(name)}`{said}, to {base} in {dtype}: {delta.row_count:,} rows of "
        f"{components_in_words(delta.components)} were changed, and nothing else.",
        f"Rounding to {dtype} changed the delta by {rounding.error:.1%} of its size, so the model may answer otherwise "
        "than what was measured."
        if rounding.error > _NOTEWORTHY
        else "",
        "\n".join(f"- {line}" for line in metrics_in_words(delta.metrics)),
        "`cca revert FOLDER OUT` takes it out again, bit by bit. What the model said of itself before is kept in the "
        "folder `cca`.",
    ]
    return _joined(parts)


# ---- what they share ----

_IMPORTS = ("import torch", "from transformers import AutoModelForCausalLM, AutoTokenizer")


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _trust(run: Run) -> str:
    return ", trust_remote_code=True" if run.config.model.trust_remote_code else ""


def revision_of(run: Run) -> str:
    """Of the model that `run` is of."""
    return str(run.folder.manifest.get("revision", "unknown"))


def _base(run: Run, revision: str) -> str:
    path = run.config.model.path
    if not is_gguf(path):
        return f"{shown_name(path)} (revision {revision})"
    file = open_gguf(path)
    called = file.fields.get("general.name")
    return (
        f"{shown_name(path)} ({f'{called}, ' if called else ''}a GGUF file of quantisation {file.quantisation}, "
        f"dequantised; SHA-256 {revision})"
    )


def shown_name(path: str) -> str:
    """A model's or a delta's name without the folders of this machine that it lies in."""
    return Path(path).name if Path(path).exists() else path


def _about(run: Run, otherwise: Sequence[str], what: str) -> list[str]:
    """Measured, data and method, limits. otherwise: in what the measured model was not this one."""
    config = run.config
    method = (
        f"Constructive Circuit Amplification ({PAPER}), cca {__version__}, seed {config.seed}: greedy and sampled "
        f"traces, the pivotal token of each pair ({config.pivots.method}), the components that favour the right one, "
        f"and an update of `{config.update.method}`, whose step validation problems chose."
    )
    source = f"Problems of `{shown_name(config.problems.source)}`, graded by `{config.problems.grader}`"
    if not run.folder.finished("evaluate"):
        return [
            "## Data and method",
            f"{source}. {method}",
            "## Limits",
            "The run was not evaluated: nothing is known.",
        ]
    summary = run.summary
    found, table = summary.target, words.set_table(summary)
    said = (
        f"On {found.n:,} test problems: {percent(found.base)} right before, {percent(found.updated)} after, "
        f"{difference(found)}."
    )
    if otherwise:
        said += f" That was measured {' and '.join(otherwise)}: {what} may answer otherwise."
    limits = [words.retention_verdict(summary)]
    limits += [f"{f.message} (what to do: {f.advice})." for f in summary.diagnosis if not f.fine]
    return [
        "## Measured",
        said,
        markdown_table(table.headings, table.cells),
        "\n".join(table.notes),
        "## Data and method",
        f"{source}. {method}",
        f"Pivots: {words.pivots_found(summary)}. Circuit: {words.circuit_size(summary)}. Update: "
        f"{words.what_was_kept(summary)}.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits),
    ]


def front_matter(run: Run, base: str, library: str) -> str:
    """The metadata that the hub reads, with every figure and its interval."""
    known: dict[str, Any] = {"library_name": library, "tags": [*TAGS, *(["lora"] if library == "peft" else [])]}
    if is_hub_name(base):
        known["base_model"] = base
    if run.folder.finished("evaluate"):
        known |= {"model_name": f"{shown_name(base).rpartition('/')[2]}-cca", "eval_results": list(_results(run))}
    return f"---\n{ModelCardData(**known).to_yaml()}\n---"


def is_hub_name(path: str) -> bool:
    """Whether others find a model under this name on the hub."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not Path(path).exists()


def _results(run: Run) -> Sequence[EvalResult]:
    source, summary = shown_name(run.config.problems.source), run.summary
    metrics = metrics_of(summary)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.sub(r"[^\w./-]+", "-", source if group in ("target", "held-out templates") else name),
            dataset_name=name,
            metric_type=found.metric or "accuracy",
            metric_name=f"{name}, updated",
            metric_value=round(found.updated, 6),
            metric_args=metrics[name],
        )
        for group, name, found in summary.sets()
    ]


def components_in_words(components: Sequence[Component]) -> str:
    """As ``46 components (9 key, 3 value, 34 neuron)``."""
    counts = {kind: sum(c.kind == kind for c in components) for kind in KINDS}
    return f"{len(components):,} components ({', '.join(f'{n:,} {kind}' for kind, n in counts.items() if n)})"


def metrics_of(summary: Summary) -> dict[str, Any]:
    """What a run measured, by set, as the header of a delta has it."""
    kept = ("n", "base", "updated", "difference", "ci95", "sign_flip_p", "metric")
    return {
        name: {
            key: [round(v, 6) for v in value] if isinstance(value, tuple) else value
            for key in kept
            if (value := getattr(result, key)) is not None
        }
        for _, name, result in summary.sets()
    }


def metrics_in_words(metrics: Mapping[str, Any]) -> list[str]:
    """A line a set; those of which not all figures are there are left out, since anyone may have written them."""
    lines: list[str] = []
    for name, found in metrics.items():
        try:
            n, low, high = int(found["n"]), *map(float, found["ci95"])
            before, after, gain = (float(found[key]) for key in ("base", "updated", "difference"))
        except (KeyError, TypeError, ValueError):
            continue
        interval = f"{points(gain)} points ({Interval(low, high).in_points})"
        lines.append(f"{name}: {percent(before)} before, {percent(after)} after, {interval}, of {n:,}")
    return lines
