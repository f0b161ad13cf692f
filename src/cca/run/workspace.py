"""What the stages of one run share: its folder, config, model and problems, and work in resumable chunks."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from cca.errors import InputError
from cca.folder import RunFolder
from cca.records import Pivot, Problem, Score, TracePair
from cca.run.config import Config, Problems
from cca.show.progress import Display

T = TypeVar("T")
R = TypeVar("R", TracePair, Pivot, Score)


@dataclass
class Workspace:
    """One run: its folder and config, and lazily its model."""

    folder: RunFolder
    config: Config
    display: Display = field(default_factory=Display)

    @cached_property
    def loaded(self) -> Any:
        """The model, loaded the first time that a stage needs it."""
        from cca.model.open import open_model

        self.display.doing("loading the model")
        section = self.config.model
        loaded = open_model(
            section.path,
            section.dtype,
            section.device,
            device_map=section.device_map,
            attention=section.attention,
            trust_remote_code=section.trust_remote_code,
        )
        self.use(loaded)
        return loaded

    def use(self, loaded: Any) -> None:
        """Work with a model that is loaded already, and record it.

        Raises:
            InputError: it is not the one that the run was started with.
        """
        section, manifest = self.config.model, self.folder.manifest
        self.__dict__["loaded"] = loaded
        if manifest.setdefault("revision", loaded.revision) != loaded.revision:
            raise InputError(
                f"the model at {section.path} is not the one that {self.folder.path} was started with; put that one "
                "back or start a new run with --out"
            )
        manifest["device"], manifest["dtype"], manifest["seed"] = (
            str(loaded.network.device),
            section.dtype,
            self.config.seed,
        )
        manifest["attention"] = loaded.network.config.get_text_config()._attn_implementation
        manifest["versions"] = {
            name: version(name)
            for name in ("constructive-circuit-amplification", "torch", "transformers", "reasoning-gym")
        }
        self.folder.save_manifest()

    @cached_property
    def prompter(self) -> Any:
        """Needs the tokenizer but no weights."""
        return make_prompter(self.config)

    @property
    def find_components(self) -> Any:
        return self.loaded.components

    @cached_property
    def problems(self) -> list[Problem]:
        return self.folder.read("problems.jsonl", Problem)

    def warn(self, stage: str, message: str) -> None:
        """Say `message` now and keep it for the summary."""
        self.folder.manifest.setdefault("warnings", {})[stage] = message
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def chosen_pivots(self) -> tuple[list[Pivot], list[Pivot]]:
        chosen = [p for p in self.folder.read("pivots.jsonl", Pivot) if p.method == self.config.pivots.method]
        return [p for p in chosen if p.split == "train"], [p for p in chosen if p.split == "validation"]

    def solved_templates(self, pairs: Sequence[TracePair]) -> frozenset[str]:
        """Templates whose training problems the base model all solves (left out where the config says so)."""
        if not self.config.traces.skip_solved:
            return frozenset()
        outcomes: dict[str, list[bool]] = {}
        for pair in pairs:
            if pair.split == "train":
                outcomes.setdefault(pair.template, []).append(pair.greedy.correct)
        return frozenset(t for t, correct in outcomes.items() if all(correct))

    def in_chunks(
        self,
        stage: str,
        file: str,
        kind: type[R],
        groups: list[list[T]],
        name: Callable[[T], str],
        work: Callable[[list[T]], list[R]],
        each: int,
        shown: Callable[[Sequence[R]], tuple[str, str]],
    ) -> list[R]:
        """Work through `groups`, appending each group's records at once; groups that `file` holds whole are skipped.

        name: the problem id of an item. each: records that an item gives. shown: name and value of the current figure,
        given the records so far. A group that a kill cut off is done again from its start, so that every batch is the
        one that an uninterrupted run computes.
        """
        records = self.folder.recover(file, kind)
        counts = Counter(r.problem for r in records)
        whole = {name(item) for g in groups if all(counts[name(item)] == each for item in g) for item in g}
        records = [r for r in records if r.problem in whole]
        self.folder.write(file, records)
        total, done = sum(len(g) for g in groups), len(whole)
        with self.display.bar(stage, total, "problems", done) as bar:
            for group in groups:
                if name(group[0]) not in whole:
                    fresh = work(group)
                    self.folder.append(file, fresh)
                    records += fresh
                    bar.figure(*shown(records))
                    bar.reach(done := done + len(group))
        return records


def make_prompter(config: Config) -> Any:
    """How the problems of a run become prompts.

    Raises:
        InputError: no tokenizer, no end token, no chat template, no examples or no such grader.
    """
    from cca.grading.graders import load_grader
    from cca.model.open import check_model, end_tokens, load_tokenizer
    from cca.problems.examples import load_examples
    from cca.problems.prompts import TEMPLATES, Prompter

    path, trust, section = config.model.path, config.model.trust_remote_code, config.prompt
    model_config = check_model(path, trust_remote_code=trust, weights=False)
    tokenizer = load_tokenizer(path, trust_remote_code=trust)
    return Prompter(
        tokenizer,
        TEMPLATES[section.style] if section.template is None else section.template,
        end_tokens(path, model_config, tokenizer),
        section.style,
        section.preamble,
        load_examples(section.examples, section.shots) if section.shots else (),
        section.stop,
        load_grader(config.problems.grader),
    )


def open_problems(section: Problems) -> Any:
    """The source of a run's problems."""
    from cca.problems.sources import open_source

    return open_source(section.source, section.templates, section.max_number or None)


def make_problems(config: Config) -> list[Problem]:
    """All problems of a run.

    Raises:
        InputError: as `open_source` and `build_problems`.
    """
    from cca.problems.splits import build_problems

    section = config.problems
    return build_problems(
        open_problems(section),
        split_by=section.split_by,
        train=section.train,
        validation=section.validation,
        test=section.test,
        held_out=section.held_out,
        transfer=config.evaluation.transfer,
        retention=config.evaluation.retention,
        per_skill=config.evaluation.per_skill,
        seed=config.seed,
    )


def read_text(file: str) -> str:
    """The text of one of `evaluation.text`.

    Raises:
        InputError: it cannot be read or is empty.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read evaluation.text {file} ({error}); name a file of UTF-8 text") from error
    if not text.strip():
        raise InputError(f"evaluation.text {file} is empty; name a file with text, or leave it out")
    return text
