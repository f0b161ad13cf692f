"""Keep what is done of a stage as soon as it is done, so that a killed run loses only what was in flight."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from cca.folder import RunFolder
from cca.run.writing import Writing
from cca.show.progress import Display

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")
Keep = Callable[[Sequence[R]], None]
"""Takes all records of an item, once they are known. They are in the file half a second later, after the pass of the
model that is then at work, and in any case when the work ends or is broken off."""


def journalled(
    folder: RunFolder,
    display: Display,
    stage: str,
    file: str,
    kind: type[R],
    items: Mapping[K, T],
    key: Callable[[R], K],
    work: Callable[[list[T], Keep[R]], None],
    each: int,
    shown: Callable[[Sequence[R]], tuple[str, str]],
    writing: Writing,
    unit: str = "problems",
) -> list[R]:
    """Work through `items`, appending each one's records to `file` as they come; those that it holds are skipped.

    What an item gives depends on nothing else, and at the end the records stand in the order of the items: so the file
    is the one of a run that nothing interrupted.

    Args:
        items: by key, in their order.
        key: of the item that a record is of.
        work: does the items that it is given, in any order, and keeps their records.
        each: records that an item gives.
        shown: name and value of the current figure, given the records so far.
        writing: its watch sees the work.
        unit: what an item is.
    """
    there = folder.recover(file, kind)
    counts = Counter(map(key, there))
    records = [r for r in there if key(r) in items and counts[key(r)] == each]
    if records != there:
        folder.write(file, records)
    left = [item for name, item in items.items() if counts[name] != each]
    done = len(items) - len(left)
    with display.bar(stage, len(items), unit, done) as bar:
        kept, count = list[R](), 0

        def keep(fresh: Sequence[R]) -> None:
            nonlocal count
            kept.extend(fresh)
            count += 1

        def written_down() -> int:
            """Many together, since each time the disk is waited for."""
            if kept:
                fresh = kept.copy()
                kept.clear()  # first: where the disk is full, a second try would go on in the midst of a line
                folder.append(file, fresh)
                records.extend(fresh)
                bar.figure(*shown(records))
            return count

        with writing.told(bar, len(left), settled=written_down):
            if left:
                work(left, keep)
    place = {name: number for number, name in enumerate(items)}
    ordered = sorted(records, key=lambda r: place[key(r)])
    if ordered != records:
        folder.write(file, ordered)
    return ordered
