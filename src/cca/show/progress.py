"""What people see on stderr while a run works: one live display on a terminal, plain lines where there is none.

A display knows the stages of the run and which of them is at work. That stage counts its work on a bar, names what it
does besides (`doing`), and gives the current figures: they stay in sight until the run ends.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text


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


class Lines(Display):
    """For logs: a line when work begins and ends, and one at most every ten seconds."""

    def __init__(self) -> None:
        self.progress = Progress(disable=True, speed_estimate_period=math.inf)
        self.figures: dict[str, str] = {}
        self.shown = time.monotonic()

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Display]:
        for old in self.progress.task_ids:
            self.progress.remove_task(old)
        work = self.progress.add_task(what, total=total, completed=done, unit=unit)
        self.progress.advance(work, 0)  # the rate counts from here
        self.shown = time.monotonic()
        self.figures.clear()
        self._say(f"{what}: {total - done} {unit} to do")
        yield self
        self._say(f"{what}: done in {clock(self.progress.tasks[0].elapsed or 0)}{self._figures()}")

    def reach(self, done: int) -> None:
        (work,) = self.progress.tasks
        self.progress.update(work.id, completed=done)
        now = time.monotonic()
        if now - self.shown >= 10 and not work.finished:
            self.shown = now
            count = f"{done}/{work.total:.0f} {work.fields['unit']}"
            self._say(f"{work.description}: {count}, {pace(work)}{self._figures()}")

    def doing(self, what: str) -> None:
        self._say(f"{what} ...")

    def figure(self, name: str, value: str) -> None:
        self.figures[name] = value

    def _figures(self) -> str:
        return "".join(f"; {name} {value}" for name, value in self.figures.items())

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


MARKS = {"waiting": "[dim]·[/]", "running": "[bold cyan]▶", "done": "[green]✓[/]", "stopped": "[red]✗[/]"}


class _WorkColumn(BarColumn):
    """A bar for a stage that counts, one that moves for work that has no count, and none for other stages."""

    def render(self, task: Task) -> Any:
        if task.fields["counts"]:
            return super().render(task)
        if task.fields["state"] == "running":
            return ProgressBar(total=None, width=self.bar_width, animation_time=task.get_time())
        return Text()


class _TimeColumn(ProgressColumn):
    """The time that a stage took, or takes so far, with its rate and the time left."""

    def render(self, task: Task) -> Text:
        state = task.fields["state"]
        if task.elapsed is None:
            return Text("done before" if state == "done" else "")
        left = pace(task) if task.fields["counts"] and state == "running" else ""
        return Text(" · ".join(filter(None, (clock(task.elapsed), left))))


class _Stages(Progress):
    """A row a stage, between a title and the current figures."""

    def __init__(self, console: Console, title: str, keep: bool):
        self.title = title
        self.figures: dict[str, str] = {}
        columns = (
            TextColumn("{task.fields[mark]} {task.description}"),
            _WorkColumn(20),
            TextColumn("{task.fields[text]}", markup=False),
            _TimeColumn(),
        )
        super().__init__(
            *columns, console=console, transient=not keep, refresh_per_second=4, speed_estimate_period=math.inf
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.title:
            yield Text(self.title, "bold")
        yield from super().get_renderables()
        if figures := dict(self.figures):  # a copy, since a thread of its own draws
            yield Text(" · ".join(f"{name} {value}" for name, value in figures.items()), "cyan")


class LiveDisplay(Display):
    """A table of the stages that is drawn again four times a second, with the current figures below it."""

    def __init__(self, console: Console, title: str = "", keep: bool = True):
        """keep: leave the display standing when the run ends."""
        self.console, self.title, self.keep = console, title, keep
        self.progress = _Stages(console, title, keep)
        self.current: Task | None = None

    @contextmanager
    def running(self, stages: Sequence[str], finished: Sequence[str]) -> Iterator[None]:
        self.progress, self.current = _Stages(self.console, self.title, self.keep), None
        for name in stages:
            self._add(name, "done" if name in finished else "waiting")
        with nullcontext() if set(stages) <= set(finished) else self.progress:  # warnings meanwhile go above it
            yield

    def _add(self, name: str, state: str) -> Task:
        fields = {"state": state, "mark": MARKS[state], "counts": False, "text": ""}
        self.progress.add_task(name, start=False, total=None, **fields)
        return self.progress.tasks[-1]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        known = {task.description: task for task in self.progress.tasks}
        self.current = known.get(name) or self._add(name, "waiting")
        self.progress.start_task(self.current.id)
        self._show(state="running")
        state = "stopped"
        try:
            yield
            state = "done"
        finally:
            self.progress.stop_task(self.current.id)
            self._show(state=state, **({} if self.current.fields["counts"] else {"text": ""}))

    def _show(self, completed: int | None = None, **fields: Any) -> None:
        if self.current is not None:
            if "state" in fields:
                fields["mark"] = MARKS[fields["state"]]
            self.progress.update(self.current.id, completed=completed, **fields)

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Display]:
        if (task := self.current) is not None:
            began, label = task.start_time, "" if what == task.description else f"{what} "
            fields = {**task.fields, "counts": True, "label": label, "unit": unit}
            self.progress.reset(task.id, total=total, completed=done, **fields)
            task.start_time = began  # the stage's time goes on
            self.progress.advance(task.id, 0)  # and the rate counts from here
            self.reach(done)
        yield self

    def reach(self, done: int) -> None:
        if (task := self.current) is not None:
            count = f"{task.fields['label']}{done:,}/{task.total:,} {task.fields['unit']}"
            self._show(completed=done, text=count)

    def doing(self, what: str) -> None:
        self._show(counts=False, text=what)

    def figure(self, name: str, value: str) -> None:
        self.progress.figures[name] = value


def pace(work: Task) -> str:
    """The rate of this session and the time left; nothing before the first unit of work."""
    if not work.speed:
        return ""
    speed = f"{work.speed:.1f}/s" if work.speed >= 1 else f"{clock(1 / work.speed)} each"
    return f"{speed}, {clock(work.time_remaining or 0)} left"


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
