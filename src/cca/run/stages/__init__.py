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

    help: what it does, for the command of its name. artifacts: the files that it leaves. settings: what of the config
    it is the first to depend on, as sections or ``section.key``. optional: artifacts that not every run has. scratch:
    patterns of files that it needs to resume, and nothing after it.
    """

    name: str
    help: str
    artifacts: tuple[str, ...]
    settings: tuple[str, ...]
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
            (
                "seed",
                "model",
                "engine",
                "prompt",
                "problems",
                "traces",
                "evaluation.transfer",
                "evaluation.retention",
                "evaluation.per_skill",
            ),
        ),
        Stage(
            "pivots",
            "stage 1b: the token at which each pair of traces turns",
            ("pivots.jsonl", "without_pivot.jsonl"),
            ("pivots",),
        ),
        Stage(
            "circuit",
            "stage 2: learn which components favour the desired token",
            ("circuit.safetensors", "sweep.jsonl"),
            ("circuit",),
            scratch=("circuit.partial.safetensors", "circuit-*.safetensors"),
        ),
        Stage(
            "update",
            "stage 3: change only the circuit's rows, keep the best validated step",
            ("delta.safetensors", "metrics.jsonl", "rounds.jsonl", "total.safetensors"),
            ("update", "engine.updates", "rounds", "evaluation.batch", "evaluation.max_new_tokens"),
            optional=("total.safetensors",),
            scratch=("update.partial.safetensors",),
        ),
        Stage(
            "evaluate",
            "base against updated on target, held-out templates and other skills",
            ("scores.jsonl", "choices.jsonl", "base_tasks.jsonl", "updated_tasks.jsonl", "summary.json"),
            ("evaluation",),
            optional=("base_tasks.jsonl", "updated_tasks.jsonl"),
            scratch=("base.jsonl",),
        ),
        Stage(
            "report",
            "report.html: the whole run in one page that opens offline",
            ("report.html",),
            (),
        ),
    )
}
MEASURED = tuple(name for name in STAGES if name != "report")
"""What a run's figures come from."""
OF_A_ROUND = ("trace", "pivots", "circuit", "update")
"""What every round does."""


def first_to_use(setting: str) -> str:
    """The first stage that depends on a setting such as ``circuit.lambda``, which a change of it makes void."""
    for name in (setting, setting.partition(".")[0]):
        for stage in STAGES.values():
            if name in stage.settings:
                return stage.name
    return next(iter(STAGES))
