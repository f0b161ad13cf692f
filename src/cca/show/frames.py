"""A run for notebooks: its records as data frames, its figures as Plotly objects. No weights are read."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from cca.errors import InputError, install_command
from cca.folder import RunFolder
from cca.records import Problem, Score, TracePair, Trial
from cca.show import views

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from cca.evaluation.results import Summary
    from cca.problems.prompts import Prompter
    from cca.show.circuit import CircuitView

R = TypeVar("R")


class _Looked:
    """A run folder that is looked at; what was read once is kept."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __repr__(self) -> str:
        names = (name for cls in type(self).__mro__[:-1] for name in vars(cls) if not name.startswith("_"))
        return f"{type(self).__name__} of {self.folder.path}: {', '.join(dict.fromkeys(names))}"

    def _some(self, what: str, found: Iterable[R]) -> list[R]:
        if some := list(found):
            return some
        raise InputError(f"{self.folder.path} has no {what} yet; go on with: cca run --out {self.folder.path}")

    @cached_property
    def _circuit(self) -> "CircuitView":
        from cca.show.circuit import circuit_of

        return circuit_of(self.folder)

    @cached_property
    def _effects(self) -> list[views.Effect]:
        scores = self._some("scores", self.folder.read("scores.jsonl", Score))
        return views.effects(scores, views.settings(self.folder)["seed"])

    @cached_property
    def _steps(self) -> list[views.Step]:
        return self._some("steps", views.steps(self.folder))


class Frames(_Looked):
    """The records of a run as data frames, each made when it is asked for.

    What the run has not got to yet raises `InputError` with the command that makes it.
    """

    def __init__(self, folder: RunFolder, prompter: "Callable[[], Prompter]"):
        """
        Args:
            folder: The run's.
            prompter: Gives its prompter, whose tokenizer the texts of pivots need; called once, if at all.
        """
        super().__init__(folder)
        self._prompter = prompter

    def _frame(self, what: str, rows: Iterable[dict[str, Any]]) -> "pd.DataFrame":
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError(f"data frames need pandas; install it with: {install_command('pandas')}") from error
        return pd.DataFrame(self._some(what, rows))

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
                "verdict": trace.verdict,
                "tokens": len(trace.tokens),
            }
            for pair in self.folder.read("traces.jsonl", TracePair)
            for kind, trace in pair.by_kind().items()
        )
        return self._frame("traces", rows)

    @cached_property
    def pivots(self) -> "pd.DataFrame":
        """A row a pivot, as `cca.show.views.PivotView`; the columns of its continuations are desired_token ..."""
        flat = []
        for view in views.pivot_views(self.folder, self._prompter()):
            row = asdict(view)
            for side in ("desired", "undesired"):
                row |= {f"{side}_{key}": value for key, value in row.pop(side).items()}
            flat.append(row)
        return self._frame("pivots", flat)

    @cached_property
    def components(self) -> "pd.DataFrame":
        """A row a component: layer, kind, number, gate, selected."""
        return self._frame("components", (asdict(g) for g in self._circuit.components()))

    @cached_property
    def steps(self) -> "pd.DataFrame":
        """A row a validated step of the update, as `cca.show.views.Step`."""
        return self._frame("steps", (asdict(s) for s in self._steps))

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """A row a graded answer: model (base or updated), split, skill, problem, template, answer, correct, text ..."""
        return self._frame("scores", (asdict(s) for s in self.folder.read("scores.jsonl", Score)))

    @cached_property
    def effects(self) -> "pd.DataFrame":
        """A row a template or skill: accuracies, difference and its interval, as `cca.show.views.Effect`."""
        return self._frame("effects", (asdict(e) for e in self._effects))


class Figures(_Looked):
    """The figures of a run's report as Plotly objects.

    What the run has not got to yet raises `InputError` with the command that makes it.
    """

    @cached_property
    def _summary(self) -> "Summary":
        return views.summary_of(self.folder)

    @property
    def _drawn(self) -> ModuleType:
        from cca.show import figures

        return figures

    def forest(self) -> "go.Figure":
        """The change of accuracy of each template and skill, with intervals."""
        return self._drawn.forest(self._effects, self._summary)

    def validation_curve(self) -> "go.Figure":
        """Validation accuracy over the steps of the update."""
        return self._drawn.validation_curve(self._steps)

    def gates_over_training(self) -> "go.Figure":
        """Where the gates stand after each epoch of stage 2."""
        return self._drawn.gates_over_training(self._circuit)

    def density_sweep(self) -> "go.Figure":
        """The density that each lambda that was tried gave."""
        return self._drawn.density_sweep(
            self._some("circuit", self.folder.read("sweep.jsonl", Trial)), self.folder.kept("lambda", "circuit")
        )

    def head_map(self, kind: str) -> "go.Figure":
        """Gates of one kind of head, layer by head.

        Args:
            kind: ``query``, ``key`` or ``value``.

        Raises:
            ValueError: It is another.
        """
        return self._drawn.head_map(self._circuit, kind)

    def neurons_by_layer(self) -> "go.Figure":
        """Neurons of the circuit in each layer."""
        return self._drawn.neurons_by_layer(self._circuit)
