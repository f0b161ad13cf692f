"""The stages of a run in their order: one table. What each does stands in the module of its name."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cca.folder import RunFolder
    from cca.run.run import Run


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    help: what it does, for the command of its name. artifacts: the files that it leaves. optional: those that not every
    run has. scratch: patterns of files that it needs to resume, and nothing after it.
    """

    name: str
    help: str
    artifacts: tuple[str, ...]
    optional: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()

    def work(self, run: "Run") -> None:
        """Do it, from where it was left off."""
        import_module(f"{__name__}.{self.name}").work(run)

    def written(self, folder: "RunFolder") -> list[str]:
        """Its artifacts that `folder` has."""
        return [name for name in self.artifacts if name not in self.optional or folder.file(name).exists()]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "trace",
            "stage 1a: problems, greedy traces and samples of opposite correctness",
            ("problems.jsonl", "traces.jsonl"),
        ),
        Stage(
            "pivots",
            "stage 1b: the token at which each pair of traces turns",
            ("pivots.jsonl", "without_pivot.jsonl"),
        ),
        Stage(
            "circuit",
            "stage 2: learn which components favour the desired token",
            ("circuit.safetensors", "sweep.jsonl"),
            scratch=("circuit.partial.safetensors", "circuit-*.safetensors"),
        ),
        Stage(
            "update",
            "stage 3: change only the circuit's rows, keep the best validated step",
            ("delta.safetensors", "metrics.jsonl", "rounds.jsonl", "total.safetensors"),
            optional=("total.safetensors",),
            scratch=("update.partial.safetensors",),
        ),
        Stage(
            "evaluate",
            "base against updated on target, held-out templates and other skills",
            ("scores.jsonl", "choices.jsonl", "base_tasks.jsonl", "updated_tasks.jsonl", "summary.json"),
            optional=("base_tasks.jsonl", "updated_tasks.jsonl"),
        ),
        Stage(
            "report",
            "report.html: the whole run in one page that opens offline",
            ("report.html",),
        ),
    )
}
MEASURED = tuple(name for name in STAGES if name != "report")
"""What a run's figures come from."""
OF_A_ROUND = ("trace", "pivots", "circuit", "update")
"""What every round does."""
