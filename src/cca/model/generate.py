"""Continue sequences to their end, many at once: greedily, or by samples.

Rows wait in one queue. Whenever one ends, the next takes its slot, so that every pass of the model has as many rows
as there are. What a row becomes does not depend on the rows beside it, on their number or their order: on a CPU it is
the same to the last bit (with the same number of threads, and as far as the library of matrix products grants it:
docs/method.md says where). For its keys and values stand in columns of their own positions, its attention looks at as
many columns as its own length asks for, and what a matrix product gives for one row does not depend on how many rows
there are, which are a multiple of eight.
"""

import heapq
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cca.errors import TooLargeError
from cca.model.attention import Pattern, attention_through
from cca.model.cache import SlotGroup, SlotLayer, SlotPlaces, cache_argument
from cca.model.memory import attempted, release
from cca.model.numerics import check_finite
from cca.model.read import Text, read, texts, tokens_of_a_pass
from cca.model.sampling import argmax, pick
from cca.model.slots import attention, rows_that_fit

_ROWS, _COLUMNS = 8, 128
"""Rows of a step, and columns that a row's attention looks at, are multiples of these: with another number, products
and sums are rounded in another order. Rows that look at as many are in slots side by side."""


@dataclass(eq=False)
class Row:
    """A sequence that is continued.

    text: what it continues, which is read once for all rows that begin in it; None once the row has begun.
    limit: new tokens at most, the first included. order: the lowest goes first; the first number is that of the unit
    that it is written for. length: how many of the tokens of `text` it begins with, by default all. first: its first
    new token, where that is known. temperature: 0 for the argmax. top_k: of how many of the likeliest tokens one is
    drawn, 0 for all. uniforms: (limit,) its random stream. stop: whether it ends with its new tokens, besides at an end
    token. then: told of its new tokens when it has ended, an end token included; rows that it gives are written too.
    tokens: its new tokens so far. after: a start that it shares with other rows, of which its slot holds nothing.
    again: what it continues, unread, should it have to begin anew.
    """

    text: Text | None
    limit: int
    order: tuple[int, ...] = (0,)
    length: int | None = None
    first: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    uniforms: np.ndarray | None = None
    stop: Callable[[Sequence[int]], bool] | None = None
    then: Callable[[list[int]], Iterable["Row"]] | None = None
    tokens: list[int] = field(default_factory=list)
    after: Text | None = None
    again: Text | None = None
    dropped: bool = False

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self.dropped = True

    def ended(self, end_tokens: frozenset[int]) -> bool:
        new = self.tokens
        return len(new) >= self.limit or new[-1] in end_tokens or bool(self.stop and self.stop(new))


class Queue:
    """Rows that wait: the lowest order goes first, and of the same order who came first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[tuple[int, ...], int, Row]] = []
        self.numbers = itertools.count()

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            heapq.heappush(self.waiting, (row.order, next(self.numbers), row))

    def next(self) -> Row | None:
        """The next row that is still wanted; it waits no more."""
        while self.waiting:
            row = heapq.heappop(self.waiting)[2]
            if not row.dropped:
                return row
        return None

    def first(self, count: int) -> list[Row]:
        """The next `count`, which wait on."""
        return [row for _, _, row in heapq.nsmallest(count, self.waiting) if not row.dropped]


@dataclass
class Watch:
    """What is seen of a writing while it goes on. Units are what rows are written for, such as a problem.

    passed: told after each pass of the model how many tokens it read or wrote. at_work: the rows that are being
    written. ended: how many rows have ended of each unit that is not over. lengths: how many of all had how many
    tokens. sizes: how many units had how many rows.
    """

    passed: Callable[[int], None]
    at_work: list[Row] = field(default_factory=list)
    ended: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)

    def row_ended(self, row: Row) -> None:
        self.ended[row.order[0]] += 1
        self.lengths[len(row.tokens)] += 1

    def over(self, unit: int) -> None:
        """No more rows are wanted for `unit`."""
        self.sizes[self.ended.pop(unit, 0)] += 1


@torch.no_grad()
def write(
    model: PreTrainedModel,
    rows: Iterable[Row],
    *,
    slots: int,
    end_tokens: frozenset[int],
    idle: Callable[[int], Iterable[Row]] | None = None,
    watch: Watch | None = None,
) -> None:
    """Continue `rows`, and all that come of them, until an end token, their stop rule or their limit.

    Args:
        slots: rows that are written at once, at most; fewer where memory does not allow it. Where it runs out, rows at
            work begin anew, half as many at once, and those that have ended stay.
        end_tokens: ids that end a row.
        idle: asked for at most so many more rows where slots are free and nothing waits.
        watch: see `Watch`.

    Raises:
        FloatingPointError: a chosen token's logit is not finite.
        TooLargeError: there is too little memory for the fewest rows.
    """
    _Writing(model, slots, end_tokens, idle, watch or Watch(lambda _: None)).run(rows)


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_tokens: frozenset[int],
    stop: Callable[[Sequence[int]], bool] | None = None,
    slots: int = 128,
) -> list[list[int]]:
    """Greedy continuations of `prompts`. Arguments as in `write`."""
    rows = [Row(text, max_new_tokens, order=(i,), stop=stop) for i, text in enumerate(texts(prompts))]
    write(model, rows, slots=slots, end_tokens=end_tokens)
    return [row.tokens for row in rows]


def _multiple(number: int, of: int) -> int:
    """The next multiple, or `number` itself where it is one."""
    return -(-number // of) * of


def _length(row: Row, text: Text) -> int:
    """How many of the tokens of `text` the row begins with."""
    return len(text.ids) if row.length is None else row.length


class _Writing:
    """The queue and the slots. Rows at work are in the first slots; in a step those that look at more columns first."""

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None,
        watch: Watch,
    ):
        self.model, self.end_tokens = model, end_tokens
        self.on_a_cpu = model.device.type == "cpu"
        self.idle, self.watch = idle, watch
        self.queue = Queue()
        self.at_work: list[Row] = []
        watch.at_work = self.at_work
        self.starts: dict[Text | None, int] = {}
        self._open(slots)

    def _open(self, slots: int) -> None:
        """So many free slots, for which there is no memory yet; that of others is let go."""
        self.size = slots
        # where rows cost no time, as on a GPU, their number stays what it is, for there rounding depends on it
        self.most = self._rows(slots)
        self.places = SlotPlaces(self.most)
        self.cache = DynamicCache()

    def _rows(self, slots: int) -> int:
        """How many rows there is memory for where so many are written."""
        return _multiple(slots, _ROWS) if self.on_a_cpu or slots > _ROWS else slots

    def run(self, rows: Iterable[Row]) -> None:
        self.queue.add(rows)
        self._fill()
        while self.at_work:
            with attention_through(
                self.model, partial(attention, self.places), Pattern.of
            ):  # not while sequences are read
                self._pass()
                while self.at_work and (len(self.at_work) == self.size or not (self.queue or self.idle)):
                    self._pass()
            self._fill()

    def _pass(self) -> None:
        count = len(self.at_work)
        if not attempted(self._step):
            self._halve()
            return
        self._end()
        self.watch.passed(count)  # when it is known what has ended

    def _told(self, row: Row) -> None:
        self.watch.row_ended(row)
        if row.then:
            self.queue.add(row.then(row.tokens))

    # ---- slots ----

    def _fill(self) -> None:
        """Let the next rows have the free slots."""
        while free := self.size - len(self.at_work):
            fresh: list[Row] = []
            while len(fresh) < free and (row := self.queue.next()):
                fresh.append(row)
            if not fresh:
                more = list(self.idle(free)) if self.idle else []
                if not more:
                    return
                self.queue.add(more)
                continue
            if not attempted(partial(self._read, fresh)):
                self._halve(fresh)
                continue
            if not self.layers:
                self._find_slots(fresh)
            while fresh and len(self.at_work) < self.size:
                if not fresh[0].dropped and not self._begin(fresh[0]):  # one that ended at once may have dropped it
                    self._halve(fresh)
                    break
                fresh.pop(0)
            else:
                self.queue.add(fresh)

    def _read(self, fresh: Sequence[Row]) -> None:
        """Read what `fresh` continue and, where a pass has room, what the next ones do."""
        unread = {id(t): t for row in fresh if (t := row.text) and not t.is_read}
        if not unread:
            return
        room = tokens_of_a_pass(self.model) - sum(t.own_length() for t in unread.values())
        for row in self.queue.first(self.size) if room > 0 else ():
            if (text := row.text) and not text.is_read and id(text) not in unread:
                unread[id(text)] = text
                room -= text.own_length()
            if room <= 0:
                break
        read(self.model, list(unread.values()), self.watch.passed)

    def _begin(self, row: Row) -> bool:
        """The first token of a row, which takes a slot unless it ends with it; False where there is no memory."""
        text, row.text = row.text, None
        assert text is not None and text.last is not None, "a row is written once"
        row.again = text.unread()
        if row.first is None:
            uniform = torch.zeros(1) if row.uniforms is None else torch.from_numpy(row.uniforms[:1])
            row.first = int(pick(text.last[None], row.temperature, uniform, row.top_k))
        row.tokens.append(row.first)
        if row.ended(self.end_tokens):
            self._told(row)
            return True
        slot, row.after = len(self.at_work), self._after(row, text)
        self.starts.setdefault(row.after, len(self.starts))
        begun = len(row.after.ids) if row.after else 0
        own = _length(row, text) - begun
        if not attempted(partial(self._make_room, text, own + row.limit)):
            return False
        for number, layer in enumerate(self.layers):
            text.copy_to(number, layer.key_buffer[slot, :, :own], layer.value_buffer[slot, :, :own], begun)
        self.places.columns[slot] = own
        self.at_work.append(row)
        return True

    def _after(self, row: Row, text: Text) -> Text | None:
        """What stands in no slot of what the row continues."""
        return text.start if self.on_a_cpu and text.start and _length(row, text) >= len(text.start.ids) else None

    def _find_slots(self, fresh: Sequence[Row]) -> None:
        """Fewer slots where rows like `fresh` would not fit in what is free."""
        first, columns = fresh[0].text, 0
        for row in fresh:
            if row.text:
                after = self._after(row, row.text)
                columns = max(columns, _length(row, row.text) + row.limit - (len(after.ids) if after else 0))
        assert first
        fit = rows_that_fit(self.model, first, _multiple(columns, _COLUMNS))
        if fit is not None and fit < self.size:
            least = _ROWS if self.on_a_cpu else 1
            if (slots := max(least, fit // least * least)) < self.size:
                self._open(slots)

    def _halve(self, waiting: Sequence[Row] = ()) -> None:
        """Go on with half the slots. Rows at work and those of `waiting` begin anew, so that they become the same."""
        before, slots = self.size, self.size // 2
        while slots and self._rows(slots) == self.most:  # would take as much
            slots //= 2
        if not slots:
            raise TooLargeError(
                f"there is too little memory to write {self.most} sequences at once, the fewest; lower max_new_tokens, "
                "shorten prompts (prompt.shots), or set model.dtype to bfloat16 or model.device_map to auto"
            )
        rows = [*self.at_work, *waiting]
        unread = {(text.ids, text.start): text for row in rows if (text := row.again)}
        for row in rows:
            if row.again:
                row.text, row.again, row.after = unread[row.again.ids, row.again.start], None, None
                row.tokens.clear()
        self.at_work.clear()
        self._open(slots)
        release()
        self.queue.add(rows)
        warnings.warn(
            f"out of memory: from here on {slots} sequences are written at once, not {before}; what was finished is "
            f"kept. Lower the batch of this stage (traces.batch, evaluation.batch) to {slots}",
            UserWarning,
            stacklevel=2,
        )

    @property
    def layers(self) -> list[SlotLayer]:
        return self.cache.layers  # pyright: ignore[reportReturnType]

    def _make_room(self, like: Text, columns: int) -> None:
        """See that the slots have `columns`."""
        columns = _multiple(columns, _COLUMNS)
        if not self.cache.layers:
            for number, sides in enumerate(zip(like.whole.keys, like.whole.values, strict=True)):
                buffers = (side.new_zeros(self.most, side.shape[0], columns, side.shape[2]) for side in sides)
                self.cache.layers.append(SlotLayer(self.places, number, *buffers))
        elif (have := self.layers[0].key_buffer.shape[2]) < columns:
            for layer in self.layers:
                layer.grow(columns - have)

    def _end(self) -> None:
        """Let go of the rows that have ended or are not wanted; the last ones take their slots."""
        for slot in reversed(range(len(self.at_work))):
            row = self.at_work[slot]
            if row.dropped or row.ended(self.end_tokens):
                last = len(self.at_work) - 1
                if slot < last:
                    self._swap(slot, last)
                self.at_work.pop()
                self.places.columns[last] = 0
                if not row.dropped:
                    self._told(row)

    def _swap(self, one: int, other: int) -> None:
        columns, rows = self.places.columns, self.at_work
        for layer in self.layers:
            layer.swap(one, other, int(columns[[one, other]].max()))
        columns[[one, other]] = columns[[other, one]]
        rows[one], rows[other] = rows[other], rows[one]

    # ---- a step ----

    def _groups(self) -> list[SlotGroup]:
        """Slots side by side whose rows look at as many columns; on a CPU, where that is by their own lengths."""
        count = len(self.at_work)
        columns = [_multiple(column + 1, _COLUMNS) for column in self.places.columns[:count].tolist()]
        if not self.on_a_cpu:
            return [SlotGroup(slice(0, self.most), max(columns))]
        looked = [(self.starts[row.after], n) for row, n in zip(self.at_work, columns, strict=True)]
        wanted = sorted(looked, reverse=True)
        for slot, one in enumerate(wanted):
            if looked[slot] != one:
                # of those that belong here, the one that stands where this one belongs, if there is one
                found = [n for n in range(slot + 1, count) if looked[n] == one != wanted[n]]
                other = next((n for n in found if wanted[n] == looked[slot]), found[0])
                self._swap(slot, other)
                looked[slot], looked[other] = looked[other], looked[slot]
        ends = [n for n in range(1, count) if wanted[n] != wanted[n - 1]]
        firsts, ends = [0, *ends], [*ends, _multiple(count, _ROWS)]
        return [self._group(slice(first, end), wanted[first][1]) for first, end in zip(firsts, ends, strict=True)]

    def _group(self, slots: slice, columns: int) -> SlotGroup:
        if not (start := self.at_work[slots.start].after):
            return SlotGroup(slots, columns)
        return SlotGroup(slots, columns, len(start.ids), list(zip(start.keys, start.values, strict=True)))

    def _step(self) -> None:
        """One pass: a token for each row at work."""
        self.places.step(self._groups())
        rows, device, count = self.at_work, self.model.device, self.places.count
        columns = self.places.columns[:count]
        last = torch.tensor([row.tokens[-1] for row in rows] + [0] * (count - len(rows)), device=device)
        logits = self.model(
            input_ids=last[:, None],
            position_ids=self.places.on(device)[2][:, None],
            **cache_argument(self.model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits[: len(rows), -1]
        chosen = self._chosen(logits)
        best = logits.gather(1, chosen[:, None])[:, 0]
        new = len(rows[int(best.isfinite().int().argmin())].tokens)
        check_finite(best, f"the logits after {new} new tokens are", self.model)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.tokens.append(token)
        columns[: len(rows)] += 1

    def _chosen(self, logits: Tensor) -> Tensor:
        """The next token of each row."""
        chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        rows: dict[tuple[float, int], list[int]] = {}
        for number, row in enumerate(self.at_work):
            rows.setdefault((row.temperature, row.top_k), []).append(number)
        for (temperature, top_k), numbers in rows.items():
            at = torch.tensor(numbers, device=logits.device)
            drawn = [
                r.uniforms[len(r.tokens)] for r in map(self.at_work.__getitem__, numbers) if r.uniforms is not None
            ]
            part = logits if len(rows) == 1 else logits[at]
            chosen[at] = argmax(part) if temperature == 0 else pick(part, temperature, torch.tensor(drawn), top_k)
        return chosen
