"""Stage 1b: the token at which a sampled trace leaves the greedy trace's outcome (paper section 3.1).

Branching method: the smallest k for which the greedy completion of prompt + y_<=k is graded unlike the greedy
trace. Only deviations, positions whose token is not the argmax, can be that k: where y_k is the argmax, the
completion from y_<=k is the one from y_<k. One pass over y finds the deviations and the keys and values
of every prefix; only deviations need a completion, and after the last one the completion is y itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from cca.errors import InputError, NothingToLearnError
from cca.method.options import PivotOptions
from cca.method.traces import Traces, cut_off
from cca.model.generate import decode
from cca.model.open import Model, opened
from cca.model.read import Prefill, prefill
from cca.model.state import frozen
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


def find_pivots(
    model: Model,
    traces: Traces,
    options: PivotOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> list[Pivot]:
    """The pivot of each pair of `traces`, in their order; of templates that the model solves there are none.

    Args:
        model: what was traced.
        traces: as `cca.trace` returns them.
        options: which method; by default `PivotOptions()`, the branching one.
        progress: told after each batch how many pairs are done, and of how many.
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
    usable, size = traces.usable, traces.options.batch
    found: list[Pivot] = []
    with frozen(model.network):
        for start in range(0, len(usable), size):
            chunk = usable[start : start + size]
            if options.method == "prefix":
                found += [prefix_pivot(pair) for pair in chunk]
            else:
                limit = traces.options.max_new_tokens
                found += branching_pivots(model.network, model.prompter, chunk, traces.problems, max_new_tokens=limit)
            if progress:
                progress(start + len(chunk), len(usable))
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
            said += f", {solved} of these of templates whose training problems the model all solves"
        why = cut_off(traces.cut, traces.options.max_new_tokens)
        if not why and solved:
            why = "set traces.skip_solved=false, or choose harder templates"
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
    greedy, sampled = pair.greedy.tokens, pair.sampled.tokens
    for k, (a, b) in enumerate(zip(greedy, sampled, strict=False)):
        if a != b:
            return _pivot(pair, "prefix", k, after_argmax=greedy[k:], after_token=sampled[k:])
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


@dataclass
class _Search:
    """Where the search in one trace stands. `greedy_next[k]` is the argmax given prompt + y_<k.

    unturned: the last completion that kept the greedy trace's outcome. turned: that of the pivot; until one is found y,
    which is the completion after the last deviation.
    """

    pair: TracePair
    problem: Problem
    greedy_next: list[int]
    deviations: list[int]
    unturned: tuple[int, ...]
    turned: tuple[int, ...]
    tried: int = 0
    pivot: int | None = field(default=None)

    @property
    def y(self) -> tuple[int, ...]:
        """The sampled trace."""
        assert self.pair.sampled is not None
        return self.pair.sampled.tokens

    def found(self) -> Pivot:
        k = self.pivot
        assert k is not None
        start, argmax = self.y[:k], self.greedy_next[k]
        # between the deviation before and this one y is what a completion writes, but for 16-bit rounding
        known = self.unturned[: k + 1] == (*start, argmax)
        return _pivot(
            self.pair,
            "branching",
            k,
            after_argmax=self.unturned[k:] if known else (argmax,),
            after_token=self.turned[k:],
            completions=self.tried,
            deviations=len(self.deviations),
        )


def branching_pivots(
    network: PreTrainedModel,
    prompter: Prompter,
    pairs: Sequence[TracePair],
    problems: dict[str, Problem],
    *,
    max_new_tokens: int,
) -> list[Pivot]:
    """The pivots of the branching method for `pairs` (each with a sampled trace), all searched in one batch.

    Deviations are tried in order, one a trace and wave, so a trace needs no more completions than the plain method
    would have made at deviations.
    """
    if not pairs:
        return []
    sequences = [(*pair.prompt, *pair.sampled.tokens) for pair in pairs if pair.sampled]
    read = prefill(network, sequences, predict_from=[len(pair.prompt) - 1 for pair in pairs])
    assert read.predictions is not None
    searches: list[_Search] = []
    for pair, greedy_next in zip(pairs, read.predictions.tolist(), strict=True):
        assert pair.sampled is not None
        tokens = pair.sampled.tokens
        deviations = [k for k, token in enumerate(tokens) if token != greedy_next[k]]
        searches.append(_Search(pair, problems[pair.problem], greedy_next, deviations, pair.greedy.tokens, tokens))
    open_searches = list(enumerate(searches))
    while open_searches:
        waiting: list[tuple[int, _Search, int]] = []
        for row, search in open_searches:
            k = search.deviations[search.tried]
            if search.tried == len(search.deviations) - 1:
                search.pivot = k  # after the last deviation the completion is y itself, whose outcome is opposite
            else:
                waiting.append((row, search, k))
        completions = _complete(network, prompter, read, waiting, max_new_tokens)
        open_searches = []
        for (row, search, k), tokens in zip(waiting, completions, strict=True):
            search.tried += 1
            if prompter.trace(search.problem, tokens).correct is not search.pair.greedy.correct:
                search.pivot, search.turned = k, tuple(tokens)
            else:
                search.unturned = tuple(tokens)
                open_searches.append((row, search))
    return [search.found() for search in searches]


def _complete(
    network: PreTrainedModel,
    prompter: Prompter,
    read: Prefill,
    waiting: Sequence[tuple[int, _Search, int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy completions of prompt + y_<=k; the token after y_<=k is known from the pass over y."""
    if not waiting:
        return []
    heads, first, rows, lengths = [], [], [], []
    for row, search, k in waiting:
        rows.append(row)
        heads.append(search.y[: k + 1])
        lengths.append(len(search.pair.prompt) + k + 1)
        first.append(search.greedy_next[k + 1])
    ended = [h[-1] in prompter.end_tokens or len(h) >= max_new_tokens or prompter.stopped(h) for h in heads]
    limits = [1 if end else max_new_tokens - len(head) for head, end in zip(heads, ended, strict=True)]
    cache, mask = read.take(rows, lengths, room=max(limits))
    tails = decode(
        network,
        cache,
        mask,
        torch.tensor(first, device=mask.device),
        limits=limits,
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(heads),
    )
    return [list(head) if end else [*head, *tail] for head, tail, end in zip(heads, tails, ended, strict=True)]
