"""Sequences of unlike lengths, one a slot: what a step's attention looks at, and how many fit in memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cca.model.attention import Pattern, additive, attend, attend_after, is_softmax, stock_attention
from cca.model.cache import SlotPlaces
from cca.model.memory import free_bytes
from cca.model.read import Text

_OF_FREE = 0.8
"""What slots may take of what is free; a step needs some besides."""
_LOGITS = 3
"""Times that a row's logits are held in float32, at most: as the model gives them, scaled, and sorted."""


def rows_that_fit(model: PreTrainedModel, like: Text, columns: int) -> int | None:
    """For how many rows there is memory now, with keys and values of `columns` positions each, of a model that read
    `like`; None where the system does not say what is free."""
    needed = {model.device: _LOGITS * 4 * model.config.get_text_config().vocab_size}
    for side in (*like.whole.keys, *like.whole.values):
        of_a_row = columns * side.shape[0] * side.shape[2] * side.element_size()
        needed[side.device] = needed.get(side.device, 0) + of_a_row
    fit = [int(_OF_FREE * free / count) for device, count in needed.items() if (free := free_bytes(device)) is not None]
    return min(fit, default=None)


def attention(places: SlotPlaces, base: str) -> Callable[..., Any]:
    """Each row's query looks at the columns up to its own."""

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Pattern, **kwargs: Any
    ) -> Any:
        at, layer, mixed = places.on(query.device)[2], places.layer, list[Tensor]()
        for group in places.groups:
            slots, own = group.slots, range(group.begun, group.begun + group.columns)
            some = query[slots], key[slots, :, : len(own)], value[slots, :, : len(own)]
            mask = attention_mask.of_one_query(at, slots, own)
            if group.start:
                before = attention_mask.of_one_query(at, slots, range(group.begun))
                mixed.append(after(group.start[layer], before, module, *some, mask, **kwargs))
            else:
                mixed.append(one(module, *some, mask, **kwargs))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed), None

    def after(
        start: tuple[Tensor, Tensor], before: Tensor, module: nn.Module, query: Tensor, *own: Tensor, **kwargs: Any
    ) -> Tensor:
        key, value, mask = own
        if is_softmax(base, module, kwargs) and query.shape[-1] == value.shape[-1] and query.device.type == "cpu":
            how = kwargs.get("scaling"), kwargs.get("softcap")
            return attend_after(start, query, key, value, before, mask, *how)
        key, value = (torch.cat([a.expand(len(b), -1, -1, -1), b], 2) for a, b in zip(start, own[:2], strict=True))
        return one(module, query, key, value, torch.cat([before, mask], -1), **kwargs)

    def one(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        if is_softmax(base, module, kwargs):
            return attend(query, key, value, mask, kwargs.get("scaling"), kwargs.get("softcap"))
        if base.startswith("flash"):  # takes which keys (B, T) there are, a window included
            mask, kwargs["sliding_window"] = mask[:, 0, 0], None
        elif base != "sdpa":
            mask = additive(mask, query.dtype)
        return stock_attention(base, module, query, key, value, mask, **kwargs)[0]

    return forward
