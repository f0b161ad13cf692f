"""What a run shows of the method's known failure modes: the part of its summary that says what to do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cca.evaluation import diagnosis
from cca.evaluation.pivot_kinds import Between
from cca.evaluation.results import Finding, SetResult
from cca.evaluation.scores import answer
from cca.method.circuit import Circuit
from cca.method.traces import by_length
from cca.records import Choice, Metric, Problem, Score, TracePair, Which, WithoutPivot, best_of
from cca.run.run import Run
from cca.run.writing import answers_of

ALONE = 8
"""Problems that are answered alone as well as among others."""


def diagnose(
    run: Run,
    choices: Sequence[Choice],
    turns: Sequence[Between],
    target: Sequence[Problem],
    scores: Sequence[Score],
    result: SetResult,
) -> list[Finding]:
    """Every check of `cca.evaluation.diagnosis`, in the order of the stages.

    choices: what both models make of all pivots. turns: what these choose between. target: its problems, of which some
    are answered alone. scores: of all problems. result: the target's.
    """
    folder, config = run.folder, run.config
    circuit = Circuit.load(folder.file("circuit.safetensors"))
    metrics, train, validation = (
        folder.read("metrics.jsonl", Metric),
        run.pivots_of("train"),
        run.pivots_of("validation"),
    )
    pairs, left_out = folder.read("traces.jsonl", TracePair), folder.read("without_pivot.jsonl", WithoutPivot)
    kept, held_out = best_of(metrics), {p.problem for p in validation}

    def margins(model: Which) -> Tensor:
        return torch.tensor([c.desired - c.undesired for c in choices if c.model == model and c.problem in held_out])

    answers = [score for score in scores if score.set == target[0].set]
    cut = diagnosis.unfinished(pairs, answers, config.traces.max_new_tokens, config.evaluation.max_new_tokens)
    pivots = config.pivots
    found = [
        diagnosis.room(result),
        diagnosis.no_answer(answers, config.problems.grader),
        diagnosis.answer_lengths(answers),
        diagnosis.sample_sizes(len(train), kept.n),
        diagnosis.pivots_by_kind(turns, [p.answer for p in run.problems if p.split == "train"], pivots.confirm > 0),
        *([diagnosis.confirmed(run.found_pivots(), pivots.confirm, pivots.gap)] if pivots.confirm else ()),
        diagnosis.pivot_yield(pairs, left_out, len(train) + len(validation)),
        diagnosis.density(circuit.density, folder.manifest["lambda"], config.circuit.target_density),
        diagnosis.undecided_gates(circuit.gates),
        diagnosis.validation_course(metrics, kept, config.update.steps, len(validation)),
        diagnosis.margins_move(margins("base"), margins("updated"))
        if kept.step
        else diagnosis.margins_tried(metrics, len(validation)),
        diagnosis.loss_against_accuracy(metrics, config.update.loss),
        diagnosis.batch_size_matters(*_answered_alone(run, target, scores)),
    ]
    return [cut, *(diagnosis.after_cut(finding, cut) for finding in found)]


def _answered_alone(run: Run, problems: Sequence[Problem], scores: Sequence[Score]) -> tuple[list[str], int]:
    """Which of some problems the base model answers otherwise alone than among others, and how many these are."""
    ordered, among = by_length(problems, run.prompter), {s.problem: s for s in scores if s.model == "base"}
    some = ordered[:: max(1, len(ordered) // ALONE)][:ALONE]
    limit, writing, alone = run.config.answer_limit.tokens, answers_of(run), list[Score]()
    with run.display.bar("diagnosis", len(some), "answers alone") as bar, writing.told(bar, len(some)):
        for problem in some:  # a call each, or they would share what all prompts begin with
            alone += answer(
                run.model.engine,
                run.prompter,
                [problem],
                model="base",
                max_new_tokens=limit,
                slots=1,
                watch=writing.watch,
            )
    return [score.problem for score in alone if score != among[score.problem]], len(some)
