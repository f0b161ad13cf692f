"""What writes text: the one interface through which stage 1, validation and evaluation ask for tokens.

Token ids go in, token ids come out. An engine continues rows (`cca.model.generate.Row`) greedily or by samples, each
with its own random stream and stop rule; it reads texts for the model's argmax after each token; and it does so with a
change of the weights where one is put on. The default is transformers, in this process, below; `cca.model.engines` has
those that work elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any, Protocol

from cca.model.generate import Row, Watch, write
from cca.model.intervention import Intervention
from cca.model.read import Text, by_budget, read

_AHEAD = 48
"""Rows of a step on a CPU up to which rows are written ahead of time: with more, each takes the others' time."""


class Engine(Protocol):
    """Writes and reads with one model.

    name: as `EngineOptions` has it. own_streams: whether a sample is drawn by its row's uniform numbers; else it
    depends on them as a seed alone, so that it is reproducible with this engine and another one with the default.
    apart: whether it has a model of its own, so that it has to be told of a change that is on the network here.
    """

    name: str
    own_streams: bool
    apart: bool

    @property
    def version(self) -> str:
        """Of what it writes with."""
        ...

    def write(
        self,
        rows: Iterable[Row],
        *,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Continue `rows`, and all that come of them, to their end. As `cca.model.generate.write`.

        Where copies of an engine write, the tokens of a row are there once it has ended.
        """
        ...

    def read(self, texts: Sequence[Text], progress: Callable[[int], None] | None = None) -> None:
        """Read `texts`, so that their `predictions` are known. progress: told after each pass of its tokens."""
        ...

    def portions(self, texts: Iterable[Text]) -> Iterator[list[Text]]:
        """`texts` in their order, as many together as should be read at once."""
        ...

    def ahead(self, free: int, slots: int) -> int:
        """How many of `free` slots may be filled with rows that may turn out not to be needed. slots: as of `write`."""
        ...

    def changed(self, intervention: Intervention) -> AbstractContextManager[None]:
        """Within the context it works with the changed model. Contexts may be inside one another.

        Raises:
            InputError: it cannot put on such a change.
        """
        ...

    def close(self) -> None:
        """Let go of processes and memory; it starts anew when it is used again."""
        ...


def ahead_on_a_cpu(free: int, slots: int, workers: int = 1) -> int:
    """`Engine.ahead` where rows cost time. workers: that have so many slots each."""
    return max(0, free - workers * max(0, slots - _AHEAD))


class Transformers:
    """The network in this process: the default, exact to the last bit whatever is written together."""

    name = "transformers"
    own_streams = True
    apart = False

    def __init__(self, network: Any):
        """network: a transformers model, opened."""
        self.network = network

    @property
    def version(self) -> str:
        return version(self.name)

    def write(
        self,
        rows: Iterable[Row],
        *,
        slots: int,
        end_tokens: frozenset[int],
        idle: Callable[[int], Iterable[Row]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        write(self.network, rows, slots=slots, end_tokens=end_tokens, idle=idle, watch=watch)

    def read(self, texts: Sequence[Text], progress: Callable[[int], None] | None = None) -> None:
        read(self.network, texts, progress)

    def portions(self, texts: Iterable[Text]) -> Iterator[list[Text]]:
        return by_budget(texts, Text.own_length, self.network)

    def ahead(self, free: int, slots: int) -> int:
        return ahead_on_a_cpu(free, slots) if self.network.device.type == "cpu" else free

    def changed(self, intervention: Intervention) -> AbstractContextManager[None]:
        return intervention.active(self.network)

    def close(self) -> None:
        pass
