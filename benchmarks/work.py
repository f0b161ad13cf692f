"""What the parts of the benchmark work on: opened models, problems, and pivots that were found or made."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cca
from cca.method.options import TraceOptions
from cca.method.traces import Traces
from cca.model.open import Model, open_model
from cca.problems.prompts import PromptOptions
from cca.problems.splits import ProblemOptions, build_problems, chosen_source
from cca.records import Pivot, Problem, TracePair

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # reference.py has the plain methods

ASK = "{question}\nSolve the problem step by step, briefly. End with a last line of the form: #### number"
SHOTS = 8
"""Worked examples of a few-shot prompt, as many as the paper's."""
DENSITY = 0.02


def bundled() -> Model:
    return open_model("bundled", device="cpu")


def given(path: str, dtype: str = "float32", *, chat: bool = True) -> Model:
    """A real model, asked by its chat template."""
    prompt = PromptOptions(style="chat", template=ASK) if chat else None
    return open_model(path, device="cpu", dtype=dtype, prompt=prompt)


def name_of(path: str) -> str:
    """What a real model is called in the table."""
    return Path(path).stem


def problems(templates: int, each: int) -> list[Problem]:
    """Training problems of the templates that a run has by default."""
    drawn = ProblemOptions(train=each, validation=1, test=1, held_out=0.0)
    drawn = drawn.changed({"templates": drawn.templates[:templates]})
    return [p for p in build_problems(chosen_source(drawn), drawn, seed=11) if p.split == "train"]


def traces(model: Model, asked: Sequence[Problem], options: TraceOptions) -> list[TracePair]:
    """Their traces, by the library, in the order of their names."""
    with warnings.catch_warnings():  # where many are cut: what is measured are small limits too
        warnings.simplefilter("ignore", UserWarning)
        return sorted(cca.trace(model, asked, options), key=lambda pair: pair.problem)


@dataclass(frozen=True)
class Traced:
    """Problems, and those pairs of their traces that have an opposite sample."""

    model: Model
    problems: dict[str, Problem]
    pairs: list[TracePair]
    options: TraceOptions

    @classmethod
    def of(cls, model: Model, asked: Sequence[Problem], limit: int = 160) -> "Traced":
        options = TraceOptions(max_new_tokens=limit, skip_solved=0)
        pairs = [pair for pair in traces(model, asked, options) if pair.sampled]
        return cls(model, {p.id: p for p in asked}, pairs, options)

    @property
    def limit(self) -> int:
        return self.options.max_new_tokens

    def some(self, count: int) -> list[TracePair]:
        """So many of the pairs, from all of them; if it is one, the shortest."""
        return self.pairs[:: max(1, len(self.pairs) // count)][:count] if count > 1 else self.shortest(1)

    def shortest(self, count: int) -> list[TracePair]:
        """So many of the pairs, those with the shortest samples."""
        return sorted(self.pairs, key=lambda pair: len(pair.sampled.tokens) if pair.sampled else 0)[:count]

    def search(self, pairs: Sequence[TracePair]) -> list[Pivot]:
        """Their pivots, by the library."""
        return cca.find_pivots(self.model, Traces(tuple(pairs), self.problems, self.options))


def found_pivots(model: Model, count: int) -> list[Pivot]:
    """`count` pivots of the model's own traces; where it has fewer they are repeated."""
    traced = Traced.of(model, problems(40 if count > SHOTS else 4, 2))
    pivots = traced.search(traced.pairs)
    return (pivots * (count // len(pivots) + 1))[:count]


def with_examples(pivots: Sequence[Pivot], model: Model, shots: int = SHOTS) -> list[Pivot]:
    """`pivots` with solved problems before each prefix, so that they are of few-shot length."""
    shown: list[int] = []
    for problem in problems(shots, 1):
        shown += [*model.prompter.prompt(problem), *model.prompter.reference(problem.solution)]
    return [replace(p, prefix=(*shown, *p.prefix)) for p in pivots]


def made_pivots(network: Any, count: int, tokens: int, shared: int = 0, vary: float = 0.0) -> list[Pivot]:
    """Pivots of random tokens: `shared` ones that all prefixes begin with and `tokens` of their own, more or fewer by
    up to the share `vary`. Time and memory do not depend on which tokens they are."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = network.config.get_text_config().vocab_size

    def ids(length: int) -> list[int]:
        return torch.randint(10, vocabulary - 10, (length,), generator=draw).tolist()

    least, most = int(tokens * (1 - vary)), int(tokens * (1 + vary))
    lengths = torch.randint(least, most + 1, (count,), generator=draw).tolist()
    start = ids(shared)
    return [Pivot((*start, *ids(n)), 11, 12, problem=f"{i:04}", split="train") for i, n in enumerate(lengths)]


def tokens_of(pivots: Sequence[Pivot]) -> float:
    """How many tokens a prefix has, on average."""
    return sum(len(p.prefix) for p in pivots) / len(pivots)


def sides(pivots: Sequence[Pivot]) -> tuple[Tensor, Tensor]:
    """Desired and undesired tokens (P,)."""
    return torch.tensor([p.desired for p in pivots]), torch.tensor([p.undesired for p in pivots])


def padded_logits(network: Any, pivots: Sequence[Pivot]) -> Tensor:
    """Logits (B, V) after whole prefixes, padded on the left in one batch, as one usually does it."""
    width = max(len(p.prefix) for p in pivots)
    ids = torch.tensor([[0] * (width - len(p.prefix)) + list(p.prefix) for p in pivots])
    mask = torch.tensor([[0] * (width - len(p.prefix)) + [1] * len(p.prefix) for p in pivots])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = network(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)
    return found.logits[:, -1]


def a_circuit(model: Model) -> dict[str, Tensor]:
    """The rows of a random circuit of DENSITY, by weight."""
    parts = model.components
    return parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) < DENSITY)
