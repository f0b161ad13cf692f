"""What people see on stderr while a run works: one live display on a terminal, plain lines where there is none.

A display knows the stages of the run and which of them is at work. That stage counts its work on a bar, names what it
does besides (`doing`), and gives the current figures: they stay in sight until the run ends.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any


def no_progress(*_: object) -> None:
    """A progress callback that shows nothing."""


class Display:
    """Shows nothing: the base of the others, and what a run has that nobody watches."""

    def running(self, stages: Sequence[str], finished: Sequence[str]) -> AbstractContextManager[None]:
        """Around a run's `stages`, of which `finished` were done before."""
        return nullcontext()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around the work of a stage."""
        yield

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator["Display"]:
        """Around `total` units of work, of which an earlier session did `done`."""
        yield self

    def reach(self, done: int) -> None:
        """So many units of the bar's work are done."""

    def doing(self, what: str) -> None:
        """Work that has no bar."""

    def figure(self, name: str, value: str) -> None:
        """A current figure."""


@dataclass
class _Work:
    """A bar's count. The rate is this session's."""

    what: str
    total: int
    unit: str
    done: int
    first: int = 0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.first = self.done

    @property
    def rate(self) -> float:
        """Units a second; 0 before the first."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    @property
    def pace(self) -> str:
        if not self.rate:
            return ""
        speed = f"{self.rate:.1f}/s" if self.rate >= 1 else f"{clock(1 / self.rate)} each"
        return f"{speed}, {clock((self.total - self.done) / self.rate)} left"


class Lines(Display):
    """For logs: a line when work begins and ends, and one at most every ten seconds."""

    def __init__(self) -> None:
        self.work: _Work | None = None
        self.figures: dict[str, str] = {}
        self.shown = time.monotonic()

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Display]:
        self.work = work = _Work(what, total, unit, done)
        self.shown = work.began
        self.figures.clear()
        self._say(f"{what}: {total - done} {unit} to do")
        yield self
        self._say(f"{what}: done in {clock(time.monotonic() - work.began)}{self._figures()}")

    def reach(self, done: int) -> None:
        assert self.work is not None
        self.work.done = done
        now = time.monotonic()
        if now - self.shown >= 10 and self.work.done < self.work.total:
            self.shown, work = now, self.work
            self._say(f"{work.what}: {work.done}/{work.total} {work.unit}, {work.pace}{self._figures()}")

    def doing(self, what: str) -> None:
        self._say(f"{what} ...")

    def figure(self, name: str, value: str) -> None:
        self.figures[name] = value

    def _figures(self) -> str:
        return "".join(f"; {name} {value}" for name, value in self.figures.items())

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@dataclass
class _Row:
    """A stage in the live display."""

    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    work: _Work | None = None
    doing: str = ""


MARKS = {"waiting": ("·", "dim"), "running": ("▶", "bold cyan"), "done": ("✓", "green"), "stopped": ("✗", "red")}


class LiveDisplay(Display):
    """A table of the stages that is drawn again four times a second, with the current figures below it."""

    def __init__(self, console: Any, title: str = "", keep: bool = True):
        """keep: leave the display standing when the run ends."""
        self.console, self.title, self.keep = console, title, keep
        self.rows: dict[str, _Row] = {}
        self.figures: dict[str, str] = {}
        self.current = _Row()

    @contextmanager
    def running(self, stages: Sequence[str], finished: Sequence[str]) -> Iterator[None]:
        from rich.live import Live

        self.rows = {name: _Row("done" if name in finished else "waiting") for name in stages}
        self.figures = {}
        if set(stages) <= set(finished):
            yield
            return
        # warnings that are printed meanwhile go above the display
        with Live(console=self.console, get_renderable=self.renderable, refresh_per_second=4, transient=not self.keep):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.current = row = self.rows.setdefault(name, _Row())
        row.state, row.began = "running", time.monotonic()
        try:
            yield
            row.state = "done"
        finally:
            row.seconds = time.monotonic() - row.began
            row.state = "stopped" if row.state == "running" else row.state

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Display]:
        self.current.work, self.current.doing = _Work(what, total, unit, done), ""
        yield self

    def reach(self, done: int) -> None:
        assert self.current.work is not None
        self.current.work.done = done

    def doing(self, what: str) -> None:
        self.current.work, self.current.doing = None, what

    def figure(self, name: str, value: str) -> None:
        self.figures[name] = value

    def renderable(self) -> Any:
        """What is drawn. A thread of its own calls it while the run goes on, so it looks at copies."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for _ in range(5):
            table.add_column(no_wrap=True)
        for name, row in list(self.rows.items()):
            mark, style = MARKS[row.state]
            bar, count, pace, work = Text(row.doing if row.state == "running" else ""), "", "", row.work
            if work is not None:
                label = "" if work.what == name else f"{work.what} "
                count = f"{label}{work.done:,}/{work.total:,} {work.unit}"
                pace = work.pace if row.state == "running" else ""
                bar = ProgressBar(work.total, work.done, width=20)
            if row.state == "running":
                pace = " · ".join(filter(None, (clock(time.monotonic() - row.began), pace)))
            elif row.seconds:
                pace = clock(row.seconds)
            elif row.state == "done":
                pace = "done before"
            table.add_row(Text(mark, style), Text(name, style if row.state == "running" else ""), bar, count, pace)
        figures = Text(" · ".join(f"{name} {value}" for name, value in list(self.figures.items())), "cyan")
        return Group(*([Text(self.title, "bold")] if self.title else []), table, *([figures] if figures else []))


def clock(seconds: float) -> str:
    """``8 s``, ``3:05`` or ``1:02:40``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def make_display(quiet: bool, title: str = "", keep: bool = True) -> Display:
    """The display for whoever reads stderr: none, lines for a log, or the live one for a terminal."""
    if quiet:
        return Display()
    if not sys.stderr.isatty():
        return Lines()
    from rich.console import Console

    return LiveDisplay(Console(stderr=True, highlight=False, markup=False), title, keep)
