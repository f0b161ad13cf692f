"""Stage 1b of a run: the pivots of its trace pairs."""

from collections.abc import Sequence

from cca.evaluation.slip_truth import mark_on_slip
from cca.method.pivots import check_found, prefix_pivot, search_pivots
from cca.method.traces import Traces
from cca.model.bundled import slip_kinds
from cca.records import Pivot, TracePair, WithoutPivot
from cca.run.journal import Keep, journalled
from cca.run.run import Run
from cca.run.writing import completions_of


def work(run: Run) -> None:
    """Write pivots.jsonl and without_pivot.jsonl.

    Raises:
        NothingToLearnError: no training problem gave a pivot.
    """
    by_id = {p.id: p for p in run.problems}
    traces = Traces(tuple(run.folder.read("traces.jsonl", TracePair)), by_id, run.config.traces)
    run.folder.write("without_pivot.jsonl", _without_pivot(traces))
    options, kinds = run.config.pivots, slip_kinds(run.config.model.path)
    usable = {pair.problem: pair for pair in traces.usable}
    writing = completions_of(run, traces.usable)

    def find(left: list[TracePair], keep: Keep[Pivot]) -> None:
        def found(pivot: Pivot) -> None:
            pair = usable[pivot.problem]
            # the prefix method costs nothing, so that it is kept for comparison
            both = [pivot] if options.method == "prefix" else [prefix_pivot(pair), pivot]
            keep([mark_on_slip(run.prompter, pair, by_id[pair.problem], p, kinds) for p in both])

        search_pivots(
            run.model.engine,
            run.prompter,
            left,
            by_id,
            options,
            seed=run.config.seed,
            top_k=traces.options.top_k,
            max_new_tokens=traces.options.max_new_tokens,
            slots=traces.options.batch,
            done=found,
            watch=writing.watch,
        )

    def shown(pivots: Sequence[Pivot]) -> tuple[str, str]:
        count = sum(p.method == options.method and p.counts(options.gap) for p in pivots)
        return "pivot yield", f"{count / len(traces):.1%} ({count:,} of {len(traces):,} problems)"

    found = journalled(
        run.folder,
        run.display,
        "pivots",
        "pivots.jsonl",
        Pivot,
        usable,
        lambda pivot: pivot.problem,
        find,
        each=1 if options.method == "prefix" else 2,
        shown=shown,
        writing=writing,
    )
    of_method = [p for p in found if p.method == options.method]
    weak = frozenset(p.problem for p in of_method if not p.counts(options.gap))
    run.folder.write("without_pivot.jsonl", _without_pivot(traces, weak))
    check_found(of_method, traces, options)


def _without_pivot(traces: Traces, weak: frozenset[str] = frozenset()) -> list[WithoutPivot]:
    """weak: problems whose pivots do not count."""
    found = []
    for pair in traces:
        reason = "template_solved" if pair.template in traces.solved else pair.reason
        if pair.problem in weak:
            reason = "not_confirmed"
        if reason:
            found.append(WithoutPivot(pair.problem, pair.split, pair.template, reason))
    return found
