"""One progress bar per stage, on stderr, with rate and time left; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What a stage reports to."""

    def advance(self, amount: int = 1, note: str = "") -> None: ...


def no_progress(*_: object) -> None:
    """A progress callback that shows nothing."""


class _Silent:
    def advance(self, amount: int = 1, note: str = "") -> None: ...


class _Lines:
    """Progress for logs: a line at most every ten seconds."""

    def __init__(self, name: str, total: int, unit: str, done: int):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.start = done
        self.began = self.shown = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.shown >= 10 and self.done < self.total:
            self.shown = now
            rate = (self.done - self.start) / (now - self.began)
            left = (self.total - self.done) / rate if rate else 0
            print(
                f"{self.name}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left  {note}",
                file=sys.stderr,
                flush=True,
            )


class _Rich:
    def __init__(self, progress, task):
        self.progress, self.task = progress, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=amount, note=note)


@contextmanager
def stage_bar(name: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """A bar for `total` units of work, of which `done` were finished by an earlier session."""
    if quiet:
        yield _Silent()
        return
    if not sys.stderr.isatty():
        print(f"{name}: {total - done} {unit} to do", file=sys.stderr, flush=True)
        bar = _Lines(name, total, unit, done)
        yield bar
        print(f"{name}: done in {time.monotonic() - bar.began:.0f} s", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )

    class WithRate(Progress):
        def get_renderables(self):
            for task in self.tasks:
                speed = task.finished_speed or task.speed
                task.fields["rate"] = f"{speed:.1f}/s" if speed else ""
            return super().get_renderables()

    with WithRate(*columns, console=Console(stderr=True)) as progress:
        yield _Rich(progress, progress.add_task(name, total=total, completed=done, note="", rate=""))
