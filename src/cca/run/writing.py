"""How much of the writing is done, where nobody knows how much there will be."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from cca.model.generate import Watch
from cca.records import Problem, TracePair
from cca.show.progress import Bar

if TYPE_CHECKING:
    from cca.run.run import Run

_WEIGHT = 8
"""What is expected beforehand counts as much as so many that ended."""
_REST = 0.2
"""What is larger than all that ended has this share of the mean still to come."""
_READ = 4
"""Tokens that are read in the time in which one is written."""
_EVERY = 0.5
"""Seconds between two looks at the rows: a pass of a small model takes less than looking at its rows does."""


class Writing:
    """How much of the writing of units (answers, a problem's traces, a pair's completions) is done.

    The rule: what is still to be written are the rest of the rows at work, the further rows of their units, and all
    rows of the units that are still to be begun. How long rows are, and how many a unit has, is reckoned from those
    that ended, from how far those in flight are already (`Sizes`), and from what was expected beforehand.

    watch: is to see the rows being written.
    """

    def __init__(
        self, most: int, expected: float = 0.0, rows: Sequence[float] = (1,), most_rows: int = 1, read: float = 0.0
    ):
        """What is expected before anything has ended.

        Args:
            most, expected: tokens of a row; by default a third of the most are expected.
            most_rows, rows: rows of a unit; those that are expected are of some units.
            read: tokens that are read for each unit besides.
        """
        self.most, self.expected = most, min(float(most), expected or most / 3)
        self.most_rows, self.rows = most_rows, [min(float(most_rows), each) for each in rows]
        self.read = read / _READ
        self.watch = Watch(lambda _: None)

    @contextmanager
    def told(self, bar: Bar, units: int, settled: Callable[[], int] | None = None) -> Iterator[None]:
        """Within the context, in which `units` are written, `bar` is told of each pass, and twice a second how far.

        Args:
            settled: how many of them are done, where that is to be asked for; it is at the end, too.
        """
        watch, start, now = self.watch, bar.done, bar.display.now
        looked, sizes, lengths = now(), watch.sizes.total(), _sum(watch.lengths)

        def over() -> int:
            return settled() if settled else watch.sizes.total() - sizes

        def passed(tokens: int) -> None:
            nonlocal looked
            if now() - looked < _EVERY:
                bar.read(tokens)
                return
            looked = now()
            done = over()
            bar.done = start + done
            written, rest = _sum(watch.lengths) - lengths, self.rest(units - done)
            written += sum(len(row.tokens) for row in watch.at_work if not row.dropped) + self.read * done
            bar.work(tokens, start + units * written / (written + rest or 1) - bar.done)

        watch.passed = passed
        try:
            yield
        finally:
            bar.reach(start + over())

    def rest(self, units: int) -> float:
        """Tokens that are still to be written, where so many units are not over."""
        rows = [row for row in self.watch.at_work if not row.dropped]
        far = [len(row.tokens) + 0.5 for row in rows]  # they have not ended with these
        lengths = Sizes(self.watch.lengths, far, [self.expected] * _WEIGHT, self.most)
        at_work = Counter(row.order[0] for row in rows)
        ended = self.watch.ended
        begun = {unit: ended[unit] + at_work[unit] for unit in {*ended, *at_work}}
        # one without a row at work waits for its next
        least = {unit: count if at_work[unit] else count + 0.5 for unit, count in begun.items()}
        sizes = Sizes(self.watch.sizes, list(least.values()), self.rows * (_WEIGHT // len(self.rows)), self.most_rows)
        more = sum(sizes.expected(least[unit]) - count for unit, count in begun.items())
        more += max(0, units - len(begun)) * sizes.mean
        return sum(lengths.expected(x) - int(x) for x in far) + lengths.mean * more + self.read * units


class Sizes:
    """How large something will be: the estimate of Kaplan and Meier, by which what is in flight counts as it should.

    Of those that are larger than all that ended nothing is known but `_REST`.
    """

    def __init__(self, ended: Mapping[int, int], in_flight: Sequence[float], expected: Sequence[float], most: float):
        """in_flight: the least that each can come to. expected: some that are taken as ended."""
        counts = Counter[float](expected)
        counts.update(ended)
        values = np.array(sorted(counts), float)
        each = np.array([counts[value] for value in values], float)
        larger = len(in_flight) - np.searchsorted(np.sort(in_flight), values, "right")
        going_on = np.cumprod(1 - each / (each[::-1].cumsum()[::-1] + larger))
        parts = -np.diff(going_on, prepend=1)
        if going_on[-1] > 0:
            last = max(values[-1], *in_flight)
            so_far = values @ parts + last * going_on[-1]
            values, parts = np.append(values, min(most, last + _REST * so_far)), np.append(parts, going_on[-1])
        self.values, self.most = values, most
        self.parts, self.sums = parts[::-1].cumsum()[::-1], (values * parts)[::-1].cumsum()[::-1]
        self.mean = float(self.sums[0])

    def expected(self, least: float) -> float:
        """The mean of those that are as large as `least`."""
        first = int(np.searchsorted(self.values, least))
        if first < len(self.values) and self.parts[first] > 0:
            return float(self.sums[first] / self.parts[first])
        return max(least, min(self.most, least + _REST * self.mean))


def _sum(counts: Mapping[int, int]) -> int:
    return sum(size * count for size, count in counts.items())


def traces_of(run: "Run", problems: Sequence[Problem]) -> Writing:
    """Of problems' traces: as long as worked solutions, and as many as `rows_of_a_problem` says."""
    some = [p.solution for p in problems if p.solution.strip()]
    some = some[:: max(1, len(some) // 64)]
    length = sum(len(run.prompter.reference(solution)) for solution in some) / max(1, len(some))
    options = run.config.traces
    return Writing(options.max_new_tokens, length, rows_of_a_problem(options.samples), 1 + options.samples)


def rows_of_a_problem(samples: int) -> tuple[float, ...]:
    """Traces that some problems will have: those of which one sample is drawn, two, half of all and all."""
    return 2, 3, 1 + samples / 2, 1 + samples


def completions_of(run: "Run", pairs: Sequence[TracePair]) -> Writing:
    """Of pairs' completions: each half a greedy trace; some pairs need one, some two, some more, besides samples."""
    limit, pivots = run.config.traces.max_new_tokens, run.config.pivots
    read = sum(len(pair.prompt) + len(pair.sampled.tokens) for pair in pairs if pair.sampled) / max(1, len(pairs))
    searched = {"branching": (1, 1, 2, 4), "prefix": (0,)}
    # halving looks at some more places than the two that are compared at the end
    rows = [2 * pivots.confirm + n for n in searched.get(pivots.method, [n * pivots.confirm for n in (0, 1, 2, 4)])]
    return Writing(limit, _greedy(pairs) / 2, rows, limit + max(rows), read)


def answers_of(run: "Run") -> Writing:
    """Of greedy answers: as long as the run's greedy traces."""
    return Writing(run.config.answer_limit.tokens, _greedy(run.folder.read("traces.jsonl", TracePair)))


def _greedy(pairs: Sequence[TracePair]) -> float:
    return sum(len(pair.greedy.tokens) for pair in pairs) / max(1, len(pairs))
