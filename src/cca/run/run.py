"""One run: its folder, its config, its model, and its stages in order."""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cca.controls.methods import OF_SOLUTIONS
from cca.errors import InputError
from cca.evaluation.results import Summary
from cca.folder import RunFolder
from cca.io import user_text
from cca.records import Pivot, Problem
from cca.run import together
from cca.run.changes import open_folder
from cca.run.config import Config, read_config
from cca.run.memory import peak_memory
from cca.run.stages import MEASURED, STAGES, Stage
from cca.show.progress import Display
from cca.show.views import summary_of

if TYPE_CHECKING:
    from cca.method.processes import Processes
    from cca.model.open import Model
    from cca.problems.prompts import Prompter
    from cca.run.tracking import Tracking
    from cca.show.frames import Figures, Frames

_VERSIONS = ("constructive-circuit-amplification", "torch", "transformers", "reasoning-gym")


class Run:
    """A run folder at work, or one to look at. Model and prompter are loaded when a stage first needs them.

    Who works in a folder has it alone, until `close`, the end of a ``with`` or of the process.
    """

    def __init__(self, folder: RunFolder, config: Config, display: Display | None = None):
        self.folder, self.config, self.display = folder, config, display or Display()
        self.tracking: Tracking | None = None
        self.base: Path | None = None
        """A delta that is on the model while the run works: that of the rounds before."""

    def __repr__(self) -> str:
        finished = ", ".join(stage for stage in STAGES if self.folder.finished(stage))
        return f"Run({str(self.folder.path)!r}, finished: {finished or 'nothing'})"

    # ---- open ----

    @classmethod
    def start(cls, path: Path, config: Config, display: Display | None = None, redo: str | None = None) -> Self:
        """Open or create the run folder for `config`, after the cheap checks.

        Args:
            redo: a stage to forget, with everything after it; its settings may then be others than before.

        Raises:
            InputError: bad model, folder or config, or another process works in the folder.
        """
        path = Path(path)
        prompter = cls.check(config, have_problems=redo != "trace" and (path / "problems.jsonl").exists())
        run = cls(open_folder(path, config, redo), config, display)
        run.prompter = run._dated(prompter)
        try:
            run.folder.verify()
        except BaseException:
            run.close()
            raise
        run._say_versions()
        return run

    @classmethod
    def resume(
        cls, path: Path, display: Display | None = None, redo: str | None = None, changes: Sequence[str] = ()
    ) -> Self:
        """Open an existing run folder with the config it was started with, to go on with it. Raises as `start`.

        Args:
            redo: as of `start`.
            changes: ``section.key=value``, of stages that are done again.
        """
        return cls.start(path, config_of(path, changes), display, redo)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open an existing run folder to look at it. Nothing is changed and no weights are read before `model` is.

        Raises:
            InputError: there is none, or what it holds cannot be read.
        """
        return cls(RunFolder.open(Path(path)), config_of(Path(path)))

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self.tracking:
            self.tracking.close()
        if "model" in self.__dict__:
            self.model.engine.close()
        self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def check(config: Config, have_problems: bool = False) -> "Prompter":
        """See, before anything slow, that all a run needs is there; returns its prompter.

        Args:
            have_problems: the run has drawn its problems, so that their source is no longer needed.

        Raises:
            InputError: something is not.
        """
        from cca.evaluation.harness.run import check_tasks
        from cca.model.checks import check_device, check_model
        from cca.model.engines.choice import check_engine
        from cca.model.open import open_prompter
        from cca.problems.skills import check_skill
        from cca.run.problems import target_source

        check_model(config.model.path, trust_remote_code=config.model.trust_remote_code)
        prompter = open_prompter(config.model, config.prompt, config.problems.grader)
        evaluation = config.evaluation
        if not have_problems:
            target_source(config)
        for file in evaluation.text:
            read_text(file)
        for skill in (*evaluation.transfer, *evaluation.retention):
            check_skill(skill)
        if evaluation.tasks:
            check_tasks(evaluation.tasks, evaluation.task_folder, shots=evaluation.task_shots)
        if config.update.method in OF_SOLUTIONS:
            from cca.controls.fine_tuning import check_installed, rounded

            check_installed()
            if config.update.method == "finetune" and config.model.dtype != "float32":
                raise rounded(config.model.dtype.replace("auto", "bfloat16, which auto may come to"))
        check_device(config.model.device, config.model.device_map)
        check_engine(config.engine, config.model)
        together.check(config.model, config.update)
        return prompter

    # ---- what the stages share ----

    @cached_property
    def prompter(self) -> "Prompter":
        """How the problems of the run become prompts. Needs the tokenizer but no weights."""
        from cca.model.open import open_prompter

        return self._dated(open_prompter(self.config.model, self.config.prompt, self.config.problems.grader))

    def _dated(self, prompter: "Prompter") -> "Prompter":
        """`prompter` with the date at which the run was started, which a chat template may say in every prompt."""
        date = self.folder.manifest.get("date")
        return replace(prompter, date=datetime.fromisoformat(date)) if date else prompter

    @cached_property
    def model(self) -> "Model":
        """The model, loaded the first time that a stage needs it."""
        from cca.model.open import open_model

        self.display.doing(_loading(self.config.model.path))
        options: dict[str, Any] = {**dict(self.config.model), "dtype": self.dtype}
        model = open_model(options.pop("path"), prompter=self.prompter, engine=self.config.engine, **options)
        self.use(model)
        return model

    @property
    def dtype(self) -> str:
        """The type of the weights: of ``auto`` what it came to when the run began, where it did."""
        chosen = self.config.model.dtype
        return self.folder.manifest.get("dtype", chosen) if chosen == "auto" else chosen

    def use(self, model: "Model") -> None:
        """Work with a model that is loaded already, and record it where the folder is this process's own.

        Raises:
            InputError: it is not the one that the run was started with.
        """
        options, manifest = self.config.model, self.folder.manifest
        if manifest.setdefault("revision", model.revision) != model.revision:
            raise InputError(
                f"the model at {options.path} is not the one that {self.folder.path} was started with; put that one "
                "back or start a new run with --out"
            )
        self.__dict__["model"] = model
        manifest |= {
            "device": str(model.network.device),
            "dtype": str(model.network.dtype).removeprefix("torch."),
            "seed": self.config.seed,
            "date": self.prompter.date.isoformat(),
            "attention": model.network.config.get_text_config()._attn_implementation,
            "engine": model.engine.name,
            "versions": {name: version(name) for name in _VERSIONS} | {model.engine.name: model.engine.version},
        }
        if self.folder.lock:
            self.folder.save_manifest()

    @cached_property
    def problems(self) -> list[Problem]:
        return self.folder.read("problems.jsonl", Problem)

    def found_pivots(self) -> list[Pivot]:
        """All pivots of the run's method."""
        return [p for p in self.folder.read("pivots.jsonl", Pivot) if p.method == self.config.pivots.method]

    def pivots(self) -> list[Pivot]:
        """Those of them that count."""
        return [p for p in self.found_pivots() if p.counts(self.config.pivots.gap)]

    def pivots_of(self, split: str) -> list[Pivot]:
        """Those of the training or the validation problems."""
        return [p for p in self.pivots() if p.split == split]

    def warn(self, stage: str, message: str) -> None:
        """Say `message` now and keep it for the summary."""
        said = self.folder.noted("warnings", stage, [])
        if message not in said:  # a stage that goes on finds the same
            self.folder.note("warnings", stage, [*said, message])
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def _say_versions(self) -> None:
        """Warn where a run goes on with other packages than it was begun with, since their answers may differ."""
        ahead = next((stage for stage in MEASURED if not self.folder.finished(stage)), None)
        begun = self.folder.manifest.get("versions", {})
        others = [name for name, old in begun.items() if name in _VERSIONS and version(name) != old]
        if ahead and others:
            then, now = (", ".join(f"{name} {of(name)}" for name in others) for of in (begun.__getitem__, version))
            self.warn(
                ahead,
                f"{self.folder.path} was begun with {then} and goes on with {now}, whose answers may differ; to have "
                f"all of one: cca trace {self.folder.path} --redo",
            )

    def begin_tracking(self, names: Sequence[str]) -> None:
        """Send figures to these trackers from now on.

        Raises:
            InputError: one is unknown or not installed, or does not start.
        """
        if names:
            from cca.run.tracking import Tracking

            self.tracking = Tracking(names, self.folder.path, self.folder.config)

    def track(self, stage: str, **figures: float | None) -> None:
        """Send figures to the trackers, where there are any."""
        if self.tracking:
            self.tracking.log(stage, figures)

    # ---- work ----

    def execute(self, stages: Sequence[str] = tuple(STAGES)) -> None:
        """Run those of `stages` that are not finished, in order.

        Raises:
            InputError: a stage needs one that is not finished, or cannot do its work.
        """
        finished = [name for name in STAGES if self.folder.finished(name)]
        for name in finished:
            self.folder.delete(STAGES[name].scratch)  # before which a kill may have come
        with self.display.running(stages, [name for name in stages if name in finished]):
            for name in stages:
                self._execute(STAGES[name])

    def _execute(self, stage: Stage) -> None:
        for before in STAGES:
            if before == stage.name:
                break
            if not self.folder.finished(before):
                raise InputError(f"stage {stage.name} needs {before} first: cca {before} {self.folder.path}")
        if self.folder.finished(stage.name):
            return
        spent = self.folder.noted("seconds", stage.name, 0.0)
        with peak_memory() as used, self.display.stage(stage.name):
            try:
                stage.work(self)
            finally:
                self.folder.note("seconds", stage.name, round(spent + used.seconds, 2))
                peak = max(self.folder.noted("peak_gib", stage.name, 0.0), used.gib)
                self.folder.note("peak_gib", stage.name, round(peak, 3))
                self.folder.save_manifest()
        self.folder.finish(stage.name, stage.written(self.folder))
        self.track(stage.name, seconds=self.folder.noted("seconds", stage.name))
        if self.tracking and stage.name == "evaluate":
            self.tracking.summary(self.summary)
        self.folder.delete(stage.scratch)

    def together(self, stage: str, *arguments: Any) -> "AbstractContextManager[Processes]":
        """Around work of a stage that several processes do, where there are several; gives those that do it.

        The others are given `arguments`, besides what they find in the folder.
        """
        self.model  # is recorded before they load it  # noqa: B018
        base = self.base and self.base.resolve()
        return together.sharing(together.Task(self.folder.path.resolve(), stage, base, arguments))

    def share(self, other: "Run", stages: Sequence[str]) -> None:
        """Take over the date and the finished `stages` of another run, where this one does not have them."""
        if "date" not in self.folder.manifest:
            self.prompter = replace(self.prompter, date=other.prompter.date)
        for stage in stages:
            if not self.folder.finished(stage):
                self.folder.take(stage, other.folder)

    # ---- look ----

    @property
    def summary(self) -> Summary:
        """What the run found. Raises InputError where it is not finished."""
        return summary_of(self.folder)

    @cached_property
    def frames(self) -> "Frames":
        """Its records as pandas data frames. Raises InputError where pandas is not installed."""
        from cca.show.frames import Frames

        return Frames(self.folder, lambda: self.prompter)

    @cached_property
    def figures(self) -> "Figures":
        """The report's figures as Plotly objects."""
        from cca.show.frames import Figures

        return Figures(self.folder)


def config_of(path: Path, changes: Sequence[str] = ()) -> Config:
    """The config of the run in `path`, with `changes` (``section.key=value``) on top.

    Raises:
        InputError: there is no run, or its config cannot be read.
    """
    path = Path(path)
    return read_config(RunFolder.open(path).config, str(path / "config.toml"), changes)


def _loading(path: str) -> str:
    """What to say while the weights at `path` are loaded: how large they are, where they are here already."""
    from huggingface_hub import snapshot_download

    from cca.model.bundled import location

    where = Path(location(path))
    try:
        folder = where if where.exists() else Path(snapshot_download(path, local_files_only=True))
    except (OSError, ValueError):  # not fetched yet, or no name that the hub could have
        return f"fetching and loading the weights of {path}"
    files = [folder] if folder.is_file() else folder.glob("model*.safetensors")
    mib = sum(file.stat().st_size for file in files) / 2**20
    return f"loading the weights of {path} ({f'{mib / 1024:.1f} GiB' if mib >= 100 else f'{mib:.1f} MiB'})"


def default_folder(config_path: Path | None) -> Path:
    """Where a run goes that names no folder: ``runs/`` + the config's name."""
    return Path(os.environ.get("CCA_RUNS", "runs")) / (config_path.stem if config_path else "bundled")


def read_text(file: str) -> str:
    """The text of one of `evaluation.text`.

    Raises:
        InputError: it cannot be read or is empty.
    """
    text = user_text(file, "evaluation.text", "name a file of UTF-8 text")
    if not text.strip():
        raise InputError(f"evaluation.text {file} is empty; name a file with text, or leave it out")
    return text
