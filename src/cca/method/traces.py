"""Stage 1a: for each problem a greedy trace and a sampled trace of opposite correctness (paper section 3.1)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from cca.model.generate import Prefill, decode, pick, prefill, stream
from cca.problems.prompts import Prompter
from cca.records import Problem, Trace, TracePair


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
        yield range(start, min(samples, start + 3))
        start += 3


def trace_chunk(
    model: PreTrainedModel,
    prompter: Prompter,
    problems: Sequence[Problem],
    *,
    samples: int,
    temperature_if_correct: float,
    temperature_if_wrong: float,
    max_new_tokens: int,
    seed: int,
) -> list[TracePair]:
    """Trace `problems` in one batch: prompts are read once, samples are drawn in waves.

    A problem whose greedy trace is correct is sampled at `temperature_if_correct` until one is wrong, and the other
    way round; it leaves as soon as it has its opposite. Sample i of a problem has its own random stream.
    """
    prompts = [prompter.prompt(p) for p in problems]
    read = prefill(model, prompts)
    cache, mask = read.take(range(len(prompts)), read.lengths.tolist(), room=max_new_tokens)
    first = read.logits.argmax(-1)
    limits = [max_new_tokens] * len(prompts)
    written = decode(
        model, cache, mask, first, limits=limits, end_tokens=prompter.end_tokens, stop=prompter.stop_rule()
    )
    greedy = [prompter.trace(p, t) for p, t in zip(problems, written, strict=True)]
    found: dict[int, tuple[int, Trace]] = {}
    for wave in waves(samples):
        for correct, temperature in ((True, temperature_if_correct), (False, temperature_if_wrong)):
            rows = [i for i, g in enumerate(greedy) if g.correct is correct and i not in found]
            draws = [(i, n) for i in rows for n in wave]
            if not draws:
                continue
            for (i, n), tokens in zip(
                draws, sample(model, prompter, problems, read, draws, temperature, max_new_tokens, seed), strict=True
            ):
                trace = prompter.trace(problems[i], tokens)
                if trace.correct is not correct and i not in found:
                    found[i] = (n, trace)
    pairs = []
    for i, problem in enumerate(problems):
        number, trace = found.get(i, (samples - 1, None))
        pairs.append(
            TracePair(
                problem.id,
                problem.split,
                problem.template,
                prompts[i],
                greedy[i],
                trace,
                number + 1,
                None if trace else "no_opposite",
            )
        )
    return pairs


def sample(
    model: PreTrainedModel,
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
        model,
        cache,
        mask,
        first,
        limits=[max_new_tokens] * len(rows),
        end_tokens=prompter.end_tokens,
        stop=prompter.stop_rule(),
        temperature=temperature,
        uniforms=uniforms,
    )
