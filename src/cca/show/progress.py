"""What people see on stderr while a run works: one live display on a terminal, plain lines where there is none.

A display knows the stages of the run and which of them is at work. That stage counts its work on a bar, which it tells
of every pass of the network, names what it does besides (`doing`), and gives the current figures: they stay in sight
until the run ends.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from cca.show.pace import Pace


class Bar:
    """Work of a known number of units, with its pace.

    `bar` counts work within it, such as a validation amid the steps of a training; `expect` says how much of that is
    still to come.
    """

    def __init__(
        self, display: "Display", what: str, total: int, unit: str, done: int, at_most: bool, outer: "Bar | None" = None
    ):
        self.display, self.what, self.total, self.unit, self.done = display, what, total, unit, done
        self.at_most, self.outer, self.inner = at_most, outer, None
        self.pace = Pace(total, done, display.now())

    def reach(self, done: int) -> None:
        """So many units are done."""
        self.done = done
        self.work(0)

    def work(self, tokens: int, within: float = 0.0) -> None:
        """So many more tokens were read or written; call it after every pass of the network.

        within: how much further the work has come than the units that are done, as a number of units; less than
            nothing where they were the short ones.
        """
        self.pace.move(min(float(self.total), self.done + within), self.display.now())
        self.read(tokens)
        self.display.moved(self)

    def read(self, tokens: int) -> None:
        """So many more tokens were read or written, and it will be told later how far the work has come."""
        now = self.display.now()
        self.pace.read(tokens, now)
        if self.outer:
            self.outer.pace.read(tokens, now)

    def resume(self, done: int) -> None:
        """An earlier session did so many units; the pace is that of the others."""
        self.done = done
        self.pace.resume(done, self.display.now())

    def expect(self, parts: int) -> None:
        """So many bars within this one are still to come."""
        self.pace.parts = parts

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator["Bar"]:
        """Around work within this work."""
        self.expect(max(1, self.pace.parts))
        self.inner = Bar(self.display, what, total, unit, 0, False, self)
        yield self.inner
        self.inner = None
        self.pace.part_done(self.display.now())

    def figure(self, name: str, value: str) -> None:
        """A current figure."""
        self.display.figure(name, value)

    # ---- in words ----

    def count(self, share: bool = True) -> str:
        """``3/64 problems (5%)``; share: say the percentage, where it is not what the count says."""
        position = self.pace.position
        more = f" ({position / self.total:.0%})" if share and position != self.done else ""
        inner = self.inner  # once, since the thread that draws is not the one that works
        amid = f", {inner.what} {inner.count(share)}" if inner else ""
        return f"{self.done:,}/{self.total:,} {self.unit}{more}{amid}"

    def speed(self) -> str:
        """``310 tokens/s``, and the time left where it can be told already."""
        inner, rate, now = self.inner, self.pace.rate, self.display.now()
        parts = [] if rate is None else [f"{rate:,.0f} tokens/s" if rate >= 10 else f"{rate:.1f} tokens/s"]
        part_left = inner.pace.left(now) if inner else None
        left = self.pace.left(now, part_left)
        if left is not None:
            parts.append(f"{'at most' if self.at_most else 'about'} {clock(left)} left")
        elif inner and part_left is not None:
            parts.append(f"about {clock(part_left)} left of the {inner.what}")
        return ", ".join(parts)


class Display:
    """Shows nothing: the base of the others, and what a run has that nobody watches."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """now: the clock, in seconds."""
        self.now = now

    def running(self, stages: Sequence[str], finished: Sequence[str]) -> AbstractContextManager[None]:
        """Around a run's `stages`, of which `finished` were done before."""
        return nullcontext()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around the work of a stage."""
        yield

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0, at_most: bool = False) -> Iterator[Bar]:
        """Around `total` units of work, of which an earlier session did `done`; at_most: it may end before."""
        yield Bar(self, what, total, unit, done, at_most)

    @contextmanager
    def reading(self, what: str, tokens: int) -> Iterator[Callable[[int], None]]:
        """Around the reading of so many tokens; gives what is to be told of each pass, how many it read."""
        with self.bar(what, tokens, "tokens") as bar:

            def read(fresh: int) -> None:
                bar.done = min(tokens, bar.done + fresh)
                bar.work(fresh)

            yield read

    def moved(self, bar: Bar) -> None:
        """A bar's work has gone on."""

    def doing(self, what: str) -> None:
        """Work that has no bar."""

    def figure(self, name: str, value: str) -> None:
        """A current figure."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Lines(Display):
    """For logs: a line when work begins and ends, one after 5 seconds, in the first minute one every 10, then every 30.

    Work without a bar, known by what it does or by its stage, says how long it has been going on, after 10 seconds and
    then every 30.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        super().__init__(now)
        self.figures: dict[str, str] = {}
        self.began = self.shown = now()
        self.name: str | None = None
        self.ticking = threading.Event()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.name = name
        self._tick(name)
        try:
            yield
        finally:
            self.name = None
            self.ticking.set()

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0, at_most: bool = False) -> Iterator[Bar]:
        self.began = self.shown = self.now()
        self.figures.clear()
        self._say(f"{what}: {total - done:,} {unit} to do")
        with super().bar(what, total, unit, done, at_most) as bar:
            yield bar
        self._say(f"{what}: done in {clock(self.now() - self.began)}{self._figures()}")
        if self.name:
            self._tick(self.name)

    def moved(self, bar: Bar) -> None:
        now, bar, before = self.now(), bar.outer or bar, self.shown - self.began
        over = bar.done == bar.total and not bar.inner  # which the next line says
        if now - self.shown >= (5 if not before else 10 if before < 60 else 30) and not over:
            self.shown = now
            self._say(f"{bar.what}: {', '.join(filter(None, (bar.count(), bar.speed())))}{self._figures()}")

    def doing(self, what: str) -> None:
        self._say(f"{what} ...")
        self._tick(what)

    def _tick(self, what: str) -> None:
        """Say from time to time, until the next line, that `what` goes on."""
        self.ticking.set()
        self.ticking = threading.Event()
        threading.Thread(target=self._ticks, args=(what, self.now(), self.ticking), daemon=True).start()

    def _ticks(self, what: str, began: float, over: threading.Event) -> None:
        wait = 10
        while not over.wait(wait):
            print(f"{what} ... {clock(self.now() - began)} so far", file=sys.stderr, flush=True)
            wait = 30

    def figure(self, name: str, value: str) -> None:
        self.figures[name] = value

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _figures(self) -> str:
        return "".join(f"; {name} {value}" for name, value in self.figures.items())

    def _say(self, text: str) -> None:
        self.ticking.set()
        print(text, file=sys.stderr, flush=True)


MARKS = {"waiting": "[dim]·[/]", "running": "[bold cyan]▶", "done": "[green]✓[/]", "stopped": "[red]✗[/]"}


class _WorkColumn(ProgressColumn):
    """A bar for a stage that counts, one that moves for work that has no count, and none for other stages."""

    def render(self, task: Task) -> RenderableType:
        if bar := task.fields["bar"]:
            return ProgressBar(total=max(1, bar.total), completed=bar.pace.position, width=20)
        if task.fields["state"] == "running":
            return ProgressBar(total=None, width=20, animation_time=task.get_time())
        return Text()


class _TextColumn(ProgressColumn):
    """What a stage has counted, or what it does."""

    def render(self, task: Task) -> Text:
        if not (bar := task.fields["bar"]):
            return Text(task.fields["text"])
        return Text(("" if bar.what == task.description else f"{bar.what} ") + bar.count(share=False))


class _TimeColumn(ProgressColumn):
    """The time that a stage took, or takes so far, with its rate and the time left."""

    def render(self, task: Task) -> Text:
        state, bar = task.fields["state"], task.fields["bar"]
        if task.elapsed is None:
            return Text("done before" if state == "done" else "")
        speed = bar.speed() if bar and state == "running" else ""
        return Text(" · ".join(filter(None, (clock(task.elapsed), speed))))


class _Stages(Progress):
    """A row a stage, between a title and the current figures."""

    def __init__(self, console: Console, title: str, keep: bool, now: Callable[[], float]):
        self.title = title
        self.figures: dict[str, str] = {}
        columns = (
            TextColumn("{task.fields[mark]} {task.description}"),
            _WorkColumn(),
            _TextColumn(),
            _TimeColumn(),
        )
        super().__init__(*columns, console=console, transient=not keep, refresh_per_second=4, get_time=now)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.title:
            yield Text(self.title, "bold")
        yield from super().get_renderables()
        if figures := dict(self.figures):  # a copy, since a thread of its own draws
            yield Text(" · ".join(f"{name} {value}" for name, value in figures.items()), "cyan")


class LiveDisplay(Display):
    """A table of the stages that is drawn again four times a second, with the current figures below it."""

    def __init__(self, console: Console, title: str = "", keep: bool = True, now: Callable[[], float] = time.monotonic):
        """keep: leave the display standing when the run ends."""
        super().__init__(now)
        self.console, self.title, self.keep = console, title, keep
        self.progress = _Stages(console, title, keep, now)
        self.current: Task | None = None

    @contextmanager
    def running(self, stages: Sequence[str], finished: Sequence[str]) -> Iterator[None]:
        self.progress, self.current = _Stages(self.console, self.title, self.keep, self.now), None
        for name in stages:
            self._add(name, "done" if name in finished else "waiting")
        with nullcontext() if set(stages) <= set(finished) else self.progress:  # warnings meanwhile go above it
            yield

    def _add(self, name: str, state: str) -> Task:
        fields = {"state": state, "mark": MARKS[state], "bar": None, "text": ""}
        self.progress.add_task(name, start=False, total=None, **fields)
        return self.progress.tasks[-1]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        known = {task.description: task for task in self.progress.tasks}
        self.current = known.get(name) or self._add(name, "waiting")
        self.progress.start_task(self.current.id)
        self._show(state="running", mark=MARKS["running"])
        state = "stopped"
        try:
            yield
            state = "done"
        finally:
            self.progress.stop_task(self.current.id)
            self._show(state=state, mark=MARKS[state], text="")

    def _show(self, **fields: Any) -> None:
        if self.current is not None:
            self.progress.update(self.current.id, **fields)

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0, at_most: bool = False) -> Iterator[Bar]:
        with super().bar(what, total, unit, done, at_most) as bar:
            self._show(bar=bar)
            yield bar

    def doing(self, what: str) -> None:
        self._show(bar=None, text=what)

    def say(self, line: str) -> None:
        self.progress.console.print(line)

    def figure(self, name: str, value: str) -> None:
        self.progress.figures[name] = value


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
    return LiveDisplay(Console(stderr=True, highlight=False, markup=False), title, keep)
