"""Stage 1b: the token at which a sampled trace leaves the greedy trace's outcome (paper section 3.1).

Branching method: the smallest k for which the greedy completion of prompt + y_<=k is graded unlike the greedy
trace. Only deviations, positions whose token is not the argmax, can be that k: where y_k is the argmax, the
completion from y_<=k is the one from y_<k. One pass over y finds the deviations and the keys and values
of every prefix; only deviations need a completion, and after the last one the completion is y itself.
"""

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from cca.errors import InputError, NothingToLearnError
from cca.method.options import PivotOptions
from cca.method.traces import Traces, cut_off
from cca.model.generate import Row, Watch, write
from cca.model.open import Model, opened
from cca.model.read import Text, by_budget, read, texts
from cca.model.state import frozen
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, TracePair

_AHEAD = 48
"""Rows of a step on a CPU up to which completions are tried ahead of time: with more, each takes the others' time."""


def find_pivots(
    model: Model,
    traces: Traces,
    options: PivotOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> list[Pivot]:
    """The pivot of each pair of `traces`, in their order; of templates that are left out as solved there are none.

    Args:
        model: what was traced.
        traces: as `cca.trace` returns them.
        options: which method; by default `PivotOptions()`, the branching one.
        progress: told after each pair how many are done, and of how many.
        **changes: fields of `PivotOptions` that differ from `options`.

    Returns:
        The pivots, those of validation problems among them.

    Raises:
        NothingToLearnError: no training problem gave a pivot.
    """
    opened(model)
    if not isinstance(traces, Traces):
        raise InputError(f"a {type(traces).__name__} is not what cca.trace returned; give that")
    options = PivotOptions.of(options, changes)
    usable, found = traces.usable, list[Pivot]()
    if options.method == "prefix":
        found = [prefix_pivot(pair) for pair in usable]
    elif usable:
        counted = itertools.count(1)
        with frozen(model.network):
            found = branching_pivots(
                model.network,
                model.prompter,
                usable,
                traces.problems,
                max_new_tokens=traces.options.max_new_tokens,
                slots=traces.options.batch,
                done=lambda _: progress(next(counted), len(usable)) if progress else None,
            )
    check_found(found, traces)
    return found


def check_found(pivots: Sequence[Pivot], traces: Traces) -> None:
    """See that there is something to train on.

    Raises:
        NothingToLearnError: no training problem gave a pivot.
    """
    if not any(p.split == "train" for p in pivots):
        opposite = sum(pair.sampled is not None for pair in traces)
        solved = opposite - len(traces.usable)
        said = f"{len(traces)} problems traced, {opposite} with an opposite sample"
        if solved:
            share = traces.options.skip_solved
            said += f", {solved} of these of templates left out as solved, traces.skip_solved = {share:g}"
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
    k = _first_difference(pair)
    return _pivot(pair, "prefix", k, after_argmax=pair.greedy.tokens[k:], after_token=pair.sampled.tokens[k:])


def _first_difference(pair: TracePair) -> int:
    assert pair.sampled is not None
    for k, (a, b) in enumerate(zip(pair.greedy.tokens, pair.sampled.tokens, strict=False)):
        if a != b:
            return k
    raise InputError(f"{pair.problem}: one trace is the start of the other; raise max_new_tokens")


def _pivot(
    pair: TracePair,
    method: str,
    k: int,
    *,
    after_argmax: tuple[int, ...],
    after_token: tuple[int, ...],
    completions: int = 0,
    deviations: int = 0,
) -> Pivot:
    """after_argmax, after_token: what follows the prefix, from the argmax and from the trace's own token on."""
    assert pair.sampled is not None
    good, bad = (after_argmax, after_token) if pair.greedy.correct else (after_token, after_argmax)
    return Pivot(
        problem=pair.problem,
        split=pair.split,
        template=pair.template,
        method=method,
        prefix=(*pair.prompt, *pair.sampled.tokens[:k]),
        desired=good[0],
        undesired=bad[0],
        position=k,
        greedy_correct=pair.greedy.correct,
        completions=completions,
        deviations=deviations,
        after_desired=good,
        after_undesired=bad,
    )


def branching_pivots(
    network: PreTrainedModel,
    prompter: Prompter,
    pairs: Sequence[TracePair],
    problems: Mapping[str, Problem],
    *,
    max_new_tokens: int,
    slots: int,
    done: Callable[[Pivot], None] | None = None,
    watch: Watch | None = None,
) -> list[Pivot]:
    """The pivots of the branching method for `pairs` (each with a sampled trace), in their order.

    Deviations are tried in their order, all pairs at once; slots that this leaves free try the next deviations of the
    same traces ahead of time. The smallest that turns the outcome counts, so that this changes nothing but the time.

    Args:
        slots: completions that are written at once.
        done: told of each pivot as soon as it is found.
        watch: sees the writing go on.
    """
    found: dict[int, Pivot] = {}

    def finished(number: int, pivot: Pivot) -> None:
        found[number] = pivot
        if watch:
            watch.over(number)
        if done:
            done(pivot)

    sampled = [pair.sampled for pair in pairs if pair.sampled]
    sequences = [(*pair.prompt, *trace.tokens) for pair, trace in zip(pairs, sampled, strict=True)]
    searches = [
        _Search(number, prompter, pair, problems[pair.problem], text, max_new_tokens, partial(finished, number))
        for number, (pair, text) in enumerate(zip(pairs, texts(sequences, prompter.start), strict=True))
    ]
    unread = deque(by_budget([search.text for search in searches], Text.own_length, network))
    kept_free = max(0, slots - _AHEAD) if network.device.type == "cpu" else 0
    begun: list[_Search] = []

    def more(free: int) -> list[Row]:
        """The first completions of traces that are read now, and when all are read, the next ones of those at hand."""
        rows: list[Row] = []
        while unread and not rows:
            group = unread.popleft()
            read(network, group, watch.passed if watch else None)
            fresh = searches[len(begun) : len(begun) + len(group)]
            begun.extend(fresh)
            rows = [row for search in fresh for row in search.begin()]
        if not rows:
            waiting = sorted((s for s in begun if not s.is_over), key=lambda s: (s.ahead - s.tried, s.number))
            rows = [row for search in waiting[: max(0, free - kept_free)] for row in search.ahead_of_time()]
        return rows

    write(network, (), slots=slots, end_tokens=prompter.end_tokens, idle=more, watch=watch)
    return [found[number] for number in range(len(pairs))]


class _Search:
    """Where the search in one trace stands.

    tried: deviations whose completions are known to keep the outcome. ahead: those whose completions were begun.
    unturned: the last completion that kept the greedy trace's outcome.
    """

    def __init__(
        self,
        number: int,
        prompter: Prompter,
        pair: TracePair,
        problem: Problem,
        text: Text,
        limit: int,
        done: Callable[[Pivot], None],
    ):
        assert pair.sampled is not None
        self.number, self.prompter, self.pair, self.problem = number, prompter, pair, problem
        self.text, self.limit, self.done = text, limit, done
        text.predict_from = len(pair.prompt) - 1
        self.y, self.unturned = pair.sampled.tokens, pair.greedy.tokens
        self.tried, self.ahead, self.is_over = 0, 0, False
        self.written: dict[int, tuple[int, ...]] = {}
        self.rows: list[Row] = []

    def begin(self) -> list[Row]:
        """The first completion, once the trace is read."""
        self.argmax = list(self.text.predictions)
        self.deviations = [k for k, token in enumerate(self.y) if token != self.argmax[k]]
        if not self.deviations:  # where two logits are as good as equal, reading may see it otherwise than writing did
            k = _first_difference(self.pair)
            self.argmax[k], self.deviations = self.pair.greedy.tokens[k], [k]
        return self._advance()

    def ahead_of_time(self) -> list[Row]:
        """The next completion, though it may turn out that it is not needed."""
        return [self._row()] if self.ahead < len(self.deviations) - 1 else []

    def _advance(self) -> list[Row]:
        """Look at what is written, in the order of the deviations, and go on to the next where nothing is decided."""
        while not self.is_over:
            number = self.tried
            if number == len(self.deviations) - 1:  # after the last one the completion is y, whose outcome is opposite
                self._found(self.y)
            elif number in self.written:
                tokens = self.written.pop(number)
                self.tried += 1
                if self.prompter.trace(self.problem, tokens).correct is not self.pair.greedy.correct:
                    self._found(tokens, number)
                else:
                    self.unturned = tokens
            else:
                return [self._row()] if number == self.ahead else []
        return []

    def _row(self) -> Row:
        """The completion after the next deviation. Up to the one after that it is y itself."""
        number, self.ahead = self.ahead, self.ahead + 1
        k = self.deviations[number + 1]
        head = self.y[:k]

        def ended(tokens: list[int]) -> list[Row]:
            self.written[number] = (*head, *tokens)
            return self._advance()

        self.rows.append(
            Row(
                self.text,
                self.limit - k,
                (self.number, number),
                length=len(self.pair.prompt) + k,
                first=self.argmax[k],
                stop=self.prompter.stop_rule(head),
                then=ended,
            )
        )
        return self.rows[-1]

    def _found(self, turned: tuple[int, ...], number: int = -1) -> None:
        k = self.deviations[number]
        start, argmax = self.y[:k], self.argmax[k]
        # 16-bit rounding may part the greedy trace from y elsewhere than at the first deviation
        known = self.unturned[: k + 1] == (*start, argmax)
        self.is_over = True
        for row in self.rows:
            row.drop()
        self.text.forget()
        self.done(
            _pivot(
                self.pair,
                "branching",
                k,
                after_argmax=self.unturned[k:] if known else (argmax,),
                after_token=turned[k:],
                completions=self.tried,
                deviations=len(self.deviations),
            )
        )
