"""Keys and values of pivots' prefixes: what makes a step of stage 2 cost one token a pivot.

Gates act at the last position only, so keys and values of all earlier positions are constants. They are computed
once; every optimiser step is then a forward and backward of one token per pivot against a cached prefix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cca.model.read import OneTokenStep, Prefill, prefill
from cca.records import Pivot


class CachedPrefixes:
    """Keys and values of every pivot's prefix but its last token.

    They are kept where they take at most `budget_gib`; otherwise each batch reads its prefixes again. constant: steps
    leave their cache as it is, so that a layer can be computed twice.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pivots: Sequence[Pivot],
        budget_gib: float,
        read_batch: int = 32,
        constant: bool = False,
    ):
        self.model, self.room = model, 0 if constant else 1
        self.heads = [list(p.prefix[:-1]) for p in pivots]
        self.last = torch.tensor([p.prefix[-1] for p in pivots], device=model.device)
        self.lengths = torch.tensor([len(h) for h in self.heads])
        if not self.heads or int(self.lengths.min()) < 1:
            raise ValueError("a pivot needs a prefix of at least two tokens")
        first = prefill(model, self.heads[:1])
        per_token = sum(k[:, :, :1].nbytes + v[:, :, :1].nbytes for k, v in zip(first.keys, first.values, strict=True))
        self.gib = per_token * int(self.lengths.max()) * len(self.heads) / 2**30
        self.stored = self._read_all(read_batch) if self.gib <= budget_gib else None

    def _read_all(self, read_batch: int) -> Prefill:
        width, count = int(self.lengths.max()), len(self.heads)
        order = self.lengths.argsort(stable=True).tolist()
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for start in range(0, count, read_batch):
            rows = order[start : start + read_batch]
            read = prefill(self.model, [self.heads[i] for i in rows])
            if not keys:
                shape = [(count, k.shape[1], width, k.shape[3]) for k in read.keys]
                keys = [k.new_zeros(s) for k, s in zip(read.keys, shape, strict=True)]
                values = [v.new_zeros(s) for v, s in zip(read.values, shape, strict=True)]
            for store, new in ((keys, read.keys), (values, read.values)):
                for kept, fresh in zip(store, new, strict=True):
                    kept[rows, :, : fresh.shape[2]] = fresh
        return Prefill(keys, values, self.lengths, torch.empty(0, device=self.model.device), None)

    def take(self, rows: Sequence[int]) -> OneTokenStep:
        """What a forward pass of the last tokens of the prefixes `rows` needs. Call it outside of any gating."""
        if self.stored is not None:
            cache, mask = self.stored.take(rows, self.lengths[list(rows)].tolist(), self.room)
        else:
            read = prefill(self.model, [self.heads[i] for i in rows])
            cache, mask = read.take(range(len(rows)), read.lengths.tolist(), self.room)
        return OneTokenStep(cache, mask, self.last[list(rows)])
