"""Copies of an engine in processes of Ray, on this machine or on a cluster.

Rows go to the copies one by one, those of a text to the copy that has read it, and what is done with their tokens is
done here. A row depends on nothing that is written beside it, so neither the number of copies nor the loss of one
changes a result: what a lost copy had in hand is begun anew on another, and a new one takes its place.
"""

import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

from cca.errors import InputError
from cca.model.engine import ahead_on_a_cpu
from cca.model.engines.crew import Copy, Crew, Lost, no_ray, ray_package, result
from cca.model.engines.vllm_check import installed, python_of
from cca.model.engines.worker import Worker
from cca.model.generate import Row, Watch
from cca.model.intervention import Intervention
from cca.model.options import EngineOptions, ModelOptions
from cca.model.read import Text
from cca.model.weights import first_line

_PATIENCE = 60.0
"""Seconds after which it is said that a copy is not there yet: a cluster may have no room for it."""
_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA", "HF_HOME")
"""What decides on threads and rounding, and is to be the same in all processes."""


_on_our_ray: WeakSet["Replicated"] = WeakSet()
"""Who uses the Ray that was started here; the last of them ends it."""


class Replicated:
    """Satisfies `cca.model.engine.Engine`. Processes are started when they are first needed."""

    apart = True

    def __init__(self, options: EngineOptions, model: ModelOptions):
        """on_a_gpu: each copy has GPUs of its own, where the cluster has any, else one thread of a CPU."""
        self.options, self.model, self.on_a_gpu = options, model, False
        self.name, self.own_streams = options.name, options.name == "transformers"
        self.changes: list[Intervention] = []
        self.copies: list[Copy] = []
        self.crew: Crew | None = None

    @property
    def version(self) -> str:
        return installed(python_of(self.options)) if self.name == "vllm" else version(self.name)

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
        ray, was_on_it = ray_package(), self in _on_our_ray
        self._kill()
        _on_our_ray.discard(self)
        if was_on_it and not _on_our_ray:
            ray.shutdown()

    # ---- processes ----

    def _kill(self) -> None:
        for copy in self.copies:
            ray_package().kill(copy.actor)
        self.copies = []

    @contextmanager
    def _at_work(self, slots: int, end_tokens: frozenset[int]) -> Iterator[Crew]:
        self._start()
        self.crew = Crew(self.copies, self.replace, slots, end_tokens)
        try:
            yield self.crew
        except BaseException:
            self._kill()  # what they are at is not wanted any more, and they would not stop before it is done
            raise
        else:
            self.crew.end()
        finally:
            self.crew = None

    def _start(self) -> None:
        ray = ray_package()
        if starts := not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # of a cluster the rest is given
            own = {} if self.options.ray_address else {"num_cpus": self.options.workers, "include_dashboard": False}
            try:
                with _quiet():
                    ray.init(address=self.options.ray_address, log_to_driver=False, configure_logging=False, **own)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                where = self.options.ray_address or "this machine"
                raise InputError(
                    f"no Ray cluster at {where} ({first_line(error)}); start one with `ray start --head`, name it with "
                    "--ray-address, or leave that out to use this machine alone"
                ) from error
        if starts or _on_our_ray:  # else somebody else started it
            _on_our_ray.add(self)
        if not self.copies:
            self.on_a_gpu = self.model.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        fresh = [self._process() for _ in range(self.options.workers - len(self.copies))]
        self.copies += [self._opened(actor) for actor in fresh]

    def _process(self) -> Any:
        """A new process, which begins to load its model."""
        threads = {"OMP_NUM_THREADS": "1"} | {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        made = (
            ray_package()
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

    def _opened(self, actor: Any) -> Copy:
        """A process whose model is loaded and changed as the others' are."""
        opening, waited = actor.open.remote(), False
        while not ray_package().wait([opening], timeout=_PATIENCE)[0]:
            if not waited:
                has = {name: n for name, n in ray_package().cluster_resources().items() if name in ("CPU", "GPU")}
                print(f"waiting for a worker to start; the Ray cluster has {has}", file=sys.stderr, flush=True)
            waited = True
        result(opening)
        for change in self.changes:
            result(actor.put_on.remote(change))
        return Copy(actor)

    def _all(self, method: str, *arguments: Any) -> None:
        for copy, done in [(copy, getattr(copy.actor, method).remote(*arguments)) for copy in self.copies]:
            try:
                result(done)
            except Lost:
                self.replace(copy)

    def replace(self, copy: Copy) -> Copy:
        """A new process in place of one that is lost."""
        self.copies.remove(copy)
        self.copies.append(self._opened(self._process()))
        return self.copies[-1]


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
            raise no_ray()
