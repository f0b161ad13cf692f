"""Tables in the terminal: what a run would do, what it found, and what several arms did."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cca.show import words

WIDE = 150
"""Columns that the whole table of a comparison takes."""
COSTS = ("drift", "numbers", "seconds", "GiB")


def show_plan(console: Console, plan: dict[str, Any]) -> None:
    """What `cca run --dry-run` prints."""
    model, parts, circuit, memory, work = (plan[k] for k in ("model", "components", "circuit", "memory_gib", "work"))
    rows, length = plan["rows"], work["prompt_tokens"]
    kinds = ", ".join(f"{parts[kind]:,} {kind}" for kind in ("query", "key", "value", "neuron"))
    splits = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in work["problems"].items())
    lines = {
        "model": f"{model['path']}: {model['type']}, {model['layers']} layers, {model['parameters']:,} parameters",
        "components": f"{parts['all']:,}: {kinds}",
        "rows": f"{rows['all']:,}; {rows['per_head']} a head, {rows['per_neuron']} a neuron",
        "circuit size": f"{circuit['components']:,} components at the paper's density of {circuit['density']:.1%}",
        "memory": f"about {memory['peak']:.2f} GiB at most; weights {memory['weights']:.2f}, and besides",
        "  trace": f"{memory['trace']:.2f}",
        "  circuit": f"{memory['circuit']:.2f}{memory['notes']['circuit']}",
        "  update": f"{memory['update']:.2f}{memory['notes']['update']}",
        "problems": f"{splits}",
        "prompts": f"{length['mean']:.0f} tokens on average, {length['longest']} at most",
        "trace": f"{work['greedy_traces']:,} greedy traces and at most {work['sampled_traces']:,} samples, "
        f"each of at most {work['max_new_tokens']} tokens",
        "pivots": f"at most {work['pivots']:,} to train on; one completion for each deviation that is tried",
        "circuit": f"at most {work['circuit_steps']:,} steps of {work['circuit_batch']} pivots, one token each",
        "update": f"at most {work['update_steps']:,} steps over all pivots, {work['validations']} validations of "
        f"{work['validation_problems']:,} problems",
        **({"rounds": f"at most {work['rounds']} of these four stages"} if work["rounds"] > 1 else {}),
        "evaluate": f"{work['answers']:,} answers, half of them the base model's"
        + (f"; {', '.join(work['benchmarks'])} on both" if work["benchmarks"] else ""),
    }
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for name, text in lines.items():
        table.add_row(name, Text(text))
    console.print(table)


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """The table that `cca run` ends with."""
    table = Table(title="Base against updated model", title_justify="left", show_edge=False, pad_edge=False)
    for name in words.COLUMNS:
        table.add_column(name, justify="right" if name else "left")
    group = "target"
    for row in words.set_rows(summary):
        if row.group != group:
            table.add_section()
            group = row.group
        table.add_row(Text(row.name, style="bold" if row.name == "target" else ""), *row[2:])
    console.print(table)
    console.print(words.COULD_SEE)
    console.print(f"\nPivots: {words.pivots_found(summary)}.")
    for line in words.on_slips(summary):
        console.print(f"  {line}.")
    console.print(f"Circuit: {words.circuit_size(summary)}.")
    console.print(f"Update: {words.what_was_kept(summary)}.")
    if "seconds" in summary:
        console.print(f"Seconds: {words.seconds_spent(summary)}.")
    warnings = [f for f in summary["diagnosis"] if not f["fine"]]
    console.print(
        f"Diagnosis: {len(summary['diagnosis'])} checks, {len(warnings) or 'no'} warning{'s'[: len(warnings) != 1]}."
    )
    for found in warnings:
        console.print(
            Text(f"warning, {found['check']}: {found['message']}. What to do: {found['advice']}.", style="yellow")
        )


def show_comparison(console: Console, comparison: dict[str, Any]) -> None:
    """The table that `cca compare` ends with."""
    from cca.run.compare import COLUMNS, cells

    seeds = ", ".join(map(str, comparison["seeds"]))
    table = Table(title=f"Arms by gain on the target, seeds {seeds}", title_justify="left", show_lines=True)
    # what has no room on a narrow terminal is in the report and in comparison.md
    kept = [i for i, name in enumerate(COLUMNS) if console.width >= WIDE or not name.startswith(COSTS)]
    for name in (COLUMNS[i] for i in kept):
        heading = name.replace(" / ", "\n").replace("drift ", "drift\n").replace(" templates", "\ntemplates")
        table.add_column(
            heading.replace(" (", "\n("), justify="left" if name == "arm" else "right", no_wrap=name == "arm"
        )
    for row in cells(comparison):
        table.add_row(
            *(row[i].replace(" (", "\n(").replace(", ", "\n").replace(" / ", "\n").replace(" ->", "\n->") for i in kept)
        )
    console.print(table)
    console.print("Points are against the base model; 'sees': the smallest change, at least, found 80% of the time.")
