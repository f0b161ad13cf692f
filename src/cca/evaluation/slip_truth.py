"""Ground truth on the bundled model: where a trace makes the slip that was planted in its template's solutions."""

from collections.abc import Mapping
from dataclasses import replace

from cca.problems.prompts import Prompter
from cca.problems.slips import SLIPS, first_difference
from cca.records import Pivot, Problem, TracePair


def slip_position(prompter: Prompter, problem: Problem, tokens: tuple[int, ...], kind: str) -> int | None:
    """The index in `tokens` of the planted slip's first wrong token; None where the trace does not make it.

    The slip is made where the trace repeats the slipped solution up to and including the first token in which
    that differs from the right solution.
    """
    slipped = SLIPS[kind](problem.solution)
    if slipped is None:
        return None
    right_ids, slipped_ids = prompter.reference(problem.solution), prompter.reference(slipped)
    position = first_difference(right_ids, slipped_ids)
    return position if tokens[: position + 1] == slipped_ids[: position + 1] else None


def mark_on_slip(
    prompter: Prompter, pair: TracePair, problem: Problem, pivot: Pivot, kinds: Mapping[str, str]
) -> Pivot:
    """`pivot` with `on_slip` set: True or False where the wrong trace of `pair` makes its planted slip, else None."""
    kind = kinds.get(problem.template)
    assert pair.sampled is not None
    wrong = pair.sampled if pair.greedy.correct else pair.greedy
    position = slip_position(prompter, problem, wrong.tokens, kind) if kind else None
    if position is None:
        return replace(pivot, on_slip=None)
    same_place = pivot.position == position and pair.sampled.tokens[:position] == wrong.tokens[:position]
    return replace(pivot, on_slip=same_place)
