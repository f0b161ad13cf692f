"""Work through items in groups, so that a killed run loses at most the group in flight."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from cca.folder import RunFolder
from cca.show.progress import Display


class OfAProblem(Protocol):
    """A record that belongs to a problem."""

    @property
    def problem(self) -> str: ...


T = TypeVar("T")
R = TypeVar("R", bound=OfAProblem)


def in_chunks(
    folder: RunFolder,
    display: Display,
    stage: str,
    file: str,
    kind: type[R],
    groups: Sequence[Sequence[T]],
    name: Callable[[T], str],
    work: Callable[[Sequence[T]], list[R]],
    each: int,
    shown: Callable[[Sequence[R]], tuple[str, str]],
) -> list[R]:
    """Work through `groups`, appending each group's records at once; groups that `file` holds whole are skipped.

    A group that a kill cut off is done again from its start, so that every batch is the one that an uninterrupted run
    computes.

    Args:
        name: the problem id of an item.
        work: the records of a group.
        each: records that an item gives.
        shown: name and value of the current figure, given the records so far.
    """
    records = folder.recover(file, kind)
    counts = Counter(r.problem for r in records)
    whole = {name(item) for g in groups if all(counts[name(item)] == each for item in g) for item in g}
    records = [r for r in records if r.problem in whole]
    folder.write(file, records)
    total, done = sum(len(g) for g in groups), len(whole)
    with display.bar(stage, total, "problems", done) as bar:
        for group in groups:
            if name(group[0]) not in whole:
                fresh = work(group)
                folder.append(file, fresh)
                records += fresh
                bar.figure(*shown(records))
                bar.reach(done := done + len(group))
    return records
