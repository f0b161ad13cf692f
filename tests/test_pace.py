"""Signs of life: how fast work goes and how long it will take, said early, by a clock that the tests move."""

import re
from collections import Counter
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cca.method.options import TraceOptions
from cca.method.traces import trace_pairs
from cca.model.engine import Transformers
from cca.model.generate import Row
from cca.records import Problem, Trace
from cca.run.config import load_config
from cca.run.run import Run
from cca.run.writing import Sizes, Writing, rows_of_a_problem
from cca.show.progress import Display, Lines, LiveDisplay


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def seconds_left(said: str) -> float:
    """What ``about 1:02:40 left`` or ``at most 8 s left`` says."""
    found = re.search(r"(?:about|at most) (?:(\d+) s|([\d:]+)) left", said)
    assert found, said
    total = 0
    for part in (found[1] or found[2]).split(":"):
        total = 60 * total + int(part)
    return total


# ---- the time left ----


@pytest.mark.parametrize("done", [0, 40], ids=["from the beginning", "resumed"])
def test_the_time_left_of_equal_units_is_right_after_ten_seconds(clock, done):
    with Display(clock).bar("x", 100, "units", done) as bar:
        for step in range(1, 21):  # passes of half a second; a unit takes 30 seconds
            clock.seconds += 0.5
            bar.work(5, step * 0.5 / 30)
    assert seconds_left(bar.speed()) == pytest.approx(30 * (100 - done) - 10, rel=0.02)
    assert bar.speed().startswith("10 tokens/s, ")


def test_a_training_that_goes_on_counts_its_pace_from_where_it_goes_on(clock):
    with Display(clock).bar("x", 50, "steps") as bar:
        clock.seconds += 1
        bar.resume(40)
        for step in range(1, 11):
            clock.seconds += 1
            bar.work(5, step / 20)
    assert seconds_left(bar.speed()) == pytest.approx(20 * 10 - 10, rel=0.02)


@pytest.mark.parametrize("off", [0.9, 1.0, 1.2], ids=["expected too short", "expected", "expected too long"])
def test_the_time_left_is_about_right_where_all_answers_end_together_long_after(clock, off):
    lengths = np.random.default_rng(0).normal(400, 20, 64).astype(int).tolist()
    writing = Writing(512, expected=off * np.mean(lengths))
    said = {}
    with Display(clock).bar("x", 64, "problems") as bar, writing.told(bar, 64):
        for step in range(1, max(lengths) + 1):  # a token of every answer that has not ended takes half a second
            clock.seconds += 0.5
            seen(writing, [((i, 0), step) for i, length in enumerate(lengths) if length > step])
            writing.watch.lengths = Counter(length for length in lengths if length <= step)
            writing.watch.sizes = Counter([1] * writing.watch.lengths.total())
            writing.watch.passed(sum(length >= step for length in lengths))
            said[clock.seconds] = bar.speed()
    whole = max(lengths) / 2
    for early in (10.0, 20.0, 60.0):
        assert seconds_left(said[early]) == pytest.approx(whole - early, rel=0.3)
    assert (bar.done, bar.pace.position) == (64, 64)


def test_no_time_left_is_said_where_nothing_is_known_of_it(clock):
    with Display(clock).bar("x", 4, "problems") as bar:
        clock.seconds += 10
        bar.work(620)
        assert bar.speed() == "62 tokens/s"


def test_validations_amid_the_steps_are_part_of_the_time_left(clock):
    with Display(clock).bar("x", 10, "steps", at_most=True) as bar:
        bar.expect(3)  # before the first step, after the 5th and after the last
        for after in (0, 5):
            for _ in range(after):
                clock.seconds += 4
                bar.reach(bar.done + 1)
            with bar.bar("validation", 36, "problems") as inner:
                clock.seconds += 10
                inner.work(60, within=6)
                said = bar.speed()
                clock.seconds += 50
            if not after:
                assert said == "6.0 tokens/s, about 50 s left of the validation"  # a step is still to be seen
        assert seconds_left(said) == 50 + 5 * 4 + 60
        assert seconds_left(bar.speed()) == 5 * 4 + 60
        assert bar.speed().endswith("at most 1:20 left")


def test_time_left_runs_down_between_two_reports(clock):
    with Display(clock).bar("x", 10, "units") as bar:
        clock.seconds += 10
        bar.reach(1)
        assert seconds_left(bar.speed()) == 90
        clock.seconds += 4
        assert seconds_left(bar.speed()) == 86
        clock.seconds += 300
        assert seconds_left(bar.speed()) == 0


def test_tokens_a_second_are_those_of_the_last_half_minute(clock):
    with Display(clock).bar("x", 1000, "units") as bar:
        for rate in [100] * 60 + [10] * 31:
            clock.seconds += 1
            bar.work(rate)
        assert bar.pace.rate == pytest.approx(10, rel=0.1)


# ---- how much is written ----


def seen(writing: Writing, rows: list[tuple[tuple[int, ...], int]]) -> None:
    """Let so many tokens of each row be written; the first number of its order is its unit."""
    writing.watch.at_work = [Row(None, 1000, order, tokens=[0] * tokens) for order, tokens in rows]


def test_what_is_expected_is_the_mean_of_those_that_are_as_large_already():
    sizes = Sizes({2: 3, 10: 1}, [], [], 20)
    assert sizes.mean == 4
    assert sizes.expected(1) == 4
    assert sizes.expected(2.5) == 10


def test_what_is_in_flight_counts_as_larger_than_it_is_so_that_the_small_which_end_first_do_not_pass_for_all():
    sizes = Sizes({2: 5, 10: 1}, [3] * 5, [], 20)  # of 11 that came to 2, 5 ended there; nobody knows of the other 5
    assert sizes.mean == pytest.approx((5 * 2 + 6 * 10) / 11)


def test_what_outgrows_all_that_ended_comes_nearer_to_its_end_but_never_there():
    before = 0.0
    for size in range(100, 1000):
        part = size / Sizes({}, [size + 0.5], [100] * 8, 1000).expected(size + 0.5)
        assert before < part < 1
        before = part


def test_what_is_expected_without_any_knowledge_is_a_third_of_the_limit_and_never_over_it():
    assert Writing(300).expected == 100
    assert Writing(300, expected=500).expected == 300


def test_what_is_left_are_the_rest_of_the_rows_their_units_further_rows_and_the_units_to_come():
    writing = Writing(300, expected=100, rows=(2, 4), most_rows=11)
    seen(writing, [])
    assert writing.rest(5) == 5 * 3 * 100
    seen(writing, [((7, 0), 40)])
    assert writing.rest(5) == 60 + 2 * 100 + 4 * 3 * 100
    writing.watch.ended[7] = 1
    seen(writing, [((7, 1), 40)])
    assert writing.rest(1) == 60 + 1 * 100
    seen(writing, [])  # its third waits for a slot, so it has more than two
    assert writing.rest(1) == pytest.approx(100 * (Sizes({}, [1.5], [2, 4] * 4, 11).expected(1.5) - 1))
    writing.watch.over(7)
    assert writing.rest(0) == 0


def test_what_is_read_of_each_unit_is_part_of_what_is_left():
    writing = Writing(300, expected=100, read=40)
    seen(writing, [((0,), 50)])
    assert writing.rest(3) == 50 + 2 * 100 + 3 * 40 / 4


def test_rows_that_nobody_waits_for_any_more_do_not_count():
    writing = Writing(300, expected=100)
    seen(writing, [((0, 0), 50), ((1, 0), 50)])
    writing.watch.at_work[1].drop()
    assert writing.rest(1) == 50


def test_looking_at_the_rows_is_done_twice_a_second(clock):
    writing = Writing(300, expected=100)
    with Display(clock).bar("x", 10, "problems") as bar, writing.told(bar, 10):
        seen(writing, [((0, 0), 50)])
        clock.seconds += 0.4
        writing.watch.passed(64)
        assert (bar.pace.position, bar.pace.tokens) == (0, 64)
        clock.seconds += 0.1
        writing.watch.passed(64)
        assert (bar.pace.position, bar.pace.tokens) == (0.5, 128)


class Script:
    """A prompter whose answers are of unlike lengths, and come out right as often as their problem's template says."""

    end_tokens, start = frozenset[int](), ()

    def __init__(self, opposite: dict[str, float], seed: int):
        self.opposite, self.rng = opposite, np.random.default_rng(seed)
        self.greedy: set[str] = set()

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return (3, 4, 5)

    def stop_rule(self, head=()):
        length = max(1, round(self.rng.normal(20, 4)))
        return lambda tokens: len(tokens) >= length

    def trace(self, problem: Problem, tokens) -> Trace:
        correct = problem.id in self.greedy and self.rng.random() < self.opposite[problem.template]
        self.greedy.add(problem.id)
        return Trace(tuple(tokens), "", "", correct)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_time_left_of_traces_is_about_right_after_a_tenth_of_the_work(tiny, clock, seed):
    opposite = {"often": 0.8, "at times": 0.3, "seldom": 0.1, "never": 0.0}
    kinds = [*["often"] * 2, *["at times"] * 2, "seldom", "never"]
    problems = [Problem(f"p-{i}", kinds[i % 6], i, "train", "", "", "") for i in range(200)]
    options = TraceOptions(max_new_tokens=40, batch=64)
    writing, ended = Writing(40, 20, rows_of_a_problem(options.samples), 1 + options.samples), []
    said: list[tuple[float, str]] = []

    def passed(_: object, __: object, given: dict, ___: object) -> None:
        clock.seconds += 0.1 + given["input_ids"].numel() / 640
        said.append((clock.seconds, bar.speed()))

    hook = tiny.register_forward_hook(passed, with_kwargs=True)
    with Display(clock).bar("trace", 200, "problems") as bar, writing.told(bar, 200):
        prompter: Any = Script(opposite, seed)
        trace_pairs(Transformers(tiny), prompter, problems, options, 0, ended.append, writing.watch)
    hook.remove()
    assert bar.done == len(ended) == 200
    assert {pair.drawn for pair in ended} == set(range(1, 11))
    whole = clock.seconds
    for share in (0.1, 0.3, 0.5):
        at, text = next((at, text) for at, text in said if at >= share * whole)
        assert seconds_left(text) == pytest.approx(whole - at, rel=0.3)


# ---- what is shown ----


@pytest.fixture
def lines(clock, monkeypatch) -> list[tuple[float, str]]:
    """The lines of a `Lines`, each with the time at which it was said."""
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(Lines, "_say", lambda _, text: said.append((clock(), text)))
    return said


def test_a_log_has_a_line_after_5_seconds_then_each_10_and_after_a_minute_each_30(clock, lines):
    display = Lines(clock)
    with display.bar("trace", 64, "problems") as bar:
        display.figure("greedy traces", "33.3% right")
        for _ in range(300):
            clock.seconds += 0.5
            bar.work(155, within=clock.seconds / 10)
    assert [at for at, _ in lines] == [0, 5, 15, 25, 35, 45, 55, 65, 95, 125, 150]
    assert lines[0][1] == "trace: 64 problems to do"
    assert lines[2][1] == "trace: 0/64 problems (2%), 310 tokens/s, about 10:25 left; greedy traces 33.3% right"
    assert lines[-1][1] == "trace: done in 2:30; greedy traces 33.3% right"


def test_a_log_shows_the_last_validation_too(clock, lines):
    with Lines(clock).bar("update", 1, "steps") as bar:
        bar.reach(1)
        with bar.bar("validation", 4, "problems") as inner:
            for _ in range(4):
                clock.seconds += 5
                inner.reach(inner.done + 1)
    assert lines[1][1] == "update: 1/1 steps, validation 1/4 problems, about 15 s left"


def test_work_without_a_bar_says_in_a_log_that_it_goes_on(clock, capsys):
    class Waits:
        """An event that comes in the third wait."""

        waits = iter([False, False, True])

        def wait(self, seconds: float) -> bool:
            clock.seconds += seconds
            return next(self.waits)

    Lines(clock)._ticks("loading the weights", 0.0, Waits())  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().err.splitlines() == [
        "loading the weights ... 10 s so far",
        "loading the weights ... 40 s so far",
    ]


def test_work_without_a_bar_is_over_with_the_next_line_or_the_stage(clock, capsys):
    display = Lines(clock)
    with display.stage("trace"):
        ticking = [display.ticking]
        display.doing("loading the weights")
        ticking.append(display.ticking)
        with display.bar("trace", 1, "problems"):
            assert [event.is_set() for event in ticking] == [True, True]
        ticking.append(display.ticking)
        assert not display.ticking.is_set()  # there may be more to do
    assert all(event.is_set() for event in ticking)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_live_table_shows_tokens_a_second_and_the_time_left(clock):
    import io

    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    display = LiveDisplay(console, now=clock)
    with display.running(["update"], []), display.stage("update"), display.bar("update", 10, "steps") as bar:
        clock.seconds += 10
        bar.work(3100, within=0.5)
        console.print(display.progress)
        with bar.bar("validation", 36, "problems") as inner:
            clock.seconds += 10
            inner.work(100, within=9)
            console.print(display.progress)
    text = " ".join(console.export_text().split())
    assert "0/10 steps 10 s · 310 tokens/s, about 3:10 left" in text
    assert "0/10 steps, validation 0/36 problems 20 s · 160 tokens/s, about 3:40 left" in text


# ---- a whole run ----

TINY = """
seed = 3
[problems]
templates = [16, 43, 39, 72]
train = 3
validation = 1
test = 2
held_out = 0.0
[traces]
skip_solved = 0
[circuit]
lambda = 0.0
learning_rate = 0.3
batch = 2
epochs = 4
patience = 50.0
[update]
steps = 4
validate_every = 2
validate_at = []
[evaluation]
transfer = []
retention = ["leg_counting"]
per_skill = 2
batch = 3
"""


def test_no_stage_is_silent_for_long_where_every_pass_takes_two_seconds(clock, lines, tmp_path):
    spans: dict[str, tuple[float, float]] = {}

    class Watched(Lines):
        @contextmanager
        def stage(self, name: str):
            began = clock()
            with super().stage(name):
                yield
            spans[name] = began, clock()

    def slow(*_: object) -> None:
        clock.seconds += 2

    (tmp_path / "tiny.toml").write_text(TINY)
    with Run.start(tmp_path / "run", load_config(tmp_path / "tiny.toml"), Watched(clock)) as run:
        hook = run.model.network.register_forward_hook(slow)
        try:
            run.execute()
        finally:
            hook.remove()
    assert lines[0][1].startswith("loading the weights of bundled (5.")
    for stage, (began, ended) in spans.items():
        said = [at for at, _ in lines if began <= at <= ended]
        assert said[0] - began <= 10, stage
        gaps = np.diff([began, *said, ended])
        assert gaps.max() <= 35, (stage, gaps)
    progress = [text for at, text in lines if re.search(r": [\d,]+/[\d,]+ ", text)]
    assert len(progress) > 20
    for text in progress:
        assert " tokens/s" in text
    for what in ("trace", "circuit", "evaluate", "diagnosis"):
        _check_time_left(what, lines)


def _check_time_left(what: str, lines: list[tuple[float, str]]) -> None:
    """The first time left that is said after ten seconds of work called `what` is within 30% of the true one."""
    begins = [i for i, (_, text) in enumerate(lines) if text.startswith(f"{what}: ") and text.endswith("to do")]
    for begin in begins:
        end = next(i for i in range(begin, len(lines)) if lines[i][1].startswith(f"{what}: done"))
        later = [(at, text) for at, text in lines[begin:end] if at >= lines[begin][0] + 10]
        if later and "at most" not in later[0][1]:
            at, text = later[0]
            assert seconds_left(text) == pytest.approx(lines[end][0] - at, rel=0.3), text
