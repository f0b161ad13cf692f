"""The search for the pivot of one pair of traces: what its methods share, and sampled completions (`pivots.confirm`).

Whether a token decides is told by success rates: of completions sampled after it, how many are right (the pivotal
tokens of arXiv 2412.08905, section 4.3). All that is written for a pair begins in its sampled trace, read once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

from cca.errors import InputError
from cca.method.options import PivotMethod, PivotOptions
from cca.model.generate import Row
from cca.model.read import Text
from cca.model.sampling import stream
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


@dataclass(frozen=True)
class Terms:
    """What all searches have in common. limit: tokens of an answer. top_k: as of the traces' samples."""

    prompter: Prompter
    options: PivotOptions
    seed: int
    limit: int
    top_k: int = 0


class Node(NamedTuple):
    """A start of the sampled trace, its first `position` tokens, and the token after it."""

    position: int
    token: int


class Search:
    """Where the search in one trace stands.

    text: prompt and sampled trace. tried: how many deviations are known not to be the pivot. ahead: of how many the
    completions were begun. is_over: the pivot is found, though it may still have to be confirmed. right: of
    `options.confirm` sampled completions after each node, how many were right.
    """

    method: ClassVar[PivotMethod]
    predicts: ClassVar[bool] = True
    """Whether the argmax after each of the trace's tokens is needed."""

    def __init__(self, number: int, pair: TracePair, problem: Problem, terms: Terms, done: Callable[[Pivot], None]):
        assert pair.sampled is not None
        self.number, self.pair, self.problem, self.terms, self.done = number, pair, problem, terms, done
        self.y = pair.sampled.tokens
        self.text: Text
        self.tried, self.ahead, self.is_over = 0, 0, False
        self.rows: list[Row] = []
        self.right: dict[Node, int] = {}
        self.waiting, self.then = 0, self.begin

    def takes(self, text: Text) -> None:
        """`text` is what is read of this pair."""
        self.text = text
        if self.predicts:
            text.predict_from = len(self.pair.prompt) - 1

    def begin(self) -> list[Row]:
        """The first rows, once the trace is read."""
        raise NotImplementedError

    def ahead_of_time(self) -> list[Row]:
        """A row that may turn out not to be needed, where there is one."""
        return []

    def look_at_deviations(self) -> None:
        """Find the deviations by the argmax after each of the trace's tokens."""
        self.argmax = list(self.text.predictions)
        self.deviations = [k for k, token in enumerate(self.y) if token != self.argmax[k]]
        if not self.deviations:  # where two logits are as good as equal, reading may see it otherwise than writing did
            k = first_difference(self.pair)
            self.argmax[k], self.deviations = self.pair.greedy.tokens[k], [k]

    def row(self, node: Node, order: int, then: Callable[[list[int]], list[Row]], **how: object) -> Row:
        """A completion after `node`."""
        k = node.position
        return Row(
            self.text,
            self.terms.limit - k,
            (self.number, order),
            length=len(self.pair.prompt) + k,
            first=node.token,
            stop=self.terms.prompter.stop_rule(self.y[:k]),
            then=then,
            **how,  # pyright: ignore[reportArgumentType]
        )

    # ---- success rates ----

    def count(self, nodes: Sequence[Node], then: Callable[[], list[Row]]) -> list[Row]:
        """Sample completions after those of `nodes` that are not in `right` yet; `then` gives what comes after.

        Each sample has its own random stream, so that it depends on seed, problem, node and number alone.
        """
        samples, terms = self.terms.options.confirm, self.terms
        fresh = [node for node in dict.fromkeys(nodes) if node not in self.right]
        self.waiting, self.then = samples * len(fresh), then
        if not self.waiting:
            return then()
        self.right |= dict.fromkeys(fresh, 0)
        return [
            self.row(
                node,
                len(self.y) + n,
                partial(self._sample_ended, node),
                temperature=terms.options.temperature,
                top_k=terms.top_k,
                uniforms=stream(terms.seed, self.problem.id, *node, n).random(terms.limit - node.position),
            )
            for node in fresh
            for n in range(samples)
        ]

    def _sample_ended(self, node: Node, tokens: list[int]) -> list[Row]:
        trace = self.terms.prompter.trace(self.problem, (*self.y[: node.position], *tokens))
        self.right[node] += trace.correct
        self.waiting -= 1
        return [] if self.waiting else self.then()

    def turned(self, k: int, unturned: tuple[int, ...], turned: tuple[int, ...], completions: int) -> list[Row]:
        """The outcome turns at position k: the text goes on as `turned` there, and as `unturned` with the argmax."""
        start, argmax = self.y[:k], self.argmax[k]
        # 16-bit rounding may part the greedy trace from y elsewhere than at the first deviation
        known = unturned[: k + 1] == (*start, argmax)
        return self.found(
            pivot_of(
                self.pair,
                self.method,
                k,
                after_argmax=unturned[k:] if known else (argmax,),
                after_token=turned[k:],
                completions=completions,
                deviations=len(self.deviations),
            )
        )

    def found(self, pivot: Pivot) -> list[Row]:
        """The search is over; what is left is to confirm `pivot`, where that is asked for."""
        self.is_over = True
        for row in self.rows:
            row.drop()
        sides = [Node(pivot.position, token) for token in (pivot.desired, pivot.undesired)]
        return self.count(sides, partial(self._confirmed, pivot))

    def _confirmed(self, pivot: Pivot) -> list[Row]:
        self.text.forget()
        if samples := self.terms.options.confirm:
            desired, undesired = (self.right[Node(pivot.position, t)] for t in (pivot.desired, pivot.undesired))
            pivot = replace(pivot, samples=samples, right_after_desired=desired, right_after_undesired=undesired)
        self.done(pivot)
        return []


def pivot_of(
    pair: TracePair,
    method: PivotMethod,
    k: int,
    *,
    after_argmax: tuple[int, ...],
    after_token: tuple[int, ...],
    completions: int = 0,
    deviations: int = 0,
) -> Pivot:
    """The pivot at position k of the sampled trace.

    after_argmax, after_token: what follows the prefix, from the argmax and from the trace's own token on.
    """
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


def first_difference(pair: TracePair) -> int:
    """The first position at which the two traces differ.

    Raises:
        InputError: one is the start of the other.
    """
    assert pair.sampled is not None
    for k, (a, b) in enumerate(zip(pair.greedy.tokens, pair.sampled.tokens, strict=False)):
        if a != b:
            return k
    raise InputError(f"{pair.problem}: one trace is the start of the other; raise max_new_tokens")
