"""The problems of a run. Needs no torch, but to see whether prompts fit a model."""

from collections.abc import Iterable
from typing import Any

from cca.errors import InputError
from cca.problems.examples import load_examples
from cca.problems.rows import same_question
from cca.problems.sources import Source
from cca.problems.splits import build_problems, chosen_source, how_split
from cca.records import Problem, Split
from cca.run.config import Config


def target_source(config: Config) -> Source:
    """Where the target's problems come from, without those that the prompt's examples show: their answers are given.

    Raises:
        InputError: as `chosen_source`, or the source itself says that a problem which is shown is no training problem.
    """
    source = chosen_source(config.problems)
    shown = _shown(config)
    if how_split(source, config.problems.split_by) == "source":
        asked = set(map(same_question, shown))
        for row in source.rows:
            if row.split != "train" and same_question(row.worked.question) in asked:
                raise InputError(
                    f"prompt.examples {config.prompt.examples} shows the question of {row.place}, a {row.split} "
                    "problem, so that its answer is given away; show another, or leave that row out"
                )
    return source.without(shown)


def _shown(config: Config) -> list[str]:
    """The questions of the prompt's examples."""
    return [e.question for e in load_examples(config.prompt)]


def draw_problems(config: Config, source: Source | None = None) -> list[Problem]:
    """All problems of a run.

    Args:
        config: The run's.
        source: `target_source`, where it is open already.

    Raises:
        InputError: As `target_source` and `build_problems`.
    """
    evaluation = config.evaluation
    return build_problems(
        source or target_source(config),
        config.problems,
        transfer=evaluation.transfer,
        retention=evaluation.retention,
        per_skill=evaluation.per_skill,
        shown=_shown(config),
        seed=config.seed,
    )


def check_fit(config: Config, prompts: Iterable[tuple[Split, tuple[int, ...]]], model_config: Any) -> None:
    """See that the model can read the prompts of each split's problems, and write after each as much as it may.

    Raises:
        InputError: it cannot.
    """
    from cca.method.traces import TRACED
    from cca.model.checks import check_prompts

    given = list(prompts)
    traced = [prompt for split, prompt in given if split in TRACED]
    answered = [prompt for split, prompt in given if split != "train"]
    limits = (config.traces.max_new_tokens, "traces.max_new_tokens"), config.answer_limit
    for found, (tokens, setting) in zip((traced, answered), limits, strict=True):
        if found:
            check_prompts(found, tokens, model_config, config.model.path, setting)
