"""Stage 1b: the token at which a sampled trace leaves the greedy trace's outcome (paper section 3.1).

Branching method: the smallest k for which the greedy completion of prompt + y_<=k is graded unlike the greedy
trace. Only deviations, positions whose token is not the argmax, can be that k: where y_k is the argmax, the
completion from y_<=k is the one from y_<k. One pass over y finds the deviations and the keys and values
of every prefix; only deviations need a completion, and after the last one the completion is y itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from cca.engines.transformers import decode, prefill
from cca.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


def prefix_pivot(pair: TracePair) -> Pivot:
    """The pivot of the prefix method: the first position where the two traces differ.

    Raises:
        ValueError: the pair has no sampled trace, or one trace is the start of the other.
    """
    if pair.sampled is None:
        raise ValueError(f"{pair.problem} has no sampled trace ({pair.reason}), so it has no pivot")
    greedy, sampled = pair.greedy.tokens, pair.sampled.tokens
    for k, (a, b) in enumerate(zip(greedy, sampled, strict=False)):
        if a != b:
            return _pivot(pair, "prefix", k, argmax=a, token=b)
    raise ValueError(f"{pair.problem}: one trace is the start of the other; raise max_new_tokens")


def _pivot(
    pair: TracePair, method: str, k: int, *, argmax: int, token: int, completions: int = 0, deviations: int = 0
) -> Pivot:
    assert pair.sampled is not None
    desired, undesired = (argmax, token) if pair.greedy.correct else (token, argmax)
    return Pivot(
        problem=pair.problem,
        split=pair.split,
        template=pair.template,
        method=method,
        prefix=(*pair.prompt, *pair.sampled.tokens[:k]),
        desired=desired,
        undesired=undesired,
        position=k,
        greedy_correct=pair.greedy.correct,
        completions=completions,
        deviations=deviations,
    )


@dataclass
class _Search:
    """Where the search in one trace stands. `greedy_next[k]` is the argmax given prompt + y_<k."""

    pair: TracePair
    problem: Problem
    greedy_next: list[int]
    deviations: list[int]
    tried: int = 0
    pivot: int | None = field(default=None)


def branching_pivots(
    model: PreTrainedModel,
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
    read = prefill(model, sequences, predict_from=[len(pair.prompt) - 1 for pair in pairs])
    assert read.predictions is not None
    searches: list[_Search] = []
    for pair, greedy_next in zip(pairs, read.predictions.tolist(), strict=True):
        assert pair.sampled is not None
        tokens = pair.sampled.tokens
        deviations = [k for k, token in enumerate(tokens) if token != greedy_next[k]]
        searches.append(_Search(pair, problems[pair.problem], greedy_next, deviations))
    open_searches = list(enumerate(searches))
    while open_searches:
        waiting: list[tuple[int, _Search, int]] = []
        for row, search in open_searches:
            k = search.deviations[search.tried]
            if search.tried == len(search.deviations) - 1:
                search.pivot = k  # after the last deviation the completion is y itself, whose outcome is opposite
            else:
                waiting.append((row, search, k))
        completions = _complete(model, prompter, read, waiting, max_new_tokens)
        open_searches = []
        for (row, search, k), tokens in zip(waiting, completions, strict=True):
            search.tried += 1
            if prompter.trace(search.problem, tokens).correct is not search.pair.greedy.correct:
                search.pivot = k
            else:
                open_searches.append((row, search))
    found = []
    for search in searches:
        k = search.pivot
        assert k is not None and search.pair.sampled is not None
        found.append(
            _pivot(
                search.pair,
                "branching",
                k,
                argmax=search.greedy_next[k],
                token=search.pair.sampled.tokens[k],
                completions=search.tried,
                deviations=len(search.deviations),
            )
        )
    return found


def _complete(model, prompter: Prompter, read, waiting, max_new_tokens: int) -> list[list[int]]:
    """Greedy completions of prompt + y_<=k; the token after y_<=k is known from the pass over y."""
    if not waiting:
        return []
    heads, first, rows, lengths = [], [], [], []
    for row, search, k in waiting:
        rows.append(row)
        heads.append(search.pair.sampled.tokens[: k + 1])
        lengths.append(len(search.pair.prompt) + k + 1)
        first.append(search.greedy_next[k + 1])
    ended = [h[-1] in prompter.end_tokens or len(h) >= max_new_tokens or prompter.stopped(h) for h in heads]
    limits = [1 if end else max_new_tokens - len(head) for head, end in zip(heads, ended, strict=True)]
    cache, mask = read.take(rows, lengths, room=max(limits))
    tails = decode(
        model,
        cache,
        mask,
        torch.tensor(first, device=mask.device),
        limits=limits,
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(heads),
    )
    return [list(head) if end else [*head, *tail] for head, tail, end in zip(heads, tails, ended, strict=True)]
