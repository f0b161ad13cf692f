"""How fast counted work goes, and how long the rest of it will take."""

from collections import deque

_WINDOW = 30.0
"""Seconds that tokens a second are taken over."""


class Pace:
    """The speed of work from where this session took it up.

    Time left is that of the units still to be done, at the mean time of this session's units, fractions of them
    included, and that of the `parts` to come (validations amid the steps of a training), at the mean time of theirs.

    Attributes:
        position: units done, a fraction of those in flight included.
        parts: how many are still to come, the one at work included.
        rate: tokens a second over the last half minute; None before the first.
    """

    def __init__(self, total: float, done: float, now: float):
        """now: the clock's reading, in seconds, as everywhere here."""
        self.total, self.start, self.position = total, done, done
        self.parts, self.rate = 0, None
        self.known = now  # until when it is known what the time went into
        self.units_took, self.parts_took, self.parts_done = 0.0, 0.0, 0
        self.tokens = 0
        self.seen = deque([(now, 0)])

    def resume(self, position: float, now: float) -> None:
        """An earlier session came to `position`: that took no time of this one."""
        self.start = self.position = position
        self.known = now

    def move(self, position: float, now: float) -> None:
        """The work has come to `position`."""
        if position != self.position:
            self.units_took += now - self.known
            self.known, self.position = now, position

    def read(self, tokens: int, now: float) -> None:
        """So many more tokens were read or written."""
        self.tokens += tokens
        while len(self.seen) > 1 and self.seen[1][0] <= now - _WINDOW:
            self.seen.popleft()
        since, before = self.seen[0]
        if self.tokens > before and now > since:
            self.rate = (self.tokens - before) / (now - since)
        if now - self.seen[-1][0] >= 0.5:
            self.seen.append((now, self.tokens))

    def part_done(self, now: float) -> None:
        """A part ended. It began when the position last moved."""
        self.parts_took += now - self.known
        self.known, self.parts_done, self.parts = now, self.parts_done + 1, max(0, self.parts - 1)

    def left(self, now: float, part_left: float | None = None) -> float | None:
        """Seconds left; None while nothing is known of what is still to come.

        part_left: those of the part that is at work.
        """
        todo, done, running = self.total - self.position, self.position - self.start, now - self.known
        seconds = 0.0
        if todo > 0:
            if done <= 0 or not self.units_took:
                return None
            seconds = todo * self.units_took / done
        if not self.parts:
            return max(0.0, seconds - running)
        if not self.parts_done and part_left is None:
            return None
        each = self.parts_took / self.parts_done if self.parts_done else running + (part_left or 0.0)
        if part_left is None:
            return max(0.0, seconds + self.parts * each - running)
        return seconds + part_left + (self.parts - 1) * each
