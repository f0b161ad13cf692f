"""Keep what is done of a stage as soon as it is done, so that a killed run loses only what was in flight."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from cca.folder import RunFolder
from cca.show.progress import Display

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")
Keep = Callable[[Sequence[R]], None]
"""Takes all records of an item, once they are known."""


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
    """
    there = folder.recover(file, kind)
    counts = Counter(map(key, there))
    records = [r for r in there if key(r) in items and counts[key(r)] == each]
    if records != there:
        folder.write(file, records)
    left = [item for name, item in items.items() if counts[name] != each]
    done = len(items) - len(left)
    with display.bar(stage, len(items), "problems", done) as bar:

        def keep(fresh: Sequence[R]) -> None:
            nonlocal done
            folder.append(file, fresh)
            records.extend(fresh)
            bar.figure(*shown(records))
            bar.reach(done := done + 1)

        if left:
            work(left, keep)
    place = {name: number for number, name in enumerate(items)}
    ordered = sorted(records, key=lambda r: place[key(r)])
    if ordered != records:
        folder.write(file, ordered)
    return ordered
