"""The Branching method (paper section 3.1): the token at which the greedy completion changes its outcome.

It is the smallest k for which the greedy completion of prompt + y_<=k is graded unlike the greedy trace. Only
deviations, positions whose token is not the argmax, can be that k: where y_k is the argmax, the completion from y_<=k
is the one from y_<k. One pass over y finds the deviations and the keys and values of every prefix; only deviations
need a completion, and after the last one the completion is y itself.
"""

from functools import partial

from cca.method.search import Node, Search
from cca.model.generate import Row


class Branching(Search):
    """unturned: the last completion that kept the greedy trace's outcome."""

    method = "branching"

    def begin(self) -> list[Row]:
        self.look_at_deviations()
        self.unturned = self.pair.greedy.tokens
        self.written: dict[int, tuple[int, ...]] = {}
        return self._advance()

    def ahead_of_time(self) -> list[Row]:
        return [self._next()] if self.ahead < len(self.deviations) - 1 else []

    def _advance(self) -> list[Row]:
        """Look at what is written, in the order of the deviations, and go on to the next where nothing is decided."""
        while not self.is_over:
            number = self.tried
            if number == len(self.deviations) - 1:  # after the last one the completion is y, whose outcome is opposite
                return self.turned(self.deviations[-1], self.unturned, self.y, self.tried)
            if number not in self.written:
                return [self._next()] if number == self.ahead else []
            tokens = self.written.pop(number)
            self.tried += 1
            if self.terms.prompter.trace(self.problem, tokens).correct is not self.pair.greedy.correct:
                return self.turned(self.deviations[number], self.unturned, tokens, self.tried)
            self.unturned = tokens
        return []

    def _next(self) -> Row:
        """The completion after the next deviation. Up to the one after that it is y itself."""
        number, self.ahead = self.ahead, self.ahead + 1
        k = self.deviations[number + 1]
        self.rows.append(self.row(Node(k, self.argmax[k]), number, partial(self._ended, number, self.y[:k])))
        return self.rows[-1]

    def _ended(self, number: int, head: tuple[int, ...], tokens: list[int]) -> list[Row]:
        self.written[number] = (*head, *tokens)
        return self._advance()
