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


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """The table that `cca run` ends with."""
    circuit, update, pivots = summary["circuit"], summary["update"], summary["pivots"]
    table = Table(title="Base against updated model", title_justify="left", show_edge=False, pad_edge=False)
    for name, justify in (
        ("", "left"),
        ("problems", "right"),
        ("base", "right"),
        ("updated", "right"),
        ("points", "right"),
        ("95% interval", "right"),
        ("McNemar p", "right"),
        ("drift (KL)", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    rows = {"target": summary["target"], "held-out templates": summary["held_out_templates"], **summary["retention"]}
    for name, row in rows.items():
        if row is None:
            continue
        table.add_row(
            Text(name, style="bold" if name == "target" else ""),
            str(row["n"]),
            _percent(row["base"]),
            _percent(row["updated"]),
            _points(row["difference"]),
            f"{_points(row['ci95'][0])} to {_points(row['ci95'][1])}",
            f"{row['mcnemar_p']:.2g}",
            f"{row['drift_kl']:.4f}",
            end_section=name in ("target", "held-out templates"),
        )
    console.print(table)
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
    console.print(
        f"Update: step {update['best_step']}, {update['rows']} rows ({summary['rows']}), "
        f"{update['parameters']:,} numbers; "
        f"held-out pivots won {_percent(update['held_out_pivots_won']['base'])} -> "
        f"{_percent(update['held_out_pivots_won']['updated'])}."
    )
    seconds = summary.get("seconds", {})
    if seconds:
        parts = ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items() if stage != "total")
        console.print(f"Seconds: {seconds['total']:.0f} ({parts}).")
    for warning in summary["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


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
