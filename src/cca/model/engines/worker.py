"""One of several copies of an engine: what runs in a process of Ray. Rows come as jobs, and go back as new tokens."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.engines.local import local_engine
from cca.model.engines.vllm_engine import Vllm
from cca.model.generate import Row
from cca.model.intervention import Intervention
from cca.model.options import EngineOptions, ModelOptions
from cca.model.read import Text

SPARE = 8
"""Of so many rows that a copy writes at once, at least one more waits there, to begin as soon as there is a place."""


class Sent(NamedTuple):
    """A text: its number, its ids, from where on predictions are wanted, and the number of the text that it begins
    with, if any."""

    number: int
    ids: tuple[int, ...]
    predict_from: int | None
    start: int | None


@dataclass(frozen=True)
class Job:
    """A row, by a number. text: of its `Sent`. stop: number of a function, and its first arguments. Else as `Row`."""

    number: int
    text: int
    limit: int
    order: tuple[int, ...]
    length: int | None
    first: int | None
    temperature: float
    top_k: int
    uniforms: np.ndarray | None
    stop: tuple[int, tuple[Any, ...]] | None


@dataclass
class Parcel:
    """What is sent together.

    number: parcels are unpacked in the order of these. functions: of stop rules, by number. reads: texts that are to be
    read. dropped: jobs that nobody waits for. forgotten: texts that are not needed any more. last: nothing comes after.
    """

    number: int
    texts: list[Sent] = field(default_factory=list)
    functions: list[tuple[int, Callable[..., bool]]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    last: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.texts or self.jobs or self.reads or self.dropped or self.forgotten or self.last)


class Back(NamedTuple):
    """What comes back. written: new tokens of jobs. predictions: of texts that were read."""

    written: Sequence[tuple[int, tuple[int, ...]]]
    predictions: Sequence[tuple[int, tuple[int, ...]]]


class Worker:
    """An engine with a model of its own. Ray calls `write`, `send` and `receive` in threads of their own."""

    def __init__(self, options: EngineOptions, model: ModelOptions):
        self.options, self.model = options, model
        self.engine: Transformers | Vllm
        self.changes: list[AbstractContextManager[None]] = []
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.inbox: queue.PriorityQueue[tuple[int, Parcel]] = queue.PriorityQueue()
        self.unpacked = 0
        self.outbox: queue.SimpleQueue[tuple[str, int, tuple[int, ...]]] = queue.SimpleQueue()
        self.urgent = threading.Event()
        self.texts: dict[int, Text] = {}
        self.functions: dict[int, Callable[..., bool]] = {}
        self.rows: dict[int, Row] = {}
        self.reads: list[int] = []
        self.slots, self.over = 0, False

    def open(self) -> int:
        """Load the model, the first time; the number of the process.

        Raises:
            InputError: it cannot be loaded here.
        """
        if not hasattr(self, "engine"):
            self.engine = local_engine(self.options, self.model)
        return os.getpid()

    def put_on(self, intervention: Intervention) -> None:
        """Work with the changed model until `take_off`."""
        if self.changes and isinstance(intervention, Delta):
            intervention.is_known_to_fit(self.engine.network)  # whose rows hold what the change before made of them
        change = self.engine.changed(intervention)
        change.__enter__()
        self.changes.append(change)

    def take_off(self) -> None:
        """Undo the last `put_on`."""
        self.changes.pop().__exit__(None, None, None)

    def write(self, slots: int, end_tokens: Sequence[int]) -> None:
        """Write what is sent, until the last parcel."""
        self.slots = slots
        try:
            while not self.over:
                rows = self._unpacked(self._next())
                self._read()
                self.engine.write(rows, slots=slots, end_tokens=frozenset(end_tokens), idle=self._more)
        finally:
            self.urgent.set()  # whoever waits for something need not any more
            self._begin_anew()

    def send(self, parcel: Parcel) -> None:
        """Take in more work. Returns before it is done."""
        for number in parcel.dropped:
            if row := self.rows.get(number):
                row.drop()
        self.inbox.put((parcel.number, parcel))

    def _next(self, *, wait: bool = True) -> Parcel:
        """The parcel whose turn it is. Raises queue.Empty where it has not come and is not to be waited for."""
        number, parcel = self.inbox.get(block=wait)
        while number != self.unpacked:  # calls may overtake one another
            self.inbox.put((number, parcel))
            if not wait:
                raise queue.Empty
            number, parcel = self.inbox.get()
        self.unpacked += 1
        return parcel

    def receive(self, seconds: float) -> Back:
        """What is done after that time, or as soon as there is reason to hand it over."""
        self.urgent.wait(seconds)
        self.urgent.clear()
        found = [self.outbox.get() for _ in range(self.outbox.qsize())]
        return Back(*([(n, tokens) for kind, n, tokens in found if kind == which] for which in ("row", "text")))

    def _more(self, free: int) -> Iterable[Row]:
        """What came in the meantime."""
        del free
        rows = self._arrived()
        self._read()
        return rows

    def _arrived(self) -> list[Row]:
        rows: list[Row] = []
        try:
            while True:
                rows += self._unpacked(self._next(wait=False))
        except queue.Empty:
            return rows

    def _read(self) -> None:
        """Read what has been asked for; between two passes of the writing, and not in one."""
        numbers, self.reads = self.reads, []
        if not numbers:
            return
        self.engine.read([self.texts[number] for number in numbers])
        for number in numbers:
            self.outbox.put(("text", number, tuple(self.texts[number].predictions)))
        self.urgent.set()

    def _unpacked(self, parcel: Parcel) -> list[Row]:
        """The rows of a parcel; what else it asks for is done, but for reading."""
        self.over = parcel.last
        for sent in parcel.texts:
            start = None if sent.start is None else self.texts[sent.start]
            self.texts[sent.number] = Text(sent.ids, sent.predict_from, start)
        self.functions.update(parcel.functions)
        for number in parcel.forgotten:
            if text := self.texts.pop(number, None):
                text.forget()
        self.reads += parcel.reads
        rows = [self._row(job) for job in parcel.jobs]
        for number in parcel.dropped:  # of jobs that came after
            if row := self.rows.pop(number, None):
                row.drop()
        return rows

    def _row(self, job: Job) -> Row:
        stop = partial(self.functions[job.stop[0]], *job.stop[1]) if job.stop else None
        self.rows[job.number] = row = Row(
            self.texts[job.text],
            job.limit,
            job.order,
            length=job.length,
            first=job.first,
            temperature=job.temperature,
            top_k=job.top_k,
            uniforms=job.uniforms,
            stop=stop,
            then=partial(self._ended, job.number),
        )
        return row

    def _ended(self, number: int, tokens: list[int]) -> list[Row]:
        """What came in the meantime, so that it is queued by its order, and read together."""
        self.rows.pop(number, None)
        self.outbox.put(("row", number, tuple(tokens)))
        arrived = self._arrived()
        if len(self.rows) <= self.slots + self.slots // (2 * SPARE):  # more are needed soon
            self.urgent.set()
        return arrived
