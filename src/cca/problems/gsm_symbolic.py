"""GSM-Symbolic problems with worked solutions, sampled offline by reasoning-gym's generators.

The generators are reasoning-gym's (Apache-2.0); what is added here is a bound on the numbers, a fixed
list of templates, and a split of all questions into two parts that can never meet.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_LONG_DECIMAL = re.compile(r"\.\d{3}")

SMALL_TEMPLATES: tuple[int, ...] = (
    0, 4, 6, 9, 10, 12, 14, 15, 16, 20, 24, 26, 28, 30, 31, 34, 38, 39, 43, 45,
    46, 48, 51, 53, 54, 55, 57, 58, 59, 62, 69, 70, 72, 75, 78, 83, 84, 89, 95, 99,
)  # fmt: skip
"""Templates that have plenty of instances in which no number is above 60."""

ALL_TEMPLATES: tuple[int, ...] = tuple(sorted(set(range(100)) - {32, 35, 46, 52, 61, 66, 76, 97}))
"""Templates with 50 instances and more; the others have too few, or write 0.3333333333333339, or give up."""


@dataclass(frozen=True)
class Worked:
    """A question with its gold answer and a worked solution whose last line is ``#### answer``."""

    template: str
    question: str
    answer: str
    solution: str


@cache
def generators() -> dict[int, Callable[..., dict[str, Any]]]:
    """reasoning-gym's template functions by number."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
    )

    return GSMSymbolicDataset(GSMSymbolicDatasetConfig(size=1, seed=0)).generators


def is_reserved(question: str) -> bool:
    """True for the fifth of all questions, by digest, that no training text of a bundled model contains.

    Training draws only questions for which this is false, runs and evaluations only those for which it
    is true, so the two are disjoint whatever the seeds.
    """
    return hashlib.sha256(question.encode()).digest()[0] < 52  # 52/256: about a fifth


def is_within(text: str, bound: float) -> bool:
    """Whether no number in `text` is above `bound` or has more than two decimals. It stops at the first that is, since
    most draws are refused."""
    for number in _NUMBER.finditer(text):
        if float(number[0].replace(",", "")) > bound:
            return False
    return not _LONG_DECIMAL.search(text)


def sample(template: int, rng: random.Random, max_number: float | None = 60) -> Worked:
    """Draw one instance of `template`, redrawing until no number in it exceeds `max_number` (None: any will do).

    With a bound, numbers of more than two decimals (0.3333333333333339) are redrawn as well.

    Raises:
        ValueError: the template is unknown, or 20,000 draws gave no instance within the bound.
    """
    if template not in generators():
        raise ValueError(f"GSM-Symbolic has no template {template}; it has 0 to {max(generators())}")
    generate = generators()[template]
    for _ in range(20_000):
        entry = generate(rng, 1.0)
        question, solution = entry["question"].strip(), entry["metadata"]["answer_cot"].strip()
        if max_number is None or (is_within(solution, max_number) and is_within(question, max_number)):
            return Worked(str(template), question, str(entry["answer"]), solution)
    raise ValueError(f"template {template} gave no instance with numbers up to {max_number}; raise max_number")


def reserved_instances(template: int, seed: int, max_number: float | None = 60) -> Iterator[Worked]:
    """Distinct instances of `template` from the reserved fifth, in an order fixed by `seed`."""
    rng = random.Random(f"gsm-symbolic:{template}:{seed}")
    return distinct_reserved(lambda: sample(template, rng, max_number))


def distinct_reserved(draw: Callable[[], Worked]) -> Iterator[Worked]:
    """What `draw` gives, as far as its question is reserved and new.

    Ends where 2,000 draws in a row gave nothing new: then there is (nearly) no more.
    """
    seen: set[str] = set()
    misses = 0
    while misses < 2_000:
        item = draw()
        if is_reserved(item.question) and item.question not in seen:
            seen.add(item.question)
            misses = 0
            yield item
        else:
            misses += 1
