"""Branch search against a greedy completion after every token of the trace.

Three plain methods, from weak to strong: `model.generate` after one prefix at a time, after 64 at once, and every
position by the library's own search and writer, which reads a trace once, writes the completions of all traces side by
side and drops those that are not wanted any more. Of that last one only the idea is left out that is measured: that no
position can be a pivot whose token is the argmax. The pivots of all are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import work
from lines import Line, Setting, part, skipped
from timing import Kept, Passes, compared, in_turns

from cca.method.branching import Branching
from cca.method.pivots import SEARCHES
from cca.records import Pivot, TracePair

BAR = 10


class EveryPosition(Branching):
    """A completion after every token in place of every deviation."""

    def look_at_deviations(self) -> None:
        super().look_at_deviations()
        self.deviations = list(range(len(self.y)))


def token_by_token(traced: work.Traced, pairs: Sequence[TracePair]) -> list[Pivot]:
    with patch.dict(SEARCHES, branching=EveryPosition):
        return traced.search(pairs)


class Generated:
    """The plain search by `model.generate`, `at_once` prefixes of a trace together. tokens: how many it wrote."""

    def __init__(self, traced: work.Traced, pairs: Sequence[TracePair], at_once: int):
        self.traced, self.pairs, self.at_once, self.tokens = traced, pairs, at_once, 0

    def __call__(self) -> list[Pivot]:
        import reference

        model, self.tokens, found = self.traced.model, 0, list[Pivot]()
        for pair in self.pairs:
            problem = self.traced.problems[pair.problem]
            pivot, tokens = reference.branching_pivot(
                model.network, model.prompter, pair, problem, self.traced.limit, group=self.at_once
            )
            found.append(pivot)
            self.tokens += tokens
        return found


class Watched(Kept):
    """A search as it is timed. passes: of its last call."""

    def __init__(self, network: Any, search: Callable[[], list[Pivot]]):
        super().__init__(search)
        self.network, self.passes = network, Passes()

    def __call__(self) -> None:
        self.passes = Passes()
        with self.passes.of(self.network):
            super().__call__()

    @property
    def places(self) -> list[tuple[tuple[int, ...], int, int]]:
        return [(p.prefix, p.desired, p.undesired) for p in self.found]


def against(
    what: str,
    traced: work.Traced,
    pairs: Sequence[TracePair],
    plain: Callable[[], list[Pivot]],
    repeats: int,
    bar: float | None = BAR,
) -> Iterator[Line]:
    """Tokens written and seconds of the plain method and of the library's, whose pivots must be the same."""
    network = traced.model.network
    one, other = Watched(network, plain), Watched(network, partial(traced.search, pairs))
    times = in_turns({"plain": one, "cca": other}, repeats, warm=repeats > 1)
    assert one.places == other.places, "the two methods found other pivots"
    tokens = plain.tokens if isinstance(plain, Generated) else one.passes.written
    yield Line(f"{what}: tokens", other.passes.written, tokens, unit="tokens", bar=bar)
    yield compared(what, times["plain"], times["cca"], floor=other.passes.floor(network), bar=bar)


def lines(setting: Setting) -> Iterator[Line]:
    traced = work.Traced.of(work.bundled(), work.problems(setting.of(40, 3), 2))
    few, some, many = (traced.some(setting.of(n, 1)) for n in (4, 12, 24))
    yield from against(f"{len(few)} traces, generate, 1 at once", traced, few, Generated(traced, few, 1), 1, None)
    generated = Generated(traced, some, 64)
    yield from against(f"{len(some)} traces, generate, 64 at once", traced, some, generated, setting.of(2, 1))
    every = partial(token_by_token, traced, many)
    yield from against(f"{len(many)} traces, every position at once", traced, many, every, setting.of(2, 1))
    if setting.model is None:
        yield skipped("branch search, a real model")
        return
    name, model = work.name_of(setting.model), work.given(setting.model)
    traced = work.Traced.of(model, work.problems(setting.of(6, 3), 1), setting.of(160, 24))
    shortest = traced.shortest(setting.of(2, 1))
    if not shortest:
        yield Line(f"branch search, {name}", note="skipped: no problem had an opposite sample")
        return
    every = partial(token_by_token, traced, shortest)
    # with so few traces most slots try deviations ahead of time, needed or not: a bar is for many
    yield from against(f"{name}, {len(shortest)} traces, every position at once", traced, shortest, every, 1, None)


if __name__ == "__main__":
    part(__doc__, lines)
