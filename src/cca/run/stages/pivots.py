"""Stage 1b of a run: the pivots of its trace pairs."""

from collections.abc import Sequence

from cca.evaluation.slip_truth import mark_on_slip
from cca.method.pivots import branching_pivots, check_found, prefix_pivot
from cca.method.traces import Traces
from cca.model.bundled import slip_kinds
from cca.records import Pivot, TracePair, WithoutPivot
from cca.run.chunks import in_chunks
from cca.run.run import Run


def work(run: Run) -> None:
    """Write pivots.jsonl and without_pivot.jsonl.

    Raises:
        NothingToLearnError: no training problem gave a pivot.
    """
    by_id = {p.id: p for p in run.problems}
    traces = Traces(tuple(run.folder.read("traces.jsonl", TracePair)), by_id, run.config.traces)
    run.folder.write("without_pivot.jsonl", _without_pivot(traces))
    method, size, kinds = run.config.pivots.method, run.config.traces.batch, slip_kinds(run.config.model.path)

    def find(chunk: Sequence[TracePair]) -> list[Pivot]:
        # the prefix method costs nothing, so both are kept for comparison
        found = [prefix_pivot(pair) for pair in chunk]
        if method == "branching":
            limit = traces.options.max_new_tokens
            found += branching_pivots(run.model.network, run.prompter, chunk, by_id, max_new_tokens=limit)
        pairs_here = {pair.problem: pair for pair in chunk}
        return [mark_on_slip(run.prompter, pairs_here[p.problem], by_id[p.problem], p, kinds) for p in found]

    def shown(pivots: Sequence[Pivot]) -> tuple[str, str]:
        count = sum(p.method == method for p in pivots)
        return "pivot yield", f"{count / len(traces):.1%} ({count:,} of {len(traces):,} problems)"

    usable = traces.usable
    found = in_chunks(
        run.folder,
        run.display,
        "pivots",
        "pivots.jsonl",
        Pivot,
        [usable[start : start + size] for start in range(0, len(usable), size)],
        lambda pair: pair.problem,
        find,
        each=2 if method == "branching" else 1,
        shown=shown,
    )
    check_found([p for p in found if p.method == method], traces)


def _without_pivot(traces: Traces) -> list[WithoutPivot]:
    found = []
    for pair in traces:
        if pair.template in traces.solved or not pair.sampled:
            reason = "template_solved" if pair.template in traces.solved else str(pair.reason)
            found.append(WithoutPivot(pair.problem, pair.split, pair.template, reason))
    return found
