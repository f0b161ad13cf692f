"""The front door of the evaluation: base against updated model on the problems that neither was updated on."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cca.errors import InputError
from cca.evaluation.drift import drift, solution_texts
from cca.evaluation.options import EvaluationOptions
from cca.evaluation.results import Drift, SetResult, difference, percent
from cca.evaluation.scores import answer, evaluated_sets
from cca.evaluation.summarize import comparisons
from cca.method.options import TraceOptions
from cca.method.traces import by_length
from cca.model.checks import check_prompts
from cca.model.delta import Delta
from cca.model.intervention import Intervention
from cca.model.open import Model, opened
from cca.model.state import frozen
from cca.options import check_seed
from cca.records import Problem, ProblemSet, Score, check_problems


@dataclass(frozen=True)
class Evaluation:
    """Base against updated model.

    Attributes:
        results: by set: ``target``, ``held-out templates``, ``transfer: chain_sum`` ... Each holds accuracies with
            their intervals, the difference with its own, what the sample could have shown, and the drift on the worked
            solutions, where there are some.
        scores: both models' answers to each problem.
    """

    results: dict[str, SetResult]
    scores: tuple[Score, ...] = field(repr=False)

    @property
    def target(self) -> SetResult | None:
        """The result on test problems of the target, where there were some."""
        return self.results.get("target")

    def __repr__(self) -> str:
        name = "target" if self.target else next(iter(self.results))
        found, others = self.results[name], len(self.results) - 1
        return (
            f"Evaluation({name}: {percent(found.base)} -> {percent(found.updated)} of {found.n:,}, {difference(found)}"
            + (f"; {found.cut.base:.0%} cut" if found.cut else "")
            + (f"; {others} other set{'s' * (others > 1)}" if others else "")
            + ")"
        )


def evaluate(
    model: Model,
    problems: Sequence[Problem],
    delta: Intervention,
    *,
    max_new_tokens: int = TraceOptions().max_new_tokens,
    batch: int = EvaluationOptions().batch,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Let the base and the updated model answer the problems that are not for training or validation.

    Args:
        model: the base model. It is left as it was.
        problems: of any split, such as `load_problems` gives; those of training and validation are left out.
        delta: the update, or another intervention.
        max_new_tokens: tokens an answer may have.
        batch: problems answered together, at most.
        seed: of the intervals.
        progress: told after each problem how many both models have answered, and of how many.

    Returns:
        A result for each set of problems, and all answers.

    Raises:
        InputError: all problems are for training or validation, a prompt does not fit the model, or an argument is out
            of range.
        FloatingPointError: what a model computes is not finite.
    """
    opened(model)
    check_problems(problems)
    if not hasattr(delta, "active"):
        raise InputError(f"a {type(delta).__name__} is no update; load one with cca.Delta.load(path, model)")
    if isinstance(delta, Delta):
        delta.check_fits(model)
    check_seed(seed)
    max_new_tokens = TraceOptions().changed({"max_new_tokens": max_new_tokens}).max_new_tokens
    options = EvaluationOptions().changed({"batch": batch})
    sets = evaluated_sets(problems)
    if not sets:
        raise InputError(
            f"none of the {len(problems)} problems tests the update, since training and validation problems do not; "
            "give some with the split test, held_out, transfer or retention, as load_problems does"
        )
    prompts = [model.prompter.prompt(p) for found in sets.values() for p in found]
    check_prompts(prompts, max_new_tokens, model.network.config, model.name, "max_new_tokens")
    scores: list[Score] = []
    counted = itertools.count(1)

    def told(score: Score) -> None:
        if progress and score.model == "updated":
            progress(next(counted), len(prompts))

    with frozen(model.network):
        for found in sets.values():
            scores += _both(model, delta, by_length(found, model.prompter), max_new_tokens, options.batch, told)
        drifts = _drifts(model, delta, sets, options)
    results = {name.name: result for name, result in comparisons(scores, drifts, seed).items()}
    return Evaluation(results, tuple(scores))


def _both(
    model: Model,
    delta: Intervention,
    problems: Sequence[Problem],
    limit: int,
    slots: int,
    done: Callable[[Score], None],
) -> list[Score]:
    how: dict[str, Any] = {"max_new_tokens": limit, "slots": slots, "done": done}
    found = answer(model.engine, model.prompter, problems, model="base", **how)
    with model.engine.changed(delta):
        return found + answer(model.engine, model.prompter, problems, model="updated", **how)


def _drifts(
    model: Model, delta: Intervention, sets: dict[ProblemSet, list[Problem]], options: EvaluationOptions
) -> dict[ProblemSet, Drift]:
    texts = {name: solution_texts(model.prompter, found, options.drift_problems) for name, found in sets.items()}
    return {name: drift(model.network, delta, found, options.batch) for name, found in texts.items() if found}
