"""Keys and values of pivots' prefixes: what makes a step of stage 2 cost one token a pivot.

Gates act at the last position only, so keys and values of all earlier positions are constants. They are computed
once; every optimiser step is then a forward and backward of one token per pivot against a cached prefix.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from cca.model.padded import OneTokenStep, Padded
from cca.model.read import Text, by_budget, read, texts
from cca.records import Pivot


class CachedPrefixes:
    """Keys and values of every pivot's prefix but its last token.

    They are kept where they take at most `budget_gib`; otherwise each batch reads its prefixes again. constant: steps
    leave their cache as it is, so that a layer can be computed twice. progress: told after each pass how many tokens
    the prefixes have that it read and keeps.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pivots: Sequence[Pivot],
        budget_gib: float,
        constant: bool = False,
        progress: Callable[[int], None] | None = None,
    ):
        self.model, self.room = model, 0 if constant else 1
        self.heads = [list(p.prefix[:-1]) for p in pivots]
        self.last = torch.tensor([p.prefix[-1] for p in pivots], device=model.device)
        self.lengths = [len(h) for h in self.heads]
        if not self.heads or min(self.lengths) < 1:
            raise ValueError("a pivot needs a prefix of at least two tokens")
        (first,) = texts(self.heads[:1])
        read(model, [first])
        per_token = sum(k[:, :1].nbytes + v[:, :1].nbytes for k, v in zip(first.keys, first.values, strict=True))
        self.gib = per_token * max(self.lengths) * len(self.heads) / 2**30
        self.stored = self._read_all(first, progress) if self.gib <= budget_gib else None

    def _read_all(self, like: Text, progress: Callable[[int], None] | None) -> Padded:
        stored = Padded.room_for(len(self.heads), max(self.lengths), like)
        row = 0
        for group in by_budget(texts(self.heads), Text.own_length, self.model):
            read(self.model, group)
            for text in group:
                stored.put(row, text)
                text.forget()
                row += 1
            if progress:
                progress(sum(len(text.ids) for text in group))
        return stored

    def to_read(self, rows: Sequence[int]) -> int:
        """How many tokens a step with `rows` reads."""
        return len(rows) + (0 if self.stored is not None else sum(self.lengths[i] for i in rows))

    def take(self, rows: Sequence[int]) -> OneTokenStep:
        """What a forward pass of the last tokens of the prefixes `rows` needs. Call it outside of any gating."""
        lengths = [self.lengths[i] for i in rows]
        if self.stored is not None:
            cache, mask = self.stored.take(rows, lengths, self.room)
        else:
            here = texts([self.heads[i] for i in rows])
            read(self.model, here)
            cache, mask = Padded.of(here).take(range(len(rows)), lengths, self.room)
        return OneTokenStep(cache, mask, self.last[list(rows)])
