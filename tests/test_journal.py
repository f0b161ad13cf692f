"""What is kept of a stage while it goes on: all that is done, at few times."""

from dataclasses import dataclass

import pytest

from cca.folder import RunFolder
from cca.run.journal import journalled
from cca.run.writing import Writing
from cca.show.progress import Display


@dataclass(frozen=True)
class Done:
    """A record."""

    problem: str


class Journal:
    """A journal of ten problems in a run folder, and how many records each append had."""

    def __init__(self, path, monkeypatch):
        self.folder, self.seconds, self.appended = RunFolder.create(path / "run", ""), 0.0, list[int]()
        self.writing, append = Writing(10), RunFolder.append

        def counted(folder, name, records):
            self.appended.append(len(records))
            append(folder, name, records)

        monkeypatch.setattr(RunFolder, "append", counted)

    def work(self, work) -> list[Done]:
        items = {f"p-{i}": i for i in range(10)}
        shown = lambda records: ("done", str(len(records)))
        return journalled(
            self.folder,
            Display(lambda: self.seconds),
            "x",
            "done.jsonl",
            Done,
            items,
            lambda record: record.problem,
            work,
            each=1,
            shown=shown,
            writing=self.writing,
        )

    def passed(self, seconds: float) -> None:
        self.seconds += seconds
        self.writing.watch.passed(1)

    def kept(self) -> list[str]:
        return [record.problem for record in self.folder.read("done.jsonl", Done)]


@pytest.fixture
def journal(tmp_path, monkeypatch) -> Journal:
    return Journal(tmp_path, monkeypatch)


def test_what_ends_in_one_pass_or_within_half_a_second_is_written_down_together(journal):
    def work(left, keep):
        for i in left:
            keep([Done(f"p-{i}")])
            if i in (3, 4, 5):
                journal.passed(0.3)

    assert [record.problem for record in journal.work(work)] == journal.kept() == [f"p-{i}" for i in range(10)]
    assert journal.appended == [5, 5]


def test_after_a_slow_pass_all_is_written_down_that_ended_with_it(journal):
    def work(left, keep):
        for i in left[:6]:
            keep([Done(f"p-{i}")])
            if i % 2:
                journal.passed(2.0)
                assert len(journal.kept()) == i + 1

    journal.work(work)
    assert journal.appended == [2, 2, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_done_when_the_work_broke_off_is_kept_and_not_done_again(journal, error):
    def broken(left, keep):
        keep([Done("p-4")])
        keep([Done("p-1")])
        raise error

    with pytest.raises(error):
        journal.work(broken)
    assert journal.kept() == ["p-4", "p-1"]

    def rest(left, keep):
        assert left == [0, 2, 3, 5, 6, 7, 8, 9]
        for i in left:
            keep([Done(f"p-{i}")])

    journal.work(rest)
    assert journal.kept() == [f"p-{i}" for i in range(10)]


def test_where_the_disk_is_full_the_line_that_was_cut_stays_the_last(journal, monkeypatch):
    def full(folder, name, _):
        with folder.file(name).open("a") as file:
            file.write('{"prob')
        raise OSError("no space left on device")

    def work(left, keep):
        for i in left:
            keep([Done(f"p-{i}")])
            journal.passed(1.0)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(RunFolder, "append", full)
        journal.work(work)
    assert [record.problem for record in journal.work(work)] == [f"p-{i}" for i in range(10)]
