"""A run for notebooks: its records as data frames, its figures as Plotly objects."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cca.errors import InputError
from cca.folder import RunFolder
from cca.method.circuit import Circuit, Trial
from cca.records import Problem, Score, TracePair
from cca.run.config import Config, load_config
from cca.run.pipeline import STAGES
from cca.run.workspace import make_prompter
from cca.show import figures, views

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class Run:
    """A run folder to look at; nothing is changed and no weights are read.

    What the run has not got to yet raises `InputError` with the command that makes it.
    """

    def __init__(self, folder: RunFolder, config: Config):
        self.folder, self.config = folder, config

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Open the run in the folder `path`.

        Raises:
            InputError: there is none, or pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise InputError("cca.Run needs pandas; install constructive-circuit-amplification[notebook]") from error
        folder = RunFolder.open(Path(path))
        return cls(folder, load_config(folder.file("config.toml")))

    def __repr__(self) -> str:
        finished = ", ".join(stage for stage in STAGES if self.folder.finished(stage))
        return f"Run({str(self.folder.path)!r}, finished: {finished or 'nothing'})"

    # ---- figures as numbers ----

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return views.summary_of(self.folder)

    @cached_property
    def circuit(self) -> Circuit:
        """Gates (C,), their history (epochs, C) and the losses of stage 2."""
        return views.circuit_of(self.folder)

    # ---- data frames ----

    def _frame(self, what: str, rows: Iterable[dict[str, Any]]) -> "pd.DataFrame":
        import pandas as pd

        found = list(rows)
        if not found:
            raise InputError(f"{self.folder.path} has no {what} yet; go on with: cca run --out {self.folder.path}")
        return pd.DataFrame(found)

    @cached_property
    def problems(self) -> "pd.DataFrame":
        """A row a problem, by id."""
        return self._frame("problems", (asdict(p) for p in self.folder.read("problems.jsonl", Problem))).set_index("id")

    @cached_property
    def traces(self) -> "pd.DataFrame":
        """A row a trace: problem, split, template, kind (greedy or sampled), text, answer, correct, tokens."""
        rows = (
            {
                "problem": pair.problem,
                "split": pair.split,
                "template": pair.template,
                "kind": kind,
                "text": trace.text,
                "answer": trace.answer,
                "correct": trace.correct,
                "tokens": len(trace.tokens),
            }
            for pair in self.folder.read("traces.jsonl", TracePair)
            for kind, trace in pair.by_kind().items()
        )
        return self._frame("traces", rows)

    @cached_property
    def pivots(self) -> "pd.DataFrame":
        """A row a pivot, as `cca.show.views.PivotView`; its continuations' columns are desired_token, desired_base ..."""
        flat = []
        for view in views.pivot_views(self.folder, make_prompter(self.config), self.config.pivots.method):
            row = asdict(view)
            for side in ("desired", "undesired"):
                row |= {f"{side}_{key}": value for key, value in row.pop(side).items()}
            flat.append(row)
        return self._frame("pivots", flat)

    @cached_property
    def components(self) -> "pd.DataFrame":
        """A row a component: layer, kind, number, gate, selected."""
        return self._frame("components", (asdict(g) for g in views.gates(self.circuit)))

    @cached_property
    def steps(self) -> "pd.DataFrame":
        """A row a validated step of the update, as `cca.show.views.Step`."""
        return self._frame("steps", (asdict(s) for s in views.steps(self.folder)))

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """A row a graded answer: arm (base or updated), set, problem, template, answer, correct, tokens, text."""
        return self._frame("scores", (asdict(s) for s in self.folder.read("scores.jsonl", Score)))

    @cached_property
    def effects(self) -> "pd.DataFrame":
        """A row a template or skill: accuracies, difference and its interval, as `cca.show.views.Effect`."""
        return self._frame("effects", (asdict(e) for e in self._effects))

    @cached_property
    def _effects(self) -> list[views.Effect]:
        return views.effects(self.folder.read("scores.jsonl", Score), self.config.seed)

    # ---- figures: those of the report ----

    def forest(self) -> "go.Figure":
        """The change of accuracy of each template and skill, with intervals."""
        return figures.forest(self._effects, self.summary)

    def validation_curve(self) -> "go.Figure":
        """Validation accuracy over the steps of the update."""
        return figures.validation_curve(views.steps(self.folder))

    def gates_over_training(self) -> "go.Figure":
        """Where the gates stand after each epoch of stage 2."""
        return figures.gates_over_training(self.circuit)

    def density_sweep(self) -> "go.Figure":
        """The density that each lambda that was tried gave."""
        return figures.density_sweep(self.folder.read("sweep.jsonl", Trial), self.folder.manifest["lambda"])

    def head_map(self, kind: str) -> "go.Figure":
        """Gates of the ``query``, ``key`` or ``value`` heads, layer by head. Raises ValueError: another kind."""
        return figures.head_map(self.circuit, kind)

    def neurons_by_layer(self) -> "go.Figure":
        """Neurons of the circuit in each layer."""
        return figures.neurons_by_layer(self.circuit)
