"""The problems of a run. Needs no torch."""

from cca.problems.splits import build_problems, chosen_source
from cca.records import Problem
from cca.run.config import Config


def draw_problems(config: Config) -> list[Problem]:
    """All problems of a run.

    Raises:
        InputError: as `open_source` and `build_problems`.
    """
    evaluation = config.evaluation
    return build_problems(
        chosen_source(config.problems),
        config.problems,
        transfer=evaluation.transfer,
        retention=evaluation.retention,
        per_skill=evaluation.per_skill,
        seed=config.seed,
    )
