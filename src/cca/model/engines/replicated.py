"""Copies of an engine in processes of Ray, on this machine or on a cluster.

Rows go to the copies one by one, those of a text to the copy that has read it, and what is done with their tokens is
done here. A row depends on nothing that is written beside it, so neither the number of copies nor the loss of one
changes a result: what a lost copy had in hand is begun anew on another, and a new one takes its place.
"""

import heapq
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from cca.errors import InputError, install_command
from cca.model.engine import ahead_on_a_cpu
from cca.model.engines.worker import Job, Parcel, Sent, Worker
from cca.model.generate import Row, Watch
from cca.model.intervention import Intervention
from cca.model.options import EngineOptions, ModelOptions
from cca.model.read import Text

_WAIT = 0.2
"""Seconds for which a copy is asked for what it has done, before it is asked again."""
_SPARE = 8
"""Of so many rows that a copy writes at once, one more waits there, to begin as soon as there is a place."""
_LOST = 8
"""Copies that may be lost one after the other, without a row done in between, before that is an error."""
_PATIENCE = 60.0
"""Seconds after which it is said that a copy is not there yet: a cluster may have no room for it."""
_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA", "HF_HOME")
"""What decides on threads and rounding, and is to be the same in all processes."""


class Replicated:
    """Satisfies `cca.model.engine.Engine`. Processes are started when they are first needed."""

    name: ClassVar[str] = "ray"

    def __init__(self, options: EngineOptions, model: ModelOptions):
        """on_a_gpu: each copy has GPUs of its own, where the cluster has any, else one thread of a CPU."""
        self.options, self.model, self.on_a_gpu = options, model, False
        self.own_streams = options.name == "transformers"
        self.changes: list[Intervention] = []
        self.copies: list[_Copy] = []
        self.crew: _Crew | None = None
        self.started_ray = False

    # ---- Engine ----

    def write(
        self,
        rows: Iterable[Row],
        *,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        with self._at_work(slots, end_tokens) as crew:
            crew.write(rows, idle, watch or Watch(lambda _: None))

    def read(self, texts: Sequence[Text], progress: Callable[[int], None] | None = None) -> None:
        if self.crew:
            self.crew.read(texts, progress)
            return
        with self._at_work(1, frozenset()) as crew:
            crew.read(texts, progress)

    def portions(self, texts: Iterable[Text]) -> Iterator[list[Text]]:
        """A few for each copy, which reads them in passes of its own."""
        remaining = iter(texts)
        while some := list(itertools.islice(remaining, 16 * self.options.workers)):
            yield some

    def ahead(self, free: int, slots: int) -> int:
        return free if self.on_a_gpu else ahead_on_a_cpu(free, slots, self.options.workers)

    @contextmanager
    def changed(self, intervention: Intervention) -> Iterator[None]:
        self.changes.append(intervention)
        if self.copies:
            self._all("put_on", intervention)
        try:
            yield
        finally:
            self.changes.pop()
            if self.copies:
                self._all("take_off")

    def close(self) -> None:
        ray = _ray()
        for copy in self.copies:
            ray.kill(copy.actor)
        self.copies = []
        if self.started_ray:
            ray.shutdown()
            self.started_ray = False

    # ---- processes ----

    @contextmanager
    def _at_work(self, slots: int, end_tokens: frozenset[int]) -> Iterator["_Crew"]:
        self._start()
        self.crew = _Crew(self, slots, end_tokens)
        try:
            yield self.crew
        except BaseException:
            # what they are at is not wanted any more, and they would not stop before it is done
            for copy in self.copies:
                _ray().kill(copy.actor)
            self.copies = []
            raise
        else:
            self.crew.end()
        finally:
            self.crew = None

    def _start(self) -> None:
        ray = _ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # of a cluster the rest is given
            own = {} if self.options.ray_address else {"num_cpus": self.options.workers, "include_dashboard": False}
            try:
                with _quiet():
                    ray.init(address=self.options.ray_address, log_to_driver=False, configure_logging=False, **own)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise InputError(
                    f"no Ray cluster at {self.options.ray_address or 'this machine'} ({_first(error)}); start one with "
                    "`ray start --head`, name it with --ray-address, or leave that out to use this machine alone"
                ) from error
            self.started_ray = True
            self.on_a_gpu = self.model.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        fresh = [self._process() for _ in range(self.options.workers - len(self.copies))]
        self.copies += [self._opened(actor) for actor in fresh]

    def _process(self) -> Any:
        """A new process, which begins to load its model."""
        threads = {"OMP_NUM_THREADS": "1"} | {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        made = (
            _ray()
            .remote(Worker)
            .options(
                num_cpus=1 if self.options.ray_address else 0,  # this machine has room for all that are asked for
                num_gpus=self.options.tensor_parallel if self.on_a_gpu else 0,
                max_concurrency=4,
                runtime_env={"env_vars": threads},
            )
        )
        model = self.model.changed({"device": "auto" if self.on_a_gpu else "cpu"})
        return made.remote(self.options.changed({"workers": 0}), model)

    def _opened(self, actor: Any) -> "_Copy":
        """A process whose model is loaded and changed as the others' are."""
        opening, waited = actor.open.remote(), False
        while not _ray().wait([opening], timeout=_PATIENCE)[0]:
            if not waited:
                has = {name: n for name, n in _ray().cluster_resources().items() if name in ("CPU", "GPU")}
                print(f"waiting for a worker to start; the Ray cluster has {has}", file=sys.stderr, flush=True)
            waited = True
        _result(opening)
        for change in self.changes:
            _result(actor.put_on.remote(change))
        return _Copy(actor)

    def _all(self, method: str, *arguments: Any) -> None:
        for copy, done in [(copy, getattr(copy.actor, method).remote(*arguments)) for copy in self.copies]:
            try:
                _result(done)
            except _Lost:
                self.replace(copy)

    def replace(self, copy: "_Copy") -> "_Copy":
        """A new process in place of one that is lost."""
        self.copies.remove(copy)
        self.copies.append(self._opened(self._process()))
        return self.copies[-1]


class _Copy:
    """This side of one of the processes.

    texts: what it knows, by number. functions: likewise, of stop rules. rows: in its hands, by number. reads: texts
    that it is to read. writing, receiving: calls that are under way.
    """

    def __init__(self, actor: Any):
        self.actor = actor
        self.begin(None, None)

    def begin(self, writing: Any, receiving: Any) -> None:
        self.writing, self.receiving = writing, receiving
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
            self.actor.send.remote(parcel)
            self.unsent = Parcel(parcel.number + 1)


class _Crew:
    """All copies at work on the rows of one call of `write`."""

    def __init__(self, engine: Replicated, slots: int, end_tokens: frozenset[int]):
        self.engine, self.slots, self.end_tokens = engine, slots, end_tokens
        self.numbers = itertools.count()
        self.queue: list[tuple[tuple[int, ...], int, Row]] = []
        self.home: WeakKeyDictionary[Text, tuple[_Copy, int]] = WeakKeyDictionary()
        self.lost = 0
        self.watch = Watch(lambda _: None)
        for copy in engine.copies:
            self._begin(copy)

    @property
    def copies(self) -> list[_Copy]:
        return self.engine.copies

    def _begin(self, copy: _Copy) -> None:
        writing = copy.actor.write.remote(self.slots, sorted(self.end_tokens))
        copy.begin(writing, copy.actor.receive.remote(_WAIT))

    def end(self) -> None:
        """Let the copies end their writing, so that they are ready for the next."""
        for copy in self.copies:
            copy.flush(last=True)
        for copy in list(self.copies):
            try:
                _result(copy.writing)
            except _Lost:
                self.engine.replace(copy)

    # ---- rows ----

    def write(self, rows: Iterable[Row], idle: Callable[[int], Iterable[Row]] | None, watch: Watch) -> None:
        self.watch = watch
        self._add(rows)
        while True:
            self._fill(idle)
            watch.at_work = [row for copy in self.copies for row in copy.rows.values()]
            if not watch.at_work:
                return
            self._receive()

    def _add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            heapq.heappush(self.queue, (row.order, next(self.numbers), row))

    @property
    def _room(self) -> int:
        most = self.slots + -(-self.slots // _SPARE)
        return sum(max(0, most - len(copy.rows)) for copy in self.copies)

    def _fill(self, idle: Callable[[int], Iterable[Row]] | None) -> None:
        """Hand out the next rows, as many as there is room for."""
        while room := self._room:
            handed = 0
            while self.queue and handed < room:
                row = heapq.heappop(self.queue)[2]
                if not row.dropped:
                    self._hand_out(row)
                    handed += 1
            if self.queue:
                break
            free = sum(max(0, self.slots - len(copy.rows)) for copy in self.copies)
            more = list(idle(free)) if idle and free else []
            if not more:
                break
            self._add(more)
        for copy in self.copies:
            copy.flush()

    def _place(self, text: Text) -> tuple[_Copy, int]:
        """The copy that has a text, or shall have it, and its number there."""
        if text in self.home:
            return self.home[text]
        copy = min(self.copies, key=lambda c: len(c.rows) + len(c.reads))
        self.home[text] = copy, self._told(copy, text)
        return self.home[text]

    def _told(self, copy: _Copy, text: Text) -> int:
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
        ray = _ray()
        waited = [call for copy in self.copies for call in (copy.receiving, copy.writing)]
        ready, _ = ray.wait(waited, num_returns=1)
        for copy in list(self.copies):
            if copy.receiving not in ready and copy.writing not in ready:
                continue
            try:
                if copy.writing in ready:
                    _result(copy.writing)  # raises: it has no other way to end
                back = _result(copy.receiving)
            except _Lost as lost:
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
        row.tokens.extend(tokens)
        if row.dropped:
            return
        self.watch.row_ended(row)
        if row.then:
            self._add(row.then(row.tokens))
        self.watch.passed(len(tokens))

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

    def _lost(self, copy: _Copy, why: Exception) -> None:
        """Begin anew what a copy had in hand."""
        self.lost += 1
        if self.lost > _LOST:
            raise InputError(
                f"{self.lost} processes of Ray were lost one after the other ({_first(why)}); have fewer or smaller "
                "ones: engine.workers, traces.batch"
            )
        rows, reads = list(copy.rows.values()), list(copy.reads.values())
        for text in [text for text, (at, _) in self.home.items() if at is copy]:
            del self.home[text]
        self._begin(self.engine.replace(copy))
        self._add(rows)
        for text in reads:
            self._ask(text)


class _Lost(Exception):
    """A process is gone."""


def _result(call: Any) -> Any:
    """What a call gave.

    Raises:
        _Lost: its process is gone.
        Exception: what it raised.
    """
    ray = _ray()
    try:
        return ray.get(call)
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
        raise _Lost(_first(error)) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _ray() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"engine.workers needs Ray; install it with: {install_command('ray')}") from error
    return ray


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context Ray's warnings on its own settings are not shown."""
    logger = logging.getLogger("ray")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def check_ray(options: EngineOptions) -> None:
    """See that Ray is installed.

    Raises:
        InputError: it is not, or an address is given without workers.
    """
    if options.ray_address and not options.workers:
        raise InputError("engine.ray_address is given, but engine.workers is 0; say how many workers there shall be")
    if options.workers:
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise InputError(f"engine.workers needs Ray; install it with: {install_command('ray')}")
