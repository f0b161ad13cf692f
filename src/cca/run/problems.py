"""The problems of a run. Needs no torch."""

from cca.problems.sources import Source
from cca.problems.splits import build_problems, chosen_source
from cca.records import Problem
from cca.run.config import Config


def draw_problems(config: Config, source: Source | None = None) -> list[Problem]:
    """All problems of a run.

    Args:
        config: The run's.
        source: That of its problems, where it is open already.

    Raises:
        InputError: As `chosen_source` and `build_problems`.
    """
    evaluation = config.evaluation
    return build_problems(
        source or chosen_source(config.problems),
        config.problems,
        transfer=evaluation.transfer,
        retention=evaluation.retention,
        per_skill=evaluation.per_skill,
        seed=config.seed,
    )
