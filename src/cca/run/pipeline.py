"""The stages in order. Only this module knows the order; what each does to the run folder is in `cca.jobs`."""

import json
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.folder import RunFolder, write_text
from cca.problems.skills import check_skill
from cca.run.config import Config, load_config
from cca.run.workspace import Workspace, make_prompter, open_problems, read_text
from cca.show.progress import Display

STAGES = ("trace", "pivots", "circuit", "update", "evaluate", "report")
MEASURED = STAGES[:-1]
"""What a run's figures come from: all but the report."""
ARTIFACTS: dict[str, tuple[str, ...]] = {
    "trace": ("problems.jsonl", "traces.jsonl"),
    "pivots": ("pivots.jsonl", "without_pivot.jsonl"),
    "circuit": ("circuit.safetensors", "sweep.jsonl"),
    "update": ("delta.safetensors", "metrics.jsonl", "rounds.jsonl", "total.safetensors"),
    "evaluate": ("scores.jsonl", "choices.jsonl", "base_tasks.jsonl", "updated_tasks.jsonl", "summary.json"),
    "report": ("report.html",),
}
OPTIONAL = {"total.safetensors", "base_tasks.jsonl", "updated_tasks.jsonl"}
"""Artifacts that not every run has: the sum of several rounds' deltas, and scores of benchmarks."""


class Pipeline(Workspace):
    """The stages of one run."""

    @classmethod
    def start(cls, path: Path, config: Config, display: Display | None = None, redo: str | None = None) -> "Pipeline":
        """Open or create the run folder for `config`, after the cheap checks.

        redo: a stage to forget, with everything after it.

        Raises:
            InputError: bad model, folder or config.
        """
        prompter = cls.check(config, have_problems=(path / "problems.jsonl").exists())
        pipeline = cls(RunFolder.create(path, config), config, display or Display())
        pipeline.prompter = prompter
        if redo:
            pipeline.redo(redo)
        pipeline.folder.verify([s for s in STAGES if pipeline.folder.finished(s)])
        return pipeline

    @staticmethod
    def check(config: Config, have_problems: bool = False) -> Any:
        """See, before anything slow, that all a run needs is there; returns its prompter.

        have_problems: the run has drawn its problems, so that their source is no longer needed.

        Raises:
            InputError: something is not.
        """
        from cca.model.open import check_model

        check_model(config.model.path, trust_remote_code=config.model.trust_remote_code)
        prompter = make_prompter(config)
        if not have_problems:
            open_problems(config.problems)
        for file in config.evaluation.text:
            read_text(file)
        for skill in (*config.evaluation.transfer, *config.evaluation.retention):
            check_skill(skill)
        if config.evaluation.tasks:
            from cca.evaluation.harness.run import check_tasks

            data = config.evaluation.task_data
            check_tasks(config.evaluation.tasks, Path(data) if data else None, shots=config.evaluation.task_shots)
        if config.update.arm in ("lora", "finetune"):
            from cca.controls.fine_tuning import check_installed

            check_installed()
        _check_device(config.model.device)
        return prompter

    @classmethod
    def resume(cls, path: Path, display: Display | None = None, redo: str | None = None) -> "Pipeline":
        """Open an existing run folder with the config it was started with."""
        RunFolder.open(path)
        return cls.start(path, load_config(path / "config.toml"), display, redo)

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Run those of `stages` that are not finished, in order."""
        with self.display.running(stages, [s for s in stages if self.folder.finished(s)]):
            for stage in stages:
                before = STAGES[: STAGES.index(stage)]
                missing = [s for s in before if not self.folder.finished(s)]
                if missing:
                    raise InputError(f"stage {stage} needs {missing[0]} first: cca {missing[0]} {self.folder.path}")
                if self.folder.finished(stage):
                    continue
                with self.folder.timed(stage), self.display.stage(stage):
                    getattr(import_module(f"cca.run.stages.{stage}"), stage)(self)
                if stage == "evaluate":
                    self._add_seconds()
                self.folder.finish(stage, written(stage, self.folder))

    def share(self, other: "Pipeline", stages: Sequence[str]) -> None:
        """Take over the outcome of finished `stages` of another run, where this one does not have them."""
        for stage in stages:
            if not self.folder.finished(stage):
                self.folder.take(stage, other.folder, written(stage, other.folder))

    def redo(self, stage: str) -> None:
        """Forget `stage` and everything after it."""
        later = STAGES[STAGES.index(stage) :]
        self.folder.reset(later, [name for s in later for name in ARTIFACTS[s]])
        if "update" in later:
            for folder in self.folder.path.glob("round-*"):
                shutil.rmtree(folder)

    def _add_seconds(self) -> None:
        path = self.folder.file("summary.json")
        summary = json.loads(path.read_text(encoding="utf-8"))
        seconds = {stage: self.folder.seconds(stage) for stage in MEASURED}
        seconds["total"] = round(sum(seconds.values()), 2)
        summary["seconds"] = seconds
        write_text(path, json.dumps(summary, indent=1) + "\n")


def written(stage: str, folder: RunFolder) -> list[str]:
    """The artifacts of a stage that `folder` has."""
    return [name for name in ARTIFACTS[stage] if name not in OPTIONAL or folder.file(name).exists()]


def _check_device(device: str) -> None:
    import torch

    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"model.device {device!r} is no torch device; use auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"model.device is {device!r} but torch sees no CUDA device; set it to cpu or auto")


def default_folder(config_path: Path | None) -> Path:
    """Where a run goes that names no folder: ``runs/`` + the config's name."""
    return Path(os.environ.get("CCA_RUNS", "runs")) / (config_path.stem if config_path else "bundled")
