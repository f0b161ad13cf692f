"""What people see: the summary table and pivots in their context. Model output is text here, never markup."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cca.records import Pivot


def _points(value: float) -> str:
    return f"{value * 100:+.1f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f}%"


def _could_see(detectable: float | None) -> str:
    return "too few" if detectable is None else f"{detectable * 100:.1f}"


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
    circuit, pivots = summary["circuit"], summary["pivots"]
    table = Table(title="Base against updated model", title_justify="left", show_edge=False, pad_edge=False)
    for name, justify in (
        ("", "left"),
        ("problems", "right"),
        ("base", "right"),
        ("updated", "right"),
        ("points", "right"),
        ("95% interval", "right"),
        ("McNemar p", "right"),
        ("could see", "right"),
        ("drift (KL)", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    groups: list[dict[str, Any]] = [
        {"target": summary["target"]},
        {"held-out templates": summary["held_out_templates"]} if summary["held_out_templates"] else {},
        {f"transfer: {name}": row for name, row in summary["transfer"].items()},
        {f"retention: {name}": row for name, row in summary["retention"].items()},
    ]
    for group in groups:
        for name, row in group.items():
            unchanged = row["ci95"][0] <= 0 <= row["ci95"][1]
            table.add_row(
                Text(name, style="bold" if name == "target" else ""),
                str(row["n"]),
                _percent(row["base"]),
                _percent(row["updated"]),
                _points(row["difference"]),
                f"{_points(row['ci95'][0])} to {_points(row['ci95'][1])}",
                "" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}",
                _could_see(row["detectable"]) if unchanged else "",
                "" if row["drift_kl"] is None else f"{row['drift_kl']:.4f}",
            )
        table.add_section()
    console.print(table)
    console.print(
        "Where the interval holds 0, 'could see' is the smallest change, in points and at least, found 80% of the time."
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in circuit["by_kind"].items())
    console.print(
        f"\nPivots: {pivots['found']} from {pivots['problems']} problems ({summary['method']} method, "
        f"{pivots['completions']} completions)."
    )
    for method, share in pivots["on_slip"].items():
        if share:
            console.print(
                f"  {_percent(share['share'])} ({_percent(share['ci95'][0])} to {_percent(share['ci95'][1])}) of the "
                f"{share['n']} {method} pivots in traces with a planted slip sit on the slip's own token."
            )
    size = f"{circuit['selected']} of {circuit['components']} components ({circuit['density']:.2%})"
    console.print(f"Circuit: {size}: {kinds}.")
    console.print(f"Update: {_steps(summary)}.")
    seconds = summary.get("seconds", {})
    if seconds:
        parts = ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items() if stage != "total")
        console.print(f"Seconds: {seconds['total']:.0f} ({parts}).")
    warnings = [f for f in summary["diagnosis"] if not f["fine"]]
    console.print(
        f"Diagnosis: {len(summary['diagnosis'])} checks, {len(warnings) or 'no'} warning{'s'[: len(warnings) != 1]}."
    )
    for found in warnings:
        console.print(
            Text(f"warning, {found['check']}: {found['message']}. What to do: {found['advice']}.", style="yellow")
        )


def _steps(summary: dict[str, Any]) -> str:
    """What was kept of the update, and what validation saw; of each round where there are several."""
    update, rounds, won = summary["update"], summary["rounds"], summary["update"]["held_out_pivots_won"]
    size = f"{update['rows']} rows ({summary['arm']}), {update['parameters']:,} numbers"
    if len(rounds) < 2:
        return (
            f"step {update['best_step']}, {size}; "
            f"held-out pivots won {_percent(won['base'])} -> {_percent(won['updated'])}"
        )
    seen = [rounds[0]["validation"]["base"], *(r["validation"]["updated"] for r in rounds)]
    each = "; ".join(f"{r['pivots']} pivots, density {r['density']:.2%}, step {r['best_step']}" for r in rounds)
    return f"{len(rounds)} rounds, {size}; validation {' -> '.join(map(_percent, seen))} ({each})"


def show_comparison(console: Console, comparison: dict[str, Any]) -> None:
    """The table that `cca compare` ends with."""
    from cca.compare import COLUMNS, cells

    seeds = ", ".join(map(str, comparison["seeds"]))
    table = Table(title=f"Arms by gain on the target, seeds {seeds}", title_justify="left", show_lines=True)
    for name in COLUMNS:
        heading = name.replace(" / ", "\n").replace("drift ", "drift\n").replace(" templates", "\ntemplates")
        table.add_column(
            heading.replace(" (", "\n("), justify="left" if name == "arm" else "right", no_wrap=name == "arm"
        )
    for row in cells(comparison):
        table.add_row(*(cell.replace(" (", "\n(").replace(", ", "\n").replace(" / ", "\n") for cell in row))
    console.print(table)
    console.print("Points are against the base model; 'sees': the smallest change, at least, found 80% of the time.")


def show_pivots(console: Console, pivots: Sequence[Pivot], decode: Any, count: int = 10) -> None:
    """`count` pivots spread over the run: the end of the prefix, then desired against undesired token."""
    step = max(1, len(pivots) // count)
    for pivot in pivots[::step][:count]:
        context = decode(list(pivot.prefix))
        wrong_trace = "sampled" if pivot.greedy_correct else "greedy"
        slip = {True: ", on its slip", False: ", not on its slip", None: ""}[pivot.on_slip]
        title = f"{pivot.problem} ({wrong_trace} trace wrong{slip})"
        text = Text(f"{title}\n", style="bold")
        text.append("... " + context[-160:].replace("\n", "⏎"), style="not bold")
        text.append(_visible(decode([pivot.desired])), style="bold black on green")
        text.append(" not ", style="dim not bold")
        text.append(_visible(decode([pivot.undesired])), style="bold white on red")
        text.append("\n")
        console.print(text)


def _visible(token: str) -> str:
    """A token with its white space shown, in brackets, so that it can be told apart without colour."""
    return "[" + token.replace("\n", "⏎").replace(" ", "␣") + "]"
