"""What every engine must do: one list of checks, each of an engine against the plain method.

A new engine needs an entry in `ENGINES` of `tests/test_engines.py`, and no check of its own. Copies by Ray are checked
in `tests/test_ray.py`, whose Ray they share: to start one takes long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import reference
import torch

from cca.model.components import Components, find_components
from cca.model.delta import Delta
from cca.model.engine import Engine, Transformers
from cca.model.generate import Row, Watch
from cca.model.read import Text, texts
from cca.model.sampling import stream
from cca.records import Problem

LIMIT = 16
CHECKS: list[Callable[["Subject"], None]] = []


def subject_of(engine: Engine, network: Any, prompter: Any, problems: Sequence[Problem], **how: Any) -> "Subject":
    """`engine`, which writes with the model of `network`, and what it is asked."""
    prompts = [(7, 8, 9), prompter.prompt(problems[0]), tuple(range(5, 40)), prompter.prompt(problems[1])]
    # of several blocks of what vLLM keeps of a text, which are of 128 tokens on a CPU
    prompts.append(tuple(token for problem in problems for token in prompter.prompt(problem))[:400])
    return Subject(engine, network, find_components(network), prompts, prompter.end_tokens, **how)


def check(function: Callable[["Subject"], None]) -> Callable[["Subject"], None]:
    CHECKS.append(function)
    return function


@dataclass
class Subject:
    """An engine, a network of the model that it writes with, and prompts of unlike lengths.

    grows: whether the tokens of a row can be seen while it is written, and not only once it has ended.
    """

    engine: Engine
    network: Any
    parts: Components
    prompts: list[tuple[int, ...]]
    ends: frozenset[int]
    grows: bool = True
    known: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)

    def plain(self, prompt: Sequence[int], limit: int = LIMIT, ends: frozenset[int] | None = None) -> list[int]:
        """By the plain method, of the network as it is loaded."""
        key = (*prompt, limit, ends)
        if key not in self.known:
            ends = self.ends if ends is None else ends
            self.known[key] = reference.greedy(self.network, prompt, limit, ends)
        return self.known[key]

    @cached_property
    def greedy(self) -> list[list[int]]:
        return [self.plain(prompt) for prompt in self.prompts]

    def rows(self, **how: Any) -> list[Row]:
        return [Row(text, LIMIT, (n,), **how) for n, text in enumerate(texts(self.prompts))]

    def write(self, rows: Sequence[Row], slots: int = 8, ends: frozenset[int] | None = None, **how: Any) -> None:
        self.engine.write(rows, slots=slots, end_tokens=self.ends if ends is None else ends, **how)

    def written(self, slots: int = 8) -> list[list[int]]:
        """Greedily."""
        rows = self.rows()
        self.write(rows, slots)
        return [row.tokens for row in rows]

    def sampled(self, numbers: Sequence[int], slots: int = 8, top_k: int = 0) -> list[list[int]]:
        """Samples of the first prompt, one for each of `numbers`."""
        prompt = self.prompts[0]
        rows = [Row(Text(prompt), LIMIT, (n,), temperature=1.5, top_k=top_k, uniforms=uniforms(n)) for n in numbers]
        self.write(rows, slots)
        return [row.tokens for row in rows]

    def delta(self, seed: int) -> Delta:
        """A change of some rows, large enough to be seen."""
        generator = torch.Generator().manual_seed(seed)
        some = torch.rand(self.parts.size, generator=generator) < 0.05
        delta = Delta.zeros(self.network, self.parts.rows(some))
        for rows in delta.weights.values():
            rows.values.copy_(torch.randn(rows.values.shape, generator=generator) * 0.3)
        return delta


def uniforms(number: int) -> np.ndarray:
    return stream(3, "row", number).random(LIMIT)


@check
def greedy_rows_equal_the_plain_method_whatever_their_lengths(of: Subject) -> None:
    assert of.written() == of.greedy


@check
def neither_slots_nor_neighbours_nor_their_order_change_a_row(of: Subject) -> None:
    assert of.written(slots=1) == of.written(slots=3) == of.greedy
    rows = of.rows()
    of.write(rows[::-1])
    assert [row.tokens for row in rows] == of.greedy


@check
def the_lowest_order_goes_first(of: Subject) -> None:
    ended: list[int] = []
    rows = of.rows()
    for number, row in enumerate(rows):
        row.order, row.then = (-number,), lambda _, number=number: ended.append(number) or ()
    of.write(rows, slots=1)
    assert ended == list(range(len(rows)))[::-1]


@check
def a_row_ends_at_its_limit_and_with_an_end_token(of: Subject) -> None:
    free = [of.plain(prompt, LIMIT, frozenset()) for prompt in of.prompts]
    ends = frozenset({free[0][2], free[2][5]})
    rows = [Row(Text(p), 3 + n, (n,)) for n, p in enumerate(of.prompts)]
    of.write(rows, ends=ends)
    assert [row.tokens for row in rows] == [of.plain(p, 3 + n, ends) for n, p in enumerate(of.prompts)]
    assert len(rows[0].tokens) == 3


@check
def a_stop_rule_sees_every_token_and_cuts_exactly_there(of: Subject) -> None:
    wanted = max(of.greedy, key=len)
    text = Text(of.prompts[of.greedy.index(wanted)])
    # a rule may be asked in another process, so what it saw shows in where its row ends
    rows = [Row(text, LIMIT, (n,), stop=lambda tokens, n=n: list(tokens) == wanted[:n]) for n in range(1, 6)]
    of.write(rows)
    assert [row.tokens for row in rows] == [wanted[:n] for n in range(1, 6)]


@check
def a_row_goes_on_from_the_middle_of_a_text_after_a_given_token(of: Subject) -> None:
    wanted = max(of.greedy, key=len)
    prompt, other = of.prompts[of.greedy.index(wanted)], of.greedy[0][0]
    text = Text((*prompt, *wanted), predict_from=len(prompt) - 1)
    of.engine.read([text])
    rows = [
        Row(text, LIMIT, (0,), length=len(prompt) + 2, first=other),
        Row(text, LIMIT, (1,), length=len(prompt) + 5, first=wanted[5]),
        Row(text, 1, (2,), length=len(prompt) + 1, first=other),
        Row(text, LIMIT, (3,), length=len(prompt) + 1, first=min(of.ends)),
    ]
    of.write(rows)
    assert rows[0].tokens == [other, *of.plain((*prompt, *wanted[:2], other), LIMIT - 1)]
    assert rows[1].tokens[: len(wanted) - 5] == wanted[5:]
    assert rows[2].tokens == [other]
    assert rows[3].tokens == [min(of.ends)]


@check
def what_comes_of_a_row_is_written_too(of: Subject) -> None:
    later: list[Row] = []

    def then(tokens: list[int]) -> list[Row]:
        assert tokens == of.greedy[0]
        later.append(Row(Text(of.prompts[1]), LIMIT, (9,)))
        return later[-1:]

    of.write([Row(Text(of.prompts[0]), LIMIT, then=then)])
    assert [row.tokens for row in later] == [of.greedy[1]]


@check
def free_slots_ask_for_more_rows_and_never_for_more_than_are_free(of: Subject) -> None:
    left, asked = of.rows(), list[int]()

    def idle(free: int) -> list[Row]:
        asked.append(free)
        return [left.pop(0)] if left else []

    rows = list(left)
    of.write((), slots=2, idle=idle)
    assert [row.tokens for row in rows] == of.greedy
    assert asked[0] == 2
    assert set(asked) <= {1, 2}


@check
def a_text_may_be_read_while_rows_are_written(of: Subject) -> None:
    text = Text((*of.prompts[1], *of.greedy[1]), predict_from=len(of.prompts[1]) - 1)
    counts: list[int] = []

    def idle(_: int) -> list[Row]:
        if not text.predictions:
            of.engine.read([text], counts.append)
        return []

    rows = of.rows()
    of.write(rows, idle=idle)
    assert [row.tokens for row in rows] == of.greedy
    assert text.predictions[:-1] == of.greedy[1]
    assert sum(counts) == len(text.ids)


@check
def a_dropped_row_is_let_go_whether_it_was_begun_or_not(of: Subject) -> None:
    told: list[int] = []
    rows = [Row(Text(p), LIMIT, (n,)) for n, (p, g) in enumerate(zip(of.prompts, of.greedy, strict=True)) if len(g) > 4]
    for number, row in enumerate(rows):
        row.then = lambda _, number=number: told.append(number) or ()
    rows[-1].drop()

    def then(_: list[int]) -> tuple[Row, ...]:
        for row in rows:
            row.drop()
        return ()

    first = Row(Text(of.prompts[0]), 2, (-1,), then=then)
    of.write([*rows, first])
    assert not told
    assert first.tokens == of.greedy[0][:2]
    assert len(rows[0].tokens) < LIMIT
    assert rows[0].tokens or not of.grows
    assert not rows[-1].tokens
    assert of.written() == of.greedy, "what was let go leaves nothing behind"


@check
def a_sample_depends_on_its_own_stream_alone(of: Subject) -> None:
    several = of.sampled([0, 1, 2, 3, 4, 5])
    assert of.sampled([0, 1, 2, 3, 4, 5]) == several
    assert of.sampled([4]) + of.sampled([2], slots=1) == [several[4], several[2]]
    assert len({tuple(tokens) for tokens in several}) > 2
    if of.engine.own_streams:
        default = Subject(Transformers(of.network), of.network, of.parts, of.prompts, of.ends)
        assert default.sampled([0, 1, 2, 3, 4, 5]) == several


@check
def of_the_likeliest_token_alone_a_sample_is_the_greedy_text(of: Subject) -> None:
    assert of.sampled([0, 1], top_k=1) == [of.greedy[0]] * 2


@check
def reading_gives_the_argmax_after_every_token_that_is_asked_for(of: Subject) -> None:
    found = [Text((*p, *g), predict_from=n) for n, (p, g) in enumerate(zip(of.prompts, of.greedy, strict=True))]
    of.engine.read(found)
    for text in found:
        logits = of.network(input_ids=torch.tensor([text.ids])).logits[0]
        assert text.predictions == logits.argmax(-1)[text.predict_from :].tolist()


@check
def portions_are_all_texts_in_their_order(of: Subject) -> None:
    several = [Text(prompt) for prompt in of.prompts]
    assert [text for group in of.engine.portions(several) for text in group] == several
    assert all(0 <= of.engine.ahead(free, 4) <= free for free in (0, 1, 4))


@check
def a_change_is_on_within_its_context_and_leaves_nothing(of: Subject) -> None:
    one, other = of.delta(1), of.delta(2)
    with one.active(of.network):
        of_one = [reference.greedy(of.network, p, LIMIT, of.ends) for p in of.prompts]
    both = one.plus(other)
    with both.active(of.network):
        of_both = [reference.greedy(of.network, p, LIMIT, of.ends) for p in of.prompts]
    assert of.greedy != of_one != of_both
    with of.engine.changed(one):
        assert of.written() == of_one
        with of.engine.changed(other):
            assert of.written() == of_both
        assert of.written() == of_one
        of.engine.close()
        assert of.written() == of_one, "an engine that starts anew has the change on"
    assert of.written() == of.greedy
    with of.engine.changed(Delta({})):
        assert of.written() == of.greedy


@check
def a_watch_sees_what_is_written(of: Subject) -> None:
    passed, most = list[int](), 0

    def passing(tokens: int) -> None:
        nonlocal most
        passed.append(tokens)
        most = max(most, len(watch.at_work))
        assert all(row.tokens for row in watch.at_work) or not of.grows

    watch = Watch(passing)
    of.write(of.rows(), slots=2, watch=watch)
    assert not watch.at_work
    assert 1 <= most <= 2, "what waits is not at work"
    assert dict(watch.ended) == dict.fromkeys(range(len(of.prompts)), 1)
    assert sorted(watch.lengths.elements()) == sorted(map(len, of.greedy))
    assert sum(passed) >= sum(map(len, of.prompts)) - 16 * len(of.prompts)
