"""All copies of an engine at work on rows together: which copy gets what, and what is done where one is lost."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from cca.errors import InputError, install_command
from cca.model.engines.worker import SPARE, Job, Parcel, Sent
from cca.model.generate import Queue, Row, Watch
from cca.model.read import Text
from cca.model.weights import first_line

_WAIT = 0.2
"""Seconds for which a copy is asked for what it has done, before it is asked again."""
_LOST = 8
"""Copies that may be lost one after the other, without a row done in between, before that is an error."""


class Copy:
    """This side of one of the processes.

    texts: what it knows, by number. functions: likewise, of stop rules. rows: in its hands, by number. reads: texts
    that it is to read. writing, receiving, sending: calls that are under way.
    """

    def __init__(self, actor: Any):
        self.actor = actor
        self.begin(None, None)

    def begin(self, writing: Any, receiving: Any) -> None:
        self.writing, self.receiving = writing, receiving
        self.sending: list[Any] = []
        self.texts: dict[int, Text] = {}
        self.functions: dict[Callable[..., bool], int] = {}
        self.rows: dict[int, Row] = {}
        self.reads: dict[int, Text] = {}
        self.unsent = Parcel(0)

    def flush(self, *, last: bool = False) -> None:
        """Send what has gathered, and what is not wanted any more."""
        dropped = [number for number, row in self.rows.items() if row.dropped]
        forgotten = [number for number, text in self.texts.items() if text.forgotten]
        for number in dropped:
            del self.rows[number]
        for number in forgotten:
            del self.texts[number]
        parcel = replace(self.unsent, dropped=dropped, forgotten=forgotten, last=last)
        if not parcel.is_empty:
            self.sending.append(self.actor.send.remote(parcel))
            self.unsent = Parcel(parcel.number + 1)


class Crew:
    """All copies at work on the rows of one call of `write`."""

    def __init__(self, copies: list[Copy], replace: Callable[[Copy], Copy], slots: int, end_tokens: frozenset[int]):
        """replace: gives a new copy in place of a lost one, in `copies` as well."""
        self.copies, self.replace, self.slots, self.end_tokens = copies, replace, slots, end_tokens
        self.numbers = itertools.count()
        self.queue = Queue()
        self.home: WeakKeyDictionary[Text, tuple[Copy, int]] = WeakKeyDictionary()
        self.lost = self.unsaid = 0
        self.watch = Watch(lambda _: None)
        for copy in copies:
            self._begin(copy)

    def _begin(self, copy: Copy) -> None:
        writing = copy.actor.write.remote(self.slots, sorted(self.end_tokens))
        copy.begin(writing, copy.actor.receive.remote(_WAIT))

    def end(self) -> None:
        """Let the copies end their writing, so that they are ready for the next."""
        for copy in self.copies:
            copy.flush(last=True)
        for copy in list(self.copies):
            try:
                result(copy.writing)
                result(copy.receiving)  # lest it take what belongs to the next crew
            except Lost:
                self.replace(copy)

    # ---- rows ----

    def write(self, rows: Iterable[Row], idle: Callable[[int], Iterable[Row]] | None, watch: Watch) -> None:
        self.watch = watch
        self.queue.add(rows)
        while True:
            self._fill(idle)
            # what a copy has got besides waits there
            watch.at_work = [r for copy in self.copies for r in itertools.islice(copy.rows.values(), self.slots)]
            if not watch.at_work:
                return
            self._receive()

    @property
    def _room(self) -> int:
        """How many rows may be handed out.

        While many are left, as many wait at a copy as it writes, for what they continue is read in passes of several;
        towards the end fewer, lest they wait at one copy while another has nothing to do.
        """
        left = len(self.queue) // (2 * len(self.copies))
        most = self.slots + max(-(-self.slots // SPARE), min(self.slots, left))
        return sum(max(0, most - len(copy.rows)) for copy in self.copies)

    def _fill(self, idle: Callable[[int], Iterable[Row]] | None) -> None:
        """Hand out the next rows, as many as there is room for."""
        while room := self._room:
            handed = 0
            while handed < room and (row := self.queue.next()):
                self._hand_out(row)
                handed += 1
            if self.queue:
                break
            free = sum(max(0, self.slots - len(copy.rows)) for copy in self.copies)
            more = list(idle(free)) if idle and free else []
            if not more:
                break
            self.queue.add(more)
        for copy in self.copies:
            copy.flush()

    def _place(self, text: Text) -> tuple[Copy, int]:
        """The copy that has a text, or shall have it, and its number there."""
        if text in self.home:
            return self.home[text]
        copy = min(self.copies, key=lambda c: len(c.rows) + len(c.reads))
        self.home[text] = copy, self._told(copy, text)
        return self.home[text]

    def _told(self, copy: Copy, text: Text) -> int:
        start = None
        if text.start:  # every copy reads what all texts begin with
            start = next((n for n, known in copy.texts.items() if known is text.start), None)
            start = self._told(copy, text.start) if start is None else start
        number = next(self.numbers)
        copy.texts[number] = text
        copy.unsent.texts.append(Sent(number, text.ids, text.predict_from, start))
        return number

    def _hand_out(self, row: Row) -> None:
        assert row.text is not None, "a row is written once"
        if row.text not in self.home:
            self.unsaid += row.text.own_length()
        copy, text = self._place(row.text)
        number, stop = next(self.numbers), None
        if row.stop:
            function, arguments = getattr(row.stop, "func", row.stop), getattr(row.stop, "args", ())
            if function not in copy.functions:
                copy.functions[function] = next(self.numbers)
                copy.unsent.functions.append((copy.functions[function], function))
            stop = copy.functions[function], arguments
        copy.rows[number] = row
        job = Job(
            number,
            text,
            row.limit,
            row.order,
            length=row.length,
            first=row.first,
            temperature=row.temperature,
            top_k=row.top_k,
            uniforms=row.uniforms,
            stop=stop,
        )
        copy.unsent.jobs.append(job)

    def _receive(self) -> None:
        """Wait for some copy, and take what it has done."""
        ray = ray_package()
        waited = [call for copy in self.copies for call in (*copy.sending, copy.receiving, copy.writing)]
        ray.wait(waited, num_returns=1)
        ready = set(ray.wait(waited, num_returns=len(waited), timeout=0)[0])
        for copy in list(self.copies):
            if ready.isdisjoint((*copy.sending, copy.receiving, copy.writing)):
                continue
            try:
                for call in ready.intersection((*copy.sending, copy.writing)):
                    result(call)  # raises, if it is of the writing, which ends by an error alone
                copy.sending = [call for call in copy.sending if call not in ready]
                if copy.receiving not in ready:
                    continue
                back = result(copy.receiving)
            except Lost as lost:
                self._lost(copy, lost)
                continue
            copy.receiving = copy.actor.receive.remote(_WAIT)
            for number, predictions in back.predictions:
                copy.reads.pop(number).predictions = list(predictions)
            for number, tokens in back.written:
                if row := copy.rows.pop(number, None):
                    self._ended(row, tokens)

    def _ended(self, row: Row, tokens: tuple[int, ...]) -> None:
        self.lost, row.text = 0, None
        if row.dropped:
            return
        row.tokens.extend(tokens)
        self.watch.row_ended(row)
        if row.then:
            self.queue.add(row.then(row.tokens))
        self.watch.passed(len(tokens) + self.unsaid)
        self.unsaid = 0

    # ---- texts ----

    def read(self, texts: Sequence[Text], progress: Callable[[int], None] | None) -> None:
        waiting = list(texts)
        for text in waiting:
            self._ask(text)
        while any(copy.reads for copy in self.copies):
            for copy in self.copies:
                copy.flush()
            self._receive()
        if progress:
            progress(sum(text.own_length() for text in waiting))

    def _ask(self, text: Text) -> None:
        copy, number = self._place(text)
        copy.reads[number] = text
        copy.unsent.reads.append(number)

    # ---- losses ----

    def _lost(self, copy: Copy, why: Exception) -> None:
        """Begin anew what a copy had in hand."""
        self.lost += 1
        if self.lost > _LOST:
            raise InputError(
                f"{self.lost} processes of Ray were lost one after the other ({first_line(why)}); have fewer or "
                "smaller ones: engine.workers, traces.batch"
            )
        rows, reads = list(copy.rows.values()), list(copy.reads.values())
        for text in [text for text, (at, _) in self.home.items() if at is copy]:
            del self.home[text]
        self._begin(self.replace(copy))
        self.queue.add(rows)
        for text in reads:
            self._ask(text)


class Lost(Exception):
    """A process is gone."""


def result(call: Any) -> Any:
    """What a call gave.

    Raises:
        Lost: its process is gone.
        Exception: what it raised.
    """
    ray = ray_package()
    try:
        return ray.get(call)
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
        raise Lost(first_line(error)) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def ray_package() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise no_ray() from error
    return ray


def no_ray() -> InputError:
    return InputError(f"engine.workers needs Ray; install it with: {install_command('ray')}")
