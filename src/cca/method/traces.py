"""Stage 1a: for each problem a greedy trace and a sampled trace of opposite correctness (paper section 3.1)."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cca.errors import InputError
from cca.method.options import WAVE, TraceOptions
from cca.model.checks import check_prompts
from cca.model.generate import decode, generate_greedy, pick, stream
from cca.model.open import Model, opened
from cca.model.read import Prefill, prefill
from cca.model.state import frozen
from cca.problems.prompts import Prompter
from cca.records import Problem, Score, Trace, TracePair, check_problems

TRACED = ("train", "validation")
"""Splits whose problems are traced. All others are only ever evaluated."""
CUT_SHARE = 0.02
"""More texts than this that the limit of tokens ended are worth a warning."""


@dataclass(frozen=True)
class Traces:
    """Pairs of traces, with the problems that they answer and how they were drawn."""

    pairs: tuple[TracePair, ...]
    problems: dict[str, Problem] = field(repr=False)
    options: TraceOptions = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TracePair]:
        return iter(self.pairs)

    def __repr__(self) -> str:
        right = sum(pair.greedy.correct for pair in self.pairs) / max(1, len(self.pairs))
        opposite = sum(pair.sampled is not None for pair in self.pairs)
        cut = f", {self.cut:.1%} of the traces cut at {self.options.max_new_tokens} tokens" if self.cut else ""
        return f"Traces({len(self.pairs)} problems, {right:.1%} right, {opposite} with an opposite sample{cut})"

    @property
    def cut(self) -> float:
        """The share of all traces, greedy and sampled, that the limit of tokens ended."""
        return share_cut(trace for pair in self.pairs for trace in pair.by_kind().values())

    @cached_property
    def solved(self) -> frozenset[str]:
        """Templates whose training problems the base model all solves (none where `skip_solved` is off)."""
        outcomes: dict[str, list[bool]] = {}
        for pair in self.pairs if self.options.skip_solved else ():
            if pair.split == "train":
                outcomes.setdefault(pair.template, []).append(pair.greedy.correct)
        return frozenset(t for t, correct in outcomes.items() if all(correct))

    @property
    def usable(self) -> list[TracePair]:
        """The pairs with both traces, of templates that are not solved."""
        return [pair for pair in self.pairs if pair.sampled and pair.template not in self.solved]


def share_cut(written: Iterable[Trace | Score]) -> float:
    """The share of texts that the limit of tokens ended."""
    cut = [one.cut for one in written]
    return sum(cut) / max(1, len(cut))


def cut_off(share: float, limit: int, what: str = "the traces") -> str | None:
    """What to say where the limit of tokens ended a noteworthy share of `what`, or None."""
    if share < CUT_SHARE:
        return None
    return (
        f"{share:.0%} of {what} were cut at traces.max_new_tokens = {limit}, which counts as wrong unless the right "
        "answer came before; raise it"
    )


def trace(
    model: Model,
    problems: Sequence[Problem],
    options: TraceOptions | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> Traces:
    """Trace the training and validation problems among `problems`; test problems are left alone.

    Args:
        model: what is traced.
        problems: of any split.
        options: how traces are drawn; by default `TraceOptions()`.
        seed: of all samples. A trace depends on seed, problem and sample number alone.
        progress: told after each batch how many problems are done, and of how many.
        **changes: fields of `TraceOptions` that differ from `options`.

    Returns:
        A pair of traces for each problem, in the order of their prompts' lengths. A warning says where many were cut.

    Raises:
        InputError: none of the problems is for training or validation, two have one id, or a prompt does not fit the
            model.
    """
    opened(model)
    check_problems(problems)
    options = TraceOptions.of(options, changes)
    traced = [p for p in problems if p.split in TRACED]
    if not traced:
        raise InputError(f"none of the {len(problems)} problems is for training or validation, so nothing is traced")
    prompts = [model.prompter.prompt(p) for p in traced]
    check_prompts(prompts, options.max_new_tokens, model.network.config, model.name)
    pairs: list[TracePair] = []
    with frozen(model.network):
        for chunk in chunks(traced, model.prompter, options.batch):
            pairs += trace_chunk(model.network, model.prompter, chunk, options, seed)
            if progress:
                progress(len(pairs), len(traced))
    found = Traces(tuple(pairs), {p.id: p for p in traced}, options)
    if said := cut_off(found.cut, options.max_new_tokens):
        warnings.warn(said, UserWarning, stacklevel=2)
    return found


def chunks(problems: Sequence[Problem], prompter: Prompter, size: int) -> Iterator[list[Problem]]:
    """Groups of at most `size` problems with prompts of like length.

    Groups depend only on the set of problems, so a resumed run computes exactly the batches that a run in one
    go does, to the last bit.
    """
    ordered = sorted(problems, key=lambda p: (len(prompter.prompt(p)), p.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def waves(samples: int) -> Iterator[range]:
    """Sample numbers in groups of 1, 1, 2, 3, 3 ...: most problems have their opposite after a draw or two."""
    start = 0
    for size in (1, 1, 2):
        yield range(start, min(samples, start + size))
        start += size
    while start < samples:
        yield range(start, min(samples, start + WAVE))
        start += WAVE


def trace_chunk(
    network: PreTrainedModel, prompter: Prompter, problems: Sequence[Problem], options: TraceOptions, seed: int
) -> list[TracePair]:
    """Trace `problems` in one batch: prompts are read once, samples are drawn in waves.

    A problem whose greedy trace is correct is sampled at `temperature_if_correct` until one is wrong, and the other
    way round; it leaves as soon as it has its opposite. Sample i of a problem has its own random stream.
    """
    limit = options.max_new_tokens
    prompts = [prompter.prompt(p) for p in problems]
    read = prefill(network, prompts)
    cache, mask = read.take(range(len(prompts)), read.lengths.tolist(), room=limit)
    written = decode(
        network,
        cache,
        mask,
        read.logits.argmax(-1),
        limits=[limit] * len(prompts),
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(),
    )
    greedy = [prompter.trace(p, t) for p, t in zip(problems, written, strict=True)]
    found = _opposites(network, prompter, problems, read, greedy, options, seed)
    pairs = []
    for i, problem in enumerate(problems):
        drawn, opposite = found.get(i, (options.samples, None))
        reason = None if opposite else "no_opposite"
        pairs.append(
            TracePair(problem.id, problem.split, problem.template, prompts[i], greedy[i], opposite, drawn, reason)
        )
    return pairs


def greedy_traces(
    network: PreTrainedModel, prompter: Prompter, problems: Sequence[Problem], max_new_tokens: int
) -> list[Trace]:
    """Greedy answers to `problems` in one batch, graded."""
    written = generate_greedy(
        network,
        [prompter.prompt(p) for p in problems],
        max_new_tokens=max_new_tokens,
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(),
    )
    return [prompter.trace(p, tokens) for p, tokens in zip(problems, written, strict=True)]


def _opposites(
    network: PreTrainedModel,
    prompter: Prompter,
    problems: Sequence[Problem],
    read: Prefill,
    greedy: Sequence[Trace],
    options: TraceOptions,
    seed: int,
) -> dict[int, tuple[int, Trace]]:
    """Row -> (samples looked at, first sampled trace of opposite correctness), where there is one."""
    temperatures = {True: options.temperature_if_correct, False: options.temperature_if_wrong}
    found: dict[int, tuple[int, Trace]] = {}
    for wave in waves(options.samples):
        for correct, temperature in temperatures.items():
            draws = [(i, n) for i, g in enumerate(greedy) if g.correct is correct and i not in found for n in wave]
            if not draws:
                continue
            written = sample(network, prompter, problems, read, draws, temperature, options.max_new_tokens, seed)
            for (i, n), tokens in zip(draws, written, strict=True):
                drawn = prompter.trace(problems[i], tokens)
                if drawn.correct is not correct and i not in found:
                    found[i] = (n + 1, drawn)
    return found


def sample(
    network: PreTrainedModel,
    prompter: Prompter,
    problems: Sequence[Problem],
    read: Prefill,
    draws: Sequence[tuple[int, int]],
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    """Sampled traces for `draws`, pairs of (row of `problems` and `read`, sample number), all in one batch.

    A trace depends on seed, problem and sample number alone. Returns the tokens of each draw, end token included.
    """
    rows = [i for i, _ in draws]
    cache, mask = read.take(rows, read.lengths[rows].tolist(), room=max_new_tokens)
    uniforms = np.stack([stream(seed, problems[i].id, n).random(max_new_tokens) for i, n in draws])
    first = pick(read.logits[rows], temperature, torch.from_numpy(uniforms[:, 0]).to(mask.device))
    return decode(
        network,
        cache,
        mask,
        first,
        limits=[max_new_tokens] * len(rows),
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(),
        temperature=temperature,
        uniforms=uniforms,
    )
