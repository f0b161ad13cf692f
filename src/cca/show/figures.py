"""Figures of a run as Plotly objects: the same in the report and in a notebook.

Colours can be told apart with any colour vision (Okabe and Ito 2008, shifted so that they read on white and on black),
and no meaning is in colour alone. Text that comes from data is escaped, since Plotly takes some markup in labels.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from cca.evaluation.results import Comparison, Interval, PooledResult, SetResult, Summary
from cca.records import KINDS, Trial
from cca.show import words
from cca.show.circuit import CircuitView
from cca.show.views import Effect, Step

BLUE, ORANGE, GREY = "#2f86c9", "#d9650f", "#868b93"
FADED = "rgba(47,134,201,0.2)"
SCALE = "Cividis"
MOST_TEMPLATES = 60
"""Rows of a forest plot."""
SHADES = 20
"""Bins of a gate's value."""
LONGEST = 28
"""Characters of a name beside an axis; of a longer one, hovering tells all."""


def _plain(text: str) -> str:
    return html.escape(text, quote=False)


def _label(name: str) -> str:
    half = LONGEST // 2
    return _plain(name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}") or "(no name)"


def _whole(span: int) -> int | None:
    """The distance between ticks of an axis of whole numbers: no halves where there are few."""
    return 1 if span <= 12 else None


def _log_ticks(low: float, high: float) -> list[float]:
    """Values that a logarithmic axis from `low` to `high` has: 1, 2 and 5 of each decade, or 1 where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    return ticks if len(ticks) > 1 else [low, high] if low < high else [low]


def _figure(height: int, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10, "pad": 4},
        font={"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"family": "system-ui, sans-serif"}, "align": "left"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        showlegend=False,
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        # a line at 0 reads as a baseline, which few axes have
        update(
            automargin=True, gridcolor="rgba(134,139,147,0.25)", zeroline=False, zerolinecolor=GREY, title_standoff=8
        )
    figure.update_layout(**layout)
    return figure


def _named(effect: Effect) -> str:
    if effect.skill:
        return f"{effect.split}: {effect.skill}"
    return f"{'held out: ' if effect.split == 'held_out' else ''}{effect.template}"


def shown_effects(effects: Sequence[Effect]) -> list[Effect]:
    """What a forest plot has room for: skills, then the templates with most problems, from the largest gain down."""
    skills = [e for e in effects if e.skill]
    templates = sorted((e for e in effects if not e.skill), key=lambda e: (-e.n, e.template))
    kept = templates[: max(0, MOST_TEMPLATES - len(skills))]
    order = {"test": 0, "held_out": 1, "transfer": 2, "retention": 3}
    return sorted([*kept, *skills], key=lambda e: (order[e.split], -e.difference, e.template))


class _Estimate(NamedTuple):
    """A row of a plot of differences. title, about: what hovering tells besides."""

    name: str
    difference: float
    ci95: Interval
    title: str
    about: str = ""
    colour: str = GREY
    symbol: str = "circle"
    size: int = 8


def _estimates(figure: go.Figure, rows: Sequence[_Estimate], axis: str) -> go.Figure:
    """Differences as points with their 95% intervals, one below the other, and a line at 0."""
    figure.add_scatter(
        x=[100 * r.difference for r in rows],
        y=list(range(len(rows))),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * (r.ci95.high - r.difference) for r in rows],
            "arrayminus": [100 * (r.difference - r.ci95.low) for r in rows],
            "color": GREY,
            "thickness": 1.3,
            "width": 0,
        },
        mode="markers",
        marker={
            "symbol": [r.symbol for r in rows],
            "size": [r.size for r in rows],
            "color": [r.colour for r in rows],
            "opacity": 1,
        },
        customdata=[
            [_plain(r.title), words.points(r.difference), r.ci95.in_points, r.about and f"<br>{r.about}"] for r in rows
        ],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]} points (%{customdata[2]})%{customdata[3]}"
        "<extra></extra>",
    )
    figure.add_vline(0, line={"color": GREY, "width": 1})
    figure.update_xaxes(title=axis, ticksuffix=" ")
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[_label(r.name) for r in rows], range=[len(rows) - 0.4, -0.6],
        showgrid=False,
    )  # fmt: skip
    return figure


def forest(effects: Sequence[Effect], summary: Summary) -> go.Figure:
    """The change of accuracy of each template, with its 95% interval, below that of the whole sets.

    effects: as `cca.show.views.effects`. summary: of the run, whose intervals of sets are over templates.
    """
    rows: list[_Estimate] = []

    def add(name: str, found: Effect | SetResult, told: str, **look: Any) -> None:
        ci95 = found.ci95 if isinstance(found, SetResult) else Interval(found.low, found.high)
        colour = BLUE if ci95.low > 0 else ORANGE if ci95.high < 0 else GREY
        about = _plain(f"{words.percent(found.base)} → {words.percent(found.updated)}{told}")
        rows.append(_Estimate(name, found.difference, ci95, name, about, colour, **look))

    def counts(found: Effect | SetResult) -> str:
        return f", {found.n} problems, {found.gained} gained, {found.lost} lost"

    for name, found in (("target, all", summary.target), ("held-out templates, all", summary.held_out_templates)):
        if found:
            add(name, found, counts(found), symbol="diamond", size=12)
    for effect in shown_effects(effects):
        add(_named(effect), effect, counts(effect))
    for name, found in summary.retention.items():
        if found.metric:  # a benchmark, whose answers are not among the scores
            add(f"retention: {name}", found, f" ({found.metric}), {found.n} documents")
    return _estimates(_figure(80 + 19 * len(rows)), rows, "change in points")


def methods(comparison: Comparison) -> go.Figure:
    """The gain of each method of a comparison on the target, with its 95% interval, best first."""

    def row(name: str, title: str, target: PooledResult) -> _Estimate:
        colour = BLUE if name == comparison.first else GREY
        return _Estimate(name, target.difference, target.ci95, title, colour=colour, size=10)

    found = comparison.methods
    rows = [row(name, found[name].title, found[name].target) for name in comparison.ranked]
    return _estimates(_figure(90 + 28 * len(rows)), rows, "points on the target against the base model")


def validation_curve(steps: Sequence[Step]) -> go.Figure:
    """Accuracy on the validation problems at each validated step, with Wilson's intervals as a band, or as a bar where
    there is one step, and the preference accuracy at held-out pivots."""
    figure = _figure(330, showlegend=True)
    for number in sorted({s.round for s in steps}):
        part = [s for s in steps if s.round == number]
        x, name = [s.step for s in part], f"round {number}: " if len({s.round for s in steps}) > 1 else ""
        figure.add_scatter(
            x=x + x[::-1],
            y=[100 * s.high for s in part] + [100 * s.low for s in part[::-1]],
            mode="lines", fill="toself", fillcolor=FADED, line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=x,
            y=[100 * s.preference_accuracy for s in part],
            name=f"{name}preference accuracy, held-out pivots",
            mode="lines+markers",
            line={"color": GREY, "dash": "dot"},
            marker={"symbol": "square", "size": 5},
            customdata=[s.margin for s in part],
            hovertemplate="step %{x}: %{y:.1f}% preferred, mean margin %{customdata:.2f}<extra></extra>",
        )
        figure.add_scatter(
            x=x,
            y=[100 * s.accuracy for s in part],
            name=f"{name}validation accuracy",
            mode="lines+markers",
            line={"color": BLUE},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (s.high - s.accuracy) for s in part],
                "arrayminus": [100 * (s.accuracy - s.low) for s in part],
                "color": BLUE,
                "thickness": 1.3,
                "visible": len(part) == 1,
            },
            marker={
                "size": [12 if s.kept else 6 for s in part],
                "symbol": ["star" if s.kept else "circle" for s in part],
                "opacity": 1,
            },
            customdata=[[100 * s.low, 100 * s.high, s.n, ", kept" if s.kept else ""] for s in part],
            hovertemplate="step %{x}%{customdata[3]}: %{y:.1f}% of %{customdata[2]} "
            "(%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="step of the update (star: kept)", dtick=_whole(max(s.step for s in steps)))
    figure.update_yaxes(title="%")
    return figure


def gates_over_training(circuit: CircuitView) -> go.Figure:
    """How many gates stand at which value after each epoch, as shades of a logarithm, and the circuit's size."""
    epochs = len(circuit.history)
    counts = np.stack([np.histogram(gates, SHADES, (0, 1))[0] for gates in circuit.history]).T
    size = (circuit.history > 0.5).sum(1)
    low, high = int(size.min()), int(size.max())
    logarithm = low > 0
    figure = _figure(330, showlegend=True)
    x = list(range(1, epochs + 1))
    figure.add_heatmap(
        x=x,
        y=[(i + 0.5) / SHADES for i in range(SHADES)],
        z=np.log10(counts + 1).tolist(),
        customdata=counts.tolist(),
        colorscale=SCALE,
        showscale=False,
        name="gates",
        hovertemplate="epoch %{x}: %{customdata:,} gates near %{y:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=x,
        y=size.tolist(),
        yaxis="y2",
        name=f"components in the circuit (right axis{', logarithm' if logarithm else ''})",
        mode="lines+markers",
        line={"color": ORANGE, "width": 3},
        marker={"size": 5},
        hovertemplate="epoch %{x}: %{y:,} components<extra></extra>",
    )
    figure.update_xaxes(title="epoch of stage 2", showgrid=False, range=[0.5, epochs + 0.5], dtick=_whole(epochs))
    figure.update_layout(
        yaxis={"title": "gate", "showgrid": False, "range": [0, 1]},
        yaxis2={
            "title": {"text": "components"}, "overlaying": "y", "side": "right", "showgrid": False, "zeroline": False,
            "automargin": True,
            **(
                {"type": "log", "tickvals": _log_ticks(low, high), "tickformat": ",", "range": _padded(low, high)}
                if logarithm
                else {"type": "linear", "rangemode": "tozero"}
            ),
        },
    )  # fmt: skip
    return figure


def _padded(low: float, high: float) -> list[float]:
    """The range of a logarithmic axis with room around its values."""
    room = max(0.1, 0.1 * math.log10(high / low))
    return [math.log10(low) - room, math.log10(high) + room]


def density_sweep(trials: Sequence[Trial], chosen: float) -> go.Figure:
    """The density that each lambda gave; `chosen` is the run's own."""
    ordered = sorted(trials, key=lambda t: t.penalty)
    figure = _figure(300)
    figure.add_scatter(
        x=[t.penalty for t in ordered],
        y=[100 * t.density for t in ordered],
        mode="lines+markers",
        line={"color": BLUE},
        marker={
            "size": [12 if t.penalty == chosen else 7 for t in ordered],
            "symbol": ["star" if t.penalty == chosen else "circle" for t in ordered],
            "opacity": 1,
        },
        cliponaxis=False,
        hovertemplate="lambda %{x:.4g}: density %{y:.2f}%<extra></extra>",
    )
    figure.update_xaxes(title="lambda (star: the run's)")
    if (low := ordered[0].penalty) > 0:
        high = ordered[-1].penalty
        figure.update_xaxes(type="log", tickvals=_log_ticks(low, high), tickformat="~g", range=_padded(low, high))
    figure.update_yaxes(title="density, %", rangemode="tozero")
    return figure


def _layered(layers: int) -> go.Figure:
    """A figure with a row for each layer, the first on top."""
    figure = _figure(110 + min(420, max(16, 300 // layers) * layers))
    figure.update_yaxes(title="layer", range=[layers - 0.5, -0.5], showgrid=False, dtick=_whole(layers))
    return figure


def head_map(circuit: CircuitView, kind: str) -> go.Figure:
    """The gates of one kind of head as a grid of layers and heads; those of the circuit have a dot.

    Raises:
        ValueError: the kind is none of query, key and value.
    """
    if kind not in KINDS[:3]:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS[:3])}")
    rows = [parts[KINDS.index(kind)].tolist() for parts in circuit.by_layer()]
    width = max(map(len, rows))
    crowded = max(width, len(rows)) > 20
    figure = _layered(len(rows))
    figure.add_heatmap(
        z=[row + [None] * (width - len(row)) for row in rows],
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        xgap=0 if crowded else 1,
        ygap=0 if crowded else 1,
        colorbar={"thickness": 8, "outlinewidth": 0, "tickvals": [0, 0.5, 1]},
        hovertemplate=f"layer %{{y}}, {kind} head %{{x}}: gate %{{z:.2f}}<extra></extra>",
    )
    chosen = [(x, y) for y, row in enumerate(rows) for x, gate in enumerate(row) if gate > 0.5]
    figure.add_scatter(
        x=[x for x, _ in chosen], y=[y for _, y in chosen], mode="markers", hoverinfo="skip",
        marker={"color": "#111", "size": 3 if crowded else 7, "line": {"color": "#fff", "width": crowded or 1.5}},
    )  # fmt: skip
    figure.update_xaxes(title=f"{kind} head", showgrid=False, dtick=_whole(width))
    return figure


def neurons_by_layer(circuit: CircuitView) -> go.Figure:
    """How many neurons of each layer are in the circuit."""
    neurons = [parts[3] for parts in circuit.by_layer()]
    counts = [int((part > 0.5).sum()) for part in neurons]
    figure = _layered(len(counts))
    figure.add_bar(
        x=counts,
        y=list(range(len(counts))),
        orientation="h",
        marker={"color": BLUE},
        text=[f"{count:,}" for count in counts] if len(counts) <= 30 else None,
        textangle=0,
        cliponaxis=False,
        customdata=[[len(part), 100 * count / max(1, len(part))] for part, count in zip(neurons, counts, strict=True)],
        hovertemplate="layer %{y}: %{x} of %{customdata[0]:,} neurons (%{customdata[1]:.2f}%)<extra></extra>",
    )
    most = max([1, *counts])
    figure.update_xaxes(title="neurons in the circuit", range=[0, 1.08 * most], zeroline=True, dtick=_whole(most))
    return figure
