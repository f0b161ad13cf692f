"""In what two checkpoints differ, for people: a line a layer. Printed to stdout, for it is what was asked for."""

from typing import TYPE_CHECKING

from rich.table import Table

from cca.records import KINDS
from cca.show.terminal import console_for_output, safe

if TYPE_CHECKING:
    from cca.model.difference import ChangedComponent, Difference

_SHOWN = 12
"""Numbers of components that a cell names."""


def show_difference(found: "Difference", first: str, second: str) -> None:
    """Counts, then the components by layer, then what else differs."""
    console = console_for_output()
    if not found.components and not found.others:
        console.print(safe(f"{first} and {second} hold the same weights (compared as {found.compared_as})."))
        return
    counts = {kind: sum(c.component.kind == kind for c in found.components) for kind in KINDS}
    share = len(found.components) / found.size
    console.print(
        safe(
            f"{second} differs from {first} in {found.rows:,} rows of {len(found.components):,} of {found.size:,} "
            f"components ({share:.2%}: {', '.join(f'{n:,} {kind}' for kind, n in counts.items())}), "
            f"compared as {found.compared_as}."
        )
    )
    if found.components:
        console.print(_by_layer(found))
    if not found.others:
        console.print("Nothing else differs.")
        return
    console.print(f"{len(found.others):,} weights differ beside them:")
    table = Table("weight", "rows that differ", "change", show_edge=False, pad_edge=False)
    for name, changed in found.others.items():
        table.add_row(safe(name), f"{changed.rows:,} of {changed.of:,}", f"{changed.change:.2%}")
    console.print(table)


def _by_layer(found: "Difference") -> Table:
    table = Table("layer", *KINDS, "largest change", show_edge=False, pad_edge=False)
    layers: dict[int, list[ChangedComponent]] = {}
    for changed in found.components:
        layers.setdefault(changed.component.layer, []).append(changed)
    for layer, inside in layers.items():
        cells = (_numbers([c for c in inside if c.component.kind == kind]) for kind in KINDS)
        most = max(inside, key=lambda c: c.change)
        table.add_row(str(layer), *cells, f"{most.change:.2%} ({most.component.kind} {most.component.number})")
    return table


def _numbers(changed: "list[ChangedComponent]") -> str:
    """Which they are; of many the first, and how many."""
    named = [str(c.component.number) + ("" if c.rows == c.of else f" ({c.rows} of {c.of} rows)") for c in changed]
    if len(named) <= _SHOWN:
        return ", ".join(named)
    return f"{len(named):,}: {', '.join(named[:_SHOWN])} ..."
