"""The page from a run folder: figures and texts as data, set into a Jinja2 template that escapes everything.

Model output, questions and template names are untrusted. They reach the page as escaped text, or as JSON in which no
markup survives and which the page's script only ever shows as text. A content security policy lets the page run its
own two scripts and nothing else, and load nothing.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cca.evaluation.pivot_kinds import OUTCOMES, PIVOT_KINDS
from cca.evaluation.results import Comparison, Summary, difference
from cca.folder import RunFolder
from cca.io import write_text
from cca.problems.files import natural_order
from cca.problems.prompts import Prompter
from cca.records import KINDS, Score, Trial
from cca.show import figures, tables, words
from cca.show.circuit import CircuitView, circuit_of
from cca.show.views import REPORT, PivotView, effects, pivot_views, steps, summary_of

PIVOT_BYTES = 2_000_000
"""What the pivots may take of the page; of more, an even part is shown. The page without them takes 5 MB."""


class Panel(NamedTuple):
    """A figure with what it shows."""

    id: str
    title: str
    caption: str
    figure: go.Figure
    wide: bool = False


def _effects(folder: RunFolder, summary: Summary) -> Panel:
    found = effects(folder.read("scores.jsonl", Score), summary.seed)
    left_out = len(found) - len(figures.shown_effects(found))
    note = f" {left_out} templates with fewer problems are left out." if left_out else ""
    return Panel(
        "forest",
        "By template and skill",
        "Change of accuracy with its 95% interval. Blue lies above 0, orange below, grey holds 0. A "
        f"template's interval is of its problems; the whole target's (diamond) is over templates.{note}",
        figures.forest(found, summary),
        wide=True,
    )


def _learning(folder: RunFolder, circuit: CircuitView) -> list[Panel]:
    found = [
        Panel(
            "validation",
            "Validation",
            "Accuracy on the validation problems with its 95% band; the star is the step that was kept. Preference "
            "accuracy: the share of held-out pivots at which the desired token has the higher logit.",
            figures.validation_curve(steps(folder)),
        ),
        Panel(
            "gates",
            "Gates over training",
            "Every gate starts at 1; the penalty pulls down those that do not help. Brighter: more gates there "
            "(logarithm). The circuit is what ends above 0.5.",
            figures.gates_over_training(circuit),
        ),
    ]
    trials = folder.read("sweep.jsonl", Trial)
    if len(trials) > 1:
        said = "Each lambda that was tried, and the share of the components that its circuit holds."
        sweep = figures.density_sweep(trials, folder.kept("lambda", "circuit"))
        found.append(Panel("sweep", "Density by lambda", said, sweep))
    return found


def _maps(circuit: CircuitView) -> list[Panel]:
    heads = [
        Panel(f"heads-{kind}", f"{kind.capitalize()} heads", "", figures.head_map(circuit, kind)) for kind in KINDS[:3]
    ]
    return [*heads, Panel("neurons", "MLP neurons", "", figures.neurons_by_layer(circuit))]


def panels(
    folder: RunFolder, summary: Summary, circuit: CircuitView, comparison: Comparison | None
) -> dict[str, list[Panel]]:
    """The figures of a run by the section of the page that they belong to."""
    gains = [Panel("methods", "Gain on the target", "", figures.methods(comparison), wide=True)] if comparison else []
    return {
        "effects": [_effects(folder, summary)],
        "methods": gains,
        "learning": _learning(folder, circuit),
        "maps": _maps(circuit),
    }


def shown_pivots(views: Sequence[PivotView]) -> list[dict[str, Any]]:
    """Pivots for the browser, evenly spaced where all of them would take more than `PIVOT_BYTES`."""
    rows = [asdict(v) for v in sorted(views, key=lambda v: natural_order(v.problem))]
    size = sum(len(_json(row)) for row in rows)
    count = min(len(rows), max(1, int(len(rows) * PIVOT_BYTES / size)))
    return [rows[i * len(rows) // count] for i in range(count)]


def render(folder: RunFolder, prompter: Prompter, comparison: Comparison | None = None) -> str:
    """The report of a finished run.

    Args:
        folder: The run's.
        prompter: The run's; its tokenizer writes the texts of pivots.
        comparison: That of several methods, of which the run is one.

    Raises:
        InputError: The run is not finished.
    """
    summary, circuit = summary_of(folder), circuit_of(folder)
    views, sections = pivot_views(folder, prompter), panels(folder, summary, circuit, comparison)
    pivots = shown_pivots(views)
    charts = {panel.id: json.loads(str(panel.figure.to_json())) for found in sections.values() for panel in found}
    scripts = [get_plotlyjs(), _file("page.js")]
    env = Environment(
        loader=PackageLoader("cca.show.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return env.get_template("page.html").render(
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
        + " ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        scripts=[Markup(script) for script in scripts],
        style=Markup(_file("page.css")),
        charts=Markup(_json(charts)),
        pivots=Markup(_json(pivots)),
        outcomes=OUTCOMES,
        counts=Counter(p["outcome"] for p in pivots),
        kinds=PIVOT_KINDS,
        kind_counts=Counter(p["kind"] for p in pivots),
        kind_table=words.kind_table(summary),
        found=len(views),
        shown=len(pivots),
        templates=sorted({p["template"] for p in pivots}, key=natural_order),
        summary=summary,
        sections=sections,
        words=words,
        table=words.set_table(summary),
        difference=difference,
        comparison=comparison,
        tables=tables,
        config=folder.config,
        manifest=folder.manifest,
        checksums={n: d for stage, of in folder.manifest["stages"].items() if stage != REPORT for n, d in of.items()},
        name=folder.path.resolve().name,
    )  # fmt: skip


def _file(name: str) -> str:
    return (files("cca.show.report") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write_report(path: Path, folder: RunFolder, prompter: Prompter, comparison: Comparison | None = None) -> None:
    """Write the report of `folder` to `path`, whole or not at all. Raises as `render`."""
    write_text(path, render(folder, prompter, comparison))
