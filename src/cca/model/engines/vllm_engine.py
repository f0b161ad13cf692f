"""vLLM as what writes: in a process of its own, with a model of its own, beside the network of this one.

The queue, the slots and the stop rules are here, a row's tokens are looked at one by one, and each step of vLLM is
asked for: so rows end where they would with transformers, and what is computed together is the same in each run.
"""

import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cca.errors import InputError
from cca.model.delta import Delta
from cca.model.engines.process import Process, Refused
from cca.model.engines.vllm_check import installed, python_of
from cca.model.engines.vllm_weights import rank_of, save_adapter, save_changed, stored_weights
from cca.model.generate import Queue, Row, Watch
from cca.model.intervention import Intervention
from cca.model.numerics import check_finite
from cca.model.options import HOTTEST_OF_VLLM, EngineOptions, ModelOptions
from cca.model.read import Text
from cca.model.source import source_folder
from cca.model.weights import weight_files

_SCRIPT = Path(__file__).with_name("vllm_process.py")
_SEATS = 128
"""Rows of a step of vLLM, at least; more of them wait there."""
_ROOM = 64
"""Rank of adapters that there is room for from the start; for one of more rows vLLM is started again."""
_NOTHING = -1
"""In place of a token that cannot be."""
_TOLD = 0.01
"""Share of an update that may be lost to rounding unsaid."""


class Written(NamedTuple):
    """What a step of vLLM brought for a request: new tokens, the logit of each, and whether it has ended. predictions:
    of one that was read, the argmax after each position that was asked for, but the last."""

    tokens: Sequence[int]
    logits: Sequence[float]
    ended: bool
    predictions: Sequence[int]


class Vllm:
    """vLLM, started when it is first needed. `change`: what is put on."""

    name = "vllm"
    own_streams = False
    apart = True

    def __init__(self, options: EngineOptions, model: ModelOptions, network: Any):
        """network: the model as it is loaded here, which stays as it is.

        Raises:
            InputError: cca could not give vLLM an update of this model.
        """
        self.options, self.model, self.network = options, model, network
        self.folder = source_folder(model.path)
        self.files = weight_files(self.folder)
        self.stored = stored_weights(network, self.files, model.path)
        self.change: Delta | None = None
        self.process: Process | None = None
        self.rank = _ROOM if options.updates == "lora" else 0
        self.context, self.seats, self.warned = 0, _SEATS, False
        self.numbers = itertools.count()
        self._forget()

    @property
    def version(self) -> str:
        return installed(python_of(self.options))

    # ---- the engine ----

    def write(
        self,
        rows: Iterable[Row],
        *,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        if self.process is None:
            self.seats = max(slots, _SEATS)
        _Writing(self, slots, end_tokens, idle, watch or Watch(lambda _: None)).run(rows)

    def read(self, texts: Sequence[Text], progress: Callable[[int], None] | None = None) -> None:
        """Only those of which predictions are wanted: vLLM keeps what a row begins with by itself."""
        waiting = {self._asked_for(text): text for text in texts if text.predict_from is not None}
        others: dict[str, Written] = {}
        while waiting:
            for request, written in self.step(arrived=False).items():
                if (text := waiting.pop(request, None)) is None:
                    others[request] = _joined(others.get(request), written)
                    continue
                check_finite(torch.tensor(written.logits), "the logits after a prompt are", self.network)
                # after a text as long as the context nothing can come, and vLLM does not take it whole
                beyond = [_NOTHING] * (len(text.ids) == self.context)
                text.predictions = [*written.predictions, *written.tokens, *beyond][-len(text.wanted) :]
                if progress:
                    progress(len(text.ids))
        for request, written in others.items():
            self.arrived[request] = _joined(self.arrived.get(request), written)

    def _asked_for(self, text: Text) -> str:
        self.check_room(len(text.ids))
        return self.ask(text.ids[: self.context - 1], 1, read_from=text.predict_from)

    def check_room(self, longest: int) -> None:
        """See that vLLM can hold a text of so many tokens.

        Raises:
            InputError: it cannot.
        """
        self.running()
        if longest > self.context:
            raise InputError(
                f"a text may have {longest} tokens, and vLLM has room for {self.context}: the context of the model, or "
                "what its share of the memory holds; raise engine.memory_share, or lower the limit of tokens"
            )

    def portions(self, texts: Iterable[Text]) -> Iterator[list[Text]]:
        """As many as have room in a step: vLLM itself parts and joins what it reads."""
        left = iter(texts)
        while group := list(itertools.islice(left, self.seats)):
            yield group

    def ahead(self, free: int, slots: int) -> int:
        del slots
        return free

    @contextmanager
    def changed(self, intervention: Intervention) -> Iterator[None]:
        if not isinstance(intervention, Delta):
            raise InputError(
                f"vLLM takes changes of weight rows, and a {type(intervention).__name__} is none; set "
                "engine.name=transformers"
            )
        intervention.check_fits(self.network)
        before = self.change
        try:
            self._put(before.plus(intervention) if before else intervention)
            yield
        finally:
            self._put(before)

    def close(self) -> None:
        if self.process:
            self.process.end()
        self._forget()

    # ---- its process ----

    def running(self) -> Process:
        """The process, started where it is not at work.

        Raises:
            InputError: vLLM does not take the model, or there is no room for it.
        """
        if self.process is None:
            spec = {
                "model": str(self.folder),
                "files": [str(file) for file in self.files],
                "dtype": str(self.network.dtype).removeprefix("torch."),
                "trust_remote_code": self.model.trust_remote_code,
                "tensor_parallel": self.options.tensor_parallel,
                "memory_share": self.options.memory_share,
                "seats": self.seats,
                "rank": self.rank,
            }
            process = Process("vLLM", python_of(self.options), _SCRIPT, self._environment())
            try:
                self.context = process.ask(spec)["context"]
            except Refused as error:
                process.end()
                remedy = "engine.updates=weights" if self.rank else "engine.name=transformers"
                raise InputError(
                    f"vLLM does not take {self.model.path}{' with adapters' * bool(self.rank)}: {error}; set {remedy}, "
                    "unless it is about memory (engine.memory_share, engine.tensor_parallel)"
                ) from error
            self.process = process
            if self.change:
                self._give()
        return self.process

    def _environment(self) -> dict[str, str]:
        found = dict(os.environ)
        if self.options.python:
            found.pop("PYTHONPATH", None)  # it is of this interpreter's packages
        if self.options.tensor_parallel == 1 and self.network.device.index:
            seen = found.get("CUDA_VISIBLE_DEVICES", "").split(",")
            number = self.network.device.index
            found["CUDA_VISIBLE_DEVICES"] = seen[number] if number < len(seen) else str(number)
        return found

    def _forget(self) -> None:
        """There is no process, and nothing that it could still answer."""
        self.process = None
        self.added: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.arrived: dict[str, Written] = {}

    def _tell(self, message: dict[str, Any]) -> dict[str, Any]:
        """The process's answer."""
        process = self.running()
        message["abort"], self.aborted = self.aborted, []
        try:
            return process.ask(message)
        except Refused as error:
            self.close()
            raise InputError(f"vLLM: {error}; set engine.name=transformers if that cannot be mended") from error
        except BaseException:  # it has ended
            self._forget()
            raise

    def ask(
        self,
        ids: Sequence[int],
        tokens: int,
        *,
        ends: Iterable[int] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int | None = None,
        read_from: int | None = None,
    ) -> str:
        """Have at most `tokens` be written after `ids`, from the next step on; the request's number."""
        number = str(next(self.numbers))
        self.added.append(
            {
                "id": number,
                "ids": list(ids),
                "tokens": tokens,
                "ends": sorted(ends),
                "temperature": temperature,
                "top_k": top_k,
                "seed": seed,
                "read_from": read_from,
            }
        )
        return number

    def abort(self, requests: Iterable[str]) -> None:
        """Nobody waits for them any more."""
        if self.process:
            self.aborted += requests

    def step(self, arrived: bool = True) -> dict[str, Written]:
        """What is written by now. arrived: also what came while a text was read."""
        added, self.added = self.added, []
        found, self.arrived = (self.arrived, {}) if arrived else ({}, self.arrived)
        for one in self._tell({"add": added})["new"]:
            written = Written(one["tokens"], one["logits"], one["ended"], one.get("predictions", ()))
            found[one["id"]] = _joined(found.get(one["id"]), written)
        return found

    # ---- changes ----

    def _put(self, change: Delta | None) -> None:
        self.change = change if change and change.weights else None
        if self.options.updates == "lora" and self.change and (rank := rank_of(self.change)) > self.rank:
            self.close()  # the room for adapters is made at the start
            self.rank = rank
        if self.process:
            self._give()

    def _give(self) -> None:
        """Have the process work with `change`."""
        if not self.change:
            self._tell({"adapter": None} if self.options.updates == "lora" else {"load": None})
            return
        with tempfile.TemporaryDirectory(prefix="cca-vllm-") as folder:
            if self.options.updates == "lora":
                save_adapter(self.network, self.change, Path(folder), self.model.path)
                self._tell({"adapter": folder})
                return
            file = Path(folder) / "changed.safetensors"
            rounding = save_changed(self.network, self.stored, self.change, file)
            if rounding.error > _TOLD and not self.warned:
                self.warned = True
                print(
                    f"warning: {rounding.unchanged:.1%} of the update's parameters are lost where vLLM rounds its "
                    f"weights to {str(self.network.dtype).removeprefix('torch.')} (error {rounding.error:.1%} of its "
                    "size); engine.updates=lora keeps it apart from them",
                    file=sys.stderr,
                    flush=True,
                )
            self._tell({"load": str(file)})


def _joined(first: Written | None, then: Written) -> Written:
    if first is None:
        return then
    return Written([*first.tokens, *then.tokens], [*first.logits, *then.logits], then.ended, then.predictions)


class _Writing:
    """The queue, and the rows at work by the number of their request."""

    def __init__(
        self,
        engine: Vllm,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None,
        watch: Watch,
    ):
        self.engine, self.size, self.end_tokens = engine, slots, end_tokens
        self.idle, self.watch = idle, watch
        self.queue = Queue()
        self.requests: dict[str, Row] = {}
        self.at_work = watch.at_work = list[Row]()
        self.begun, self.fresh = set[Text](), 0

    def run(self, rows: Iterable[Row]) -> None:
        self.queue.add(rows)
        try:
            self._fill()
            while self.at_work:
                self._pass()
                self._fill()
        finally:
            self.engine.abort(self.requests)

    def _fill(self) -> None:
        """Let the next rows have the free slots."""
        while free := self.size - len(self.at_work):
            if row := self.queue.next():
                self._begin(row)
                continue
            more = list(self.idle(free)) if self.idle else []
            if not more:
                return
            self.queue.add(more)

    def _begin(self, row: Row) -> None:
        text, row.text = row.text, None
        assert text is not None, "a row is written once"
        ids = list(text.ids[: row.length])
        if row.first is not None:
            row.tokens.append(row.first)
            if row.ended(self.end_tokens):
                self._told(row)
                return
        if row.temperature > HOTTEST_OF_VLLM:
            raise InputError(
                f"vLLM samples at temperatures up to {HOTTEST_OF_VLLM:g}, and {row.temperature:g} is asked for; lower "
                "it, or set engine.name=transformers"
            )
        self.engine.check_room(len(ids) + row.limit)
        if text not in self.begun:
            self.begun.add(text)
            self.fresh += text.own_length()
        request = self.engine.ask(
            [*ids, *row.tokens],
            row.limit - len(row.tokens),
            ends=self.end_tokens,
            temperature=row.temperature,
            top_k=row.top_k,
            seed=None if row.temperature == 0 else _seed(row),
        )
        self.requests[request] = row
        self.at_work.append(row)

    def _pass(self) -> None:
        count, self.fresh = self.fresh, 0
        ended: list[Row] = []
        for request, written in self.engine.step().items():
            row = self.requests.get(request)
            if row is None:  # of a row that was dropped
                continue
            count += self._append(row, written)
            if row.ended(self.end_tokens):
                del self.requests[request]
                self.engine.abort([] if written.ended else [request])
                ended.append(row)
            assert not written.ended or request not in self.requests, "vLLM ends no row by itself"
        for row in ended:
            self.at_work.remove(row)
            if not row.dropped:
                self._told(row)
        for request in [request for request, row in self.requests.items() if row.dropped]:
            self.at_work.remove(self.requests.pop(request))
            self.engine.abort([request])
        self.watch.passed(count)  # when it is known what has ended

    def _append(self, row: Row, written: Written) -> int:
        """Give a row its new tokens, up to where it ends; how many they are."""
        before = len(row.tokens)
        for token, logit in zip(written.tokens, written.logits, strict=True):
            if not math.isfinite(logit):
                what = f"the logits after {len(row.tokens)} new tokens are"
                check_finite(torch.tensor(logit), what, self.engine.network)
            row.tokens.append(token)
            if row.ended(self.end_tokens):
                break
        return len(row.tokens) - before

    def _told(self, row: Row) -> None:
        self.watch.row_ended(row)
        if row.then:
            self.queue.add(row.then(row.tokens))


def _seed(row: Row) -> int:
    """Of the random numbers that vLLM draws for a row: as its own are, it is of nothing else."""
    return 0 if row.uniforms is None else int(row.uniforms[0] * 2**53)
