"""Stage 1b: the token at which a sampled trace leaves the greedy trace's outcome (paper section 3.1).

How one is found stands in the module of its method: `cca.method.branching`, `cca.method.probability`, and below for the
Prefix method. All pairs are searched at once.
"""

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cca.errors import InputError, NothingToLearnError
from cca.method.branching import Branching
from cca.method.options import PivotMethod, PivotOptions
from cca.method.probability import Probability
from cca.method.search import Search, Terms, first_difference, pivot_of
from cca.method.traces import Traces, cut_off
from cca.model.engine import Engine
from cca.model.generate import Row, Watch
from cca.model.open import Model, opened
from cca.model.read import texts
from cca.model.state import frozen
from cca.options import check_seed
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


def find_pivots(
    model: Model,
    traces: Traces,
    options: PivotOptions | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> list[Pivot]:
    """The pivot of each pair of `traces`, in their order; of templates that are left out as solved there are none.

    Args:
        model: what was traced.
        traces: as `cca.trace` returns them.
        options: which method; by default `PivotOptions()`, the branching one.
        seed: of sampled completions (`confirm`). They depend on seed, problem, position and token alone.
        progress: told after each pair how many are done, and of how many.
        **changes: fields of `PivotOptions` that differ from `options`.

    Returns:
        The pivots that count, those of validation problems among them.

    Raises:
        InputError: the options do not go together, or the seed is no int.
        NothingToLearnError: no training problem gave a pivot that counts.
    """
    opened(model)
    if not isinstance(traces, Traces):
        raise InputError(f"a {type(traces).__name__} is not what cca.trace returned; give that")
    check_seed(seed)
    options = PivotOptions.of(options, changes)
    options.check()
    usable, found = traces.usable, list[Pivot]()
    if usable:
        counted = itertools.count(1)
        with frozen(model.network):
            found = search_pivots(
                model.engine,
                model.prompter,
                usable,
                traces.problems,
                options,
                seed=seed,
                top_k=traces.options.top_k,
                max_new_tokens=traces.options.max_new_tokens,
                slots=traces.options.batch,
                done=lambda _: progress(next(counted), len(usable)) if progress else None,
            )
    return check_found(found, traces, options)


def check_found(pivots: Sequence[Pivot], traces: Traces, options: PivotOptions) -> list[Pivot]:
    """Those of `pivots` that count.

    Raises:
        NothingToLearnError: none of them is of a training problem.
    """
    counting = [p for p in pivots if p.counts(options.gap)]
    if any(p.split == "train" for p in counting):
        return counting
    opposite = sum(pair.sampled is not None for pair in traces)
    solved = opposite - len(traces.usable)
    said = f"{len(traces)} problems traced, {opposite} with an opposite sample"
    if solved:
        share = traces.options.skip_solved
        said += f", {solved} of these of templates left out as solved, traces.skip_solved = {share:g}"
    if gains := [p.gain or 0.0 for p in pivots if p.split == "train"]:
        why = f"at none of {len(gains)} training pivots is the success rate of {options.confirm} sampled completions "
        why += f"higher after the desired token by pivots.gap = {options.gap:g} (at most by {max(gains):g}); lower "
        why += "pivots.gap, or set pivots.confirm=0"
        raise NothingToLearnError(f"no training problem gave a pivot that counts ({said}): {why}")
    why = cut_off(traces.cut, traces.options.max_new_tokens)
    if not why and solved:
        why = "set traces.skip_solved=0, which leaves none out, or choose harder templates"
    if not why:
        why = "the model is right or wrong whatever is sampled; raise traces.samples or problems.train, or choose "
        why += "other templates"
    raise NothingToLearnError(f"no training problem gave a pivot ({said}): {why}")


def prefix_pivot(pair: TracePair) -> Pivot:
    """The pivot of the prefix method: the first position where the two traces differ.

    Raises:
        InputError: the pair has no sampled trace, or one trace is the start of the other.
    """
    if pair.sampled is None:
        raise InputError(f"{pair.problem} has no sampled trace ({pair.reason}), so it has no pivot")
    k = first_difference(pair)
    return pivot_of(pair, "prefix", k, after_argmax=pair.greedy.tokens[k:], after_token=pair.sampled.tokens[k:])


class Prefix(Search):
    """The search of the prefix method, whose pivot is known and only has to be confirmed."""

    method = "prefix"
    predicts = False

    def begin(self) -> list[Row]:
        return self.found(prefix_pivot(self.pair))


SEARCHES: dict[PivotMethod, type[Search]] = {search.method: search for search in (Branching, Prefix, Probability)}


def search_pivots(
    engine: Engine,
    prompter: Prompter,
    pairs: Sequence[TracePair],
    problems: Mapping[str, Problem],
    options: PivotOptions = PivotOptions(),  # noqa: B008 (frozen)
    *,
    seed: int = 0,
    top_k: int = 0,
    max_new_tokens: int,
    slots: int,
    done: Callable[[Pivot], None] | None = None,
    watch: Watch | None = None,
) -> list[Pivot]:
    """The pivots of `pairs` (each with a sampled trace), in their order, whether they count or not.

    Deviations are tried in their order, all pairs at once; slots that this leaves free try the next deviations of the
    same traces ahead of time. The smallest that turns the outcome counts, so that this changes nothing but the time.

    Args:
        seed: of sampled completions, which are drawn from the `top_k` likeliest tokens (0: from all).
        slots: completions that are written at once.
        done: told of each pivot as soon as it is found and, where that is asked for, confirmed.
        watch: sees the writing go on.
    """
    found: dict[int, Pivot] = {}

    def finished(number: int, pivot: Pivot) -> None:
        found[number] = pivot
        if watch:
            watch.over(number)
        if done:
            done(pivot)

    if options.method == "prefix" and not options.confirm:  # nothing is to be read
        for number, pair in enumerate(pairs):
            finished(number, prefix_pivot(pair))
        return list(found.values())
    terms = Terms(prompter, options, seed, max_new_tokens, top_k)
    searches = [
        SEARCHES[options.method](number, pair, problems[pair.problem], terms, partial(finished, number))
        for number, pair in enumerate(pairs)
    ]
    for search, text in zip(searches, texts([(*s.pair.prompt, *s.y) for s in searches], prompter.start), strict=True):
        search.takes(text)
    unread = deque(engine.portions([search.text for search in searches]))
    begun: list[Search] = []

    def more(free: int) -> list[Row]:
        """The first completions of traces that are read now, and when all are read, the next ones of those at hand."""
        rows: list[Row] = []
        while unread and not rows:
            group = unread.popleft()
            engine.read(group, watch.passed if watch else None)
            fresh = searches[len(begun) : len(begun) + len(group)]
            begun.extend(fresh)
            rows = [row for search in fresh for row in search.begin()]
        if not rows:
            waiting = sorted((s for s in begun if not s.is_over), key=lambda s: (s.ahead - s.tried, s.number))
            rows = [row for search in waiting[: engine.ahead(free, slots)] for row in search.ahead_of_time()]
        return rows

    engine.write((), slots=slots, end_tokens=prompter.end_tokens, idle=more, watch=watch)
    return [found[number] for number in range(len(pairs))]
