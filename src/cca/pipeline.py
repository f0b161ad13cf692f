"""The stages in order. Only this module knows the order and the config; each stage takes plain arguments."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from cca.config import Config, load_config
from cca.errors import InputError
from cca.progress import stage_bar
from cca.records import Metric, Pivot, Problem, Score, TracePair, WithoutPivot
from cca.store import RunFolder, write_text
from cca.workspace import Workspace, make_problems, make_prompter

STAGES = ("trace", "pivots", "circuit", "update", "evaluate")
ARTIFACTS: dict[str, tuple[str, ...]] = {
    "trace": ("problems.jsonl", "traces.jsonl"),
    "pivots": ("pivots.jsonl", "without_pivot.jsonl"),
    "circuit": ("circuit.safetensors",),
    "update": ("delta.safetensors", "metrics.jsonl"),
    "evaluate": ("scores.jsonl", "summary.json"),
}
SCRATCH: dict[str, tuple[str, ...]] = {
    "circuit": ("circuit.partial.safetensors",),
    "update": ("update.partial.safetensors",),
}
SPARSE = 0.02
"""The paper's circuits are below this density."""


class Pipeline(Workspace):
    """The stages of one run."""

    @classmethod
    def start(cls, path: Path, config: Config, quiet: bool = False) -> "Pipeline":
        """Open or create the run folder for `config`, after the cheap checks of the model.

        Raises:
            InputError: bad model, folder or config.
        """
        from cca.models import check_model

        check_model(config.model.path, trust_remote_code=config.model.trust_remote_code)
        prompter = make_prompter(config)
        _check_device(config.model.device)
        pipeline = cls(RunFolder.create(path, config), config, quiet)
        pipeline.prompter = prompter
        pipeline.folder.verify([s for s in STAGES if pipeline.folder.finished(s)])
        return pipeline

    @classmethod
    def resume(cls, path: Path, quiet: bool = False) -> "Pipeline":
        """Open an existing run folder with the config it was started with."""
        RunFolder.open(path)
        return cls.start(path, load_config(path / "config.toml"), quiet)

    # ---- the stages ----

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Run those of `stages` that are not finished, in order."""
        for stage in stages:
            before = STAGES[: STAGES.index(stage)]
            missing = [s for s in before if not self.folder.finished(s)]
            if missing:
                raise InputError(f"stage {stage} needs {missing[0]} first: cca {missing[0]} {self.folder.path}")
            if self.folder.finished(stage):
                continue
            with self.folder.timed(stage):
                getattr(self, stage)()
            self.folder.finish(stage, ARTIFACTS[stage])
            for name in SCRATCH.get(stage, ()):
                self.folder.file(name).unlink(missing_ok=True)
        if self.folder.finished("evaluate"):
            self._add_seconds()

    def redo(self, stage: str) -> None:
        """Forget `stage` and everything after it."""
        later = STAGES[STAGES.index(stage) :]
        self.folder.reset(later, [name for s in later for name in (*ARTIFACTS[s], *SCRATCH.get(s, ()))])

    def trace(self) -> None:
        from cca.models import check_model, check_prompts
        from cca.traces import chunks, trace_chunk

        options, path = self.config.traces, self.config.model.path
        problems = make_problems(self.config)
        check_prompts(
            [self.prompter.prompt(p) for p in problems],
            options.max_new_tokens,
            check_model(path, trust_remote_code=self.config.model.trust_remote_code),
            path,
        )
        model = self.loaded.model
        write_text(self.folder.file("problems.jsonl"), "".join(p.line() + "\n" for p in problems))
        traced = [p for p in problems if p.split in ("train", "validation")]
        self.in_chunks(
            "trace",
            "traces.jsonl",
            TracePair,
            list(chunks(traced, self.prompter, options.batch)),
            lambda problem: problem.id,
            lambda chunk: trace_chunk(
                model,
                self.prompter,
                chunk,
                samples=options.samples,
                temperature_if_correct=options.temperature_if_correct,
                temperature_if_wrong=options.temperature_if_wrong,
                max_new_tokens=options.max_new_tokens,
                seed=self.config.seed,
            ),
            each=1,
        )

    def pivots(self) -> None:
        from cca.models import slip_kinds
        from cca.pivots import branching_pivots, prefix_pivot
        from cca.slip_truth import mark_on_slip

        pairs = self.folder.read("traces.jsonl", TracePair)
        by_id = {p.id: p for p in self.problems}
        solved = self.solved_templates(pairs)
        usable = [pair for pair in pairs if pair.sampled and pair.template not in solved]
        left_out = [
            WithoutPivot(p.problem, p.split, p.template, "template_solved" if p.template in solved else str(p.reason))
            for p in pairs
            if p.template in solved or not p.sampled
        ]
        write_text(self.folder.file("without_pivot.jsonl"), "".join(r.line() + "\n" for r in left_out))
        method, size, kinds = self.config.pivots.method, self.config.traces.batch, slip_kinds(self.config.model.path)

        def find(chunk: list[TracePair]) -> list[Pivot]:
            found = [prefix_pivot(pair) for pair in chunk]
            if method == "branching":
                limit = self.config.traces.max_new_tokens
                found += branching_pivots(self.loaded.model, self.prompter, chunk, by_id, max_new_tokens=limit)
            pairs_here = {pair.problem: pair for pair in chunk}
            return [mark_on_slip(self.prompter, pairs_here[p.problem], by_id[p.problem], p, kinds) for p in found]

        groups = [usable[start : start + size] for start in range(0, len(usable), size)]
        each = 2 if method == "branching" else 1
        found = self.in_chunks("pivots", "pivots.jsonl", Pivot, groups, lambda pair: pair.problem, find, each)
        if not [p for p in found if p.method == method and p.split == "train"]:
            raise InputError(
                f"no problem gave a pivot ({len(pairs)} problems, {len(usable)} with an opposite sample): the model is "
                "right or wrong whatever is sampled; raise traces.samples or problems.train, or choose other templates"
            )

    def circuit(self) -> None:
        from cca.circuit import learn_circuit

        options = self.config.circuit
        pivots, _ = self.chosen_pivots()
        with stage_bar("circuit", options.epochs, "epochs", quiet=self.quiet) as bar:
            done = 0

            def report(epoch: int, _: int, density: float) -> None:
                nonlocal done
                bar.advance(epoch - done, f"density {density:.1%}")
                done = epoch

            circuit = learn_circuit(
                self.loaded.model,
                self.anatomy,
                pivots,
                penalty=options.penalty,
                learning_rate=options.learning_rate,
                decay=options.decay,
                decay_every=options.decay_every,
                batch_size=options.batch,
                epochs=options.epochs,
                patience=options.patience,
                cache_gib=options.cache_gib,
                seed=self.config.seed,
                state_path=self.folder.file("circuit.partial.safetensors"),
                progress=report,
            )
        if not bool(circuit.selected.any()):
            lower = options.penalty / 2
            self.redo("circuit")
            raise InputError(
                f"lambda {options.penalty:g} leaves an empty circuit; lower it in a new run, for example: "
                f"--set circuit.lambda={lower:g}"
            )
        if circuit.density > SPARSE:
            self.warn(
                "circuit",
                f"lambda {options.penalty:g} gives a density of {circuit.density:.2%}, over the paper's 2%; "
                f"a sparser circuit needs a higher one: --set circuit.lambda={options.penalty * 1.5 or 0.01:g}",
            )
        circuit.save(self.folder.file("circuit.safetensors"))

    def update(self) -> None:
        import torch

        from cca.circuit import Circuit, random_circuit
        from cca.delta import Delta
        from cca.evaluation import answer_chunk
        from cca.recompute import is_offloaded
        from cca.traces import chunks
        from cca.update import Validation, train_delta

        options = self.config.update
        # an offloaded model's backward pass would hold every layer's weights
        again = options.gradient_checkpointing or is_offloaded(self.loaded.model)
        circuit = Circuit.load(self.folder.file("circuit.safetensors"))
        selected = {
            "circuit": lambda: circuit.selected,
            "random": lambda: random_circuit(self.anatomy, circuit.selected, self.config.seed),
            "all": lambda: torch.ones_like(circuit.selected),
        }[self.config.circuit.rows]()
        train, validation = self.chosen_pivots()
        problems = [p for p in self.problems if p.split == "validation"]
        groups = list(chunks(problems, self.prompter, self.config.evaluation.batch))

        def validate(delta: Delta) -> Validation:
            right = 0
            with delta.active(self.loaded.model):
                for group in groups:
                    scores = answer_chunk(
                        self.loaded.model,
                        self.prompter,
                        group,
                        arm="validation",
                        max_new_tokens=self.config.traces.max_new_tokens,
                    )
                    right += sum(s.correct for s in scores)
            return Validation(right / len(problems), len(problems))

        with stage_bar("update", options.steps, "steps", quiet=self.quiet) as bar:
            done, note = 0, ""

            def report(step: int, _: int, metric: Metric | None) -> None:
                nonlocal done, note
                if metric:
                    note = f"validation {metric.accuracy:.1%}"
                bar.advance(step - done, note)
                done = step

            result = train_delta(
                self.loaded.model,
                self.anatomy.rows(selected),
                train,
                validation,
                validate,
                loss=options.loss,
                learning_rate=options.learning_rate,
                steps=options.steps,
                validate_at={
                    *options.validate_at,
                    *range(options.validate_every, options.steps + 1, options.validate_every),
                },
                patience=options.patience,
                batch_size=options.batch,
                recompute=[layer.module for layer in self.anatomy.layers] if again else (),
                state_path=self.folder.file("update.partial.safetensors"),
                progress=report,
            )
        if result.best_step == 0:
            self.warn(
                "update", "no step of the update helped on the validation problems: the updated model is the base model"
            )
        result.delta.save(self.folder.file("delta.safetensors"))
        write_text(self.folder.file("metrics.jsonl"), "".join(m.line() + "\n" for m in result.metrics))

    def evaluate(self) -> None:
        from cca.circuit import Circuit
        from cca.delta import Delta
        from cca.evaluation import answer_chunk, drift, set_name
        from cca.summary import circuit_summary, comparisons, pivot_summary, update_summary
        from cca.traces import chunks
        from cca.update import best_of

        options, model = self.config.evaluation, self.loaded.model
        delta = Delta.load(self.folder.file("delta.safetensors"), model.device)
        sets: dict[str, list[Problem]] = {}
        for problem in self.problems:
            if problem.split not in ("train", "validation"):
                sets.setdefault(set_name(problem), []).append(problem)
        groups = [g for problems in sets.values() for g in chunks(problems, self.prompter, options.batch)]

        def answer(group: list[Problem]) -> list[Score]:
            def scores(arm: str) -> list[Score]:
                limit = self.config.traces.max_new_tokens
                return answer_chunk(model, self.prompter, group, arm=arm, max_new_tokens=limit)

            base = scores("base")
            with delta.active(model):
                return base + scores("updated")

        scores = self.in_chunks("evaluate", "scores.jsonl", Score, groups, lambda p: p.id, answer, each=2)
        drifts = {
            name: drift(model, self.prompter, delta, spread(problems, options.drift_problems), self.config.update.batch)
            for name, problems in sets.items()
        }
        found = comparisons(scores, drifts, self.config.seed)
        pairs = self.folder.read("traces.jsonl", TracePair)
        by_method: dict[str, list[Pivot]] = {self.config.pivots.method: []}
        for pivot in self.folder.read("pivots.jsonl", Pivot):
            by_method.setdefault(pivot.method, []).append(pivot)
        metrics = self.folder.read("metrics.jsonl", Metric)
        target, held_out = found.pop("target"), found.pop("held_out_templates", None)
        summary = {
            "model": {"path": self.config.model.path, "revision": self.loaded.revision},
            "method": self.config.pivots.method,
            "rows": self.config.circuit.rows,
            "seed": self.config.seed,
            "pivots": pivot_summary(
                pairs, self.folder.read("without_pivot.jsonl", WithoutPivot), by_method, self.config.pivots.method
            ),
            "circuit": circuit_summary(self.anatomy, Circuit.load(self.folder.file("circuit.safetensors"))),
            "update": update_summary(delta, metrics, best_of(metrics).step),
            "target": target,
            "held_out_templates": held_out,
            "retention": found,
            "warnings": [m for s, m in self.folder.manifest.get("warnings", {}).items() if s in STAGES],
        }
        write_text(self.folder.file("summary.json"), json.dumps(summary, indent=1) + "\n")

    def _add_seconds(self) -> None:
        path = self.folder.file("summary.json")
        summary = json.loads(path.read_text(encoding="utf-8"))
        seconds = {stage: self.folder.seconds(stage) for stage in STAGES}
        seconds["total"] = round(sum(seconds.values()), 2)
        if summary.get("seconds") != seconds:
            summary["seconds"] = seconds
            write_text(path, json.dumps(summary, indent=1) + "\n")
            self.folder.finish("evaluate", ARTIFACTS["evaluate"])


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """At most `count` of `problems`, evenly spaced, so that every template has its part."""
    if len(problems) <= count:
        return list(problems)
    return [problems[i * len(problems) // count] for i in range(count)]


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
