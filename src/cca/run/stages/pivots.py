"""Stage 1b of a run: the pivots of its trace pairs."""

from collections.abc import Sequence

from cca.errors import InputError
from cca.evaluation.slip_truth import mark_on_slip
from cca.method.pivots import branching_pivots, prefix_pivot
from cca.model.open import slip_kinds
from cca.records import Pivot, TracePair, WithoutPivot
from cca.run.workspace import Workspace


def pivots(run: Workspace) -> None:
    """Write pivots.jsonl and without_pivot.jsonl.

    Raises:
        InputError: no training problem gave a pivot.
    """
    pairs = run.folder.read("traces.jsonl", TracePair)
    by_id = {p.id: p for p in run.problems}
    solved = run.solved_templates(pairs)
    usable = [pair for pair in pairs if pair.sampled and pair.template not in solved]
    left_out = [
        WithoutPivot(p.problem, p.split, p.template, "template_solved" if p.template in solved else str(p.reason))
        for p in pairs
        if p.template in solved or not p.sampled
    ]
    run.folder.write("without_pivot.jsonl", left_out)
    method, size, kinds = run.config.pivots.method, run.config.traces.batch, slip_kinds(run.config.model.path)

    def find(chunk: list[TracePair]) -> list[Pivot]:
        found = [prefix_pivot(pair) for pair in chunk]
        if method == "branching":
            limit = run.config.traces.max_new_tokens
            found += branching_pivots(run.loaded.network, run.prompter, chunk, by_id, max_new_tokens=limit)
        pairs_here = {pair.problem: pair for pair in chunk}
        return [mark_on_slip(run.prompter, pairs_here[p.problem], by_id[p.problem], p, kinds) for p in found]

    groups = [usable[start : start + size] for start in range(0, len(usable), size)]
    each = 2 if method == "branching" else 1

    def shown(pivots: Sequence[Pivot]) -> tuple[str, str]:
        count = sum(p.method == method for p in pivots)
        return "pivot yield", f"{count / len(pairs):.1%} ({count:,} of {len(pairs):,} problems)"

    found = run.in_chunks("pivots", "pivots.jsonl", Pivot, groups, lambda pair: pair.problem, find, each, shown)
    if not [p for p in found if p.method == method and p.split == "train"]:
        raise InputError(
            f"no problem gave a pivot ({len(pairs)} problems, {len(usable)} with an opposite sample): the model is "
            "right or wrong whatever is sampled; raise traces.samples or problems.train, or choose other templates"
        )
