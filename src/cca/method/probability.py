"""Pivots by success rates alone (after arXiv 2412.08905, section 4.3): the token at which being right becomes unlikely.

The success rate after a start of the sampled trace y is the share of right answers among completions sampled from
there. From the greedy trace's side, before the first deviation, to the end of y, whose outcome is the opposite one, it
goes from one side to the other. The deviation at which it does so is found by halving: of two halves the one over
which it changes more, of equal ones the first. There the rates after the argmax and after y's own token are compared,
and the pivot counts where they differ by `pivots.gap`. Unlike a greedy completion, which one word may turn by chance,
a rate changes only where a token decides.
"""

from cca.method.search import Node, Search
from cca.model.generate import Row


class Probability(Search):
    """low, high: deviations, by number, between which the rate changes; -1 is before the first."""

    method = "probability"

    def begin(self) -> list[Row]:
        self.look_at_deviations()
        self.low, self.high = -1, len(self.deviations) - 1
        return self.count([self._node(-1)], self._halve)

    def _node(self, number: int) -> Node:
        """After that deviation; before the first, after the argmax in its place."""
        k = self.deviations[max(0, number)]
        return Node(k, self.argmax[k] if number < 0 else self.y[k])

    def _rate(self, number: int) -> int:
        """How many of the sampled completions are right; after the last deviation all are as y is."""
        if number == len(self.deviations) - 1:
            return self.terms.options.confirm * (not self.pair.greedy.correct)
        return self.right[self._node(number)]

    def _change(self, low: int, high: int) -> int:
        """How far the rate goes towards the outcome of y."""
        change = self._rate(high) - self._rate(low)
        return -change if self.pair.greedy.correct else change

    def _halve(self) -> list[Row]:
        while self.high - self.low > 1:
            middle = (self.low + self.high) // 2
            if self._node(middle) not in self.right:
                return self.count([self._node(middle)], self._halve)
            if self._change(self.low, middle) >= self._change(middle, self.high):
                self.high = middle
            else:
                self.low = middle
        completions = self.terms.options.confirm * len(self.right)
        return self.turned(self.deviations[self.high], self.pair.greedy.tokens, self.y, completions)
