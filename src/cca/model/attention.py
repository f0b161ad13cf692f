"""Attention in the hands of the caller: what each layer's attention calls, and with which mask.

transformers lets both be registered under a name (`AttentionInterface`, `AttentionMaskInterface`). So sequences of
unlike lengths can pass through a model side by side, each seen by its own queries alone, without padding and without
copies of keys and values that several query heads share.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cca.model.state import registered

_PREFIX = "cca_"
_HARMLESS = {
    "attention_mask",
    "dropout",
    "scaling",
    "sliding_window",
    "softcap",
    "position_ids",
    "use_cache",
    "is_causal",
}
"""Arguments of an attention function that softmax attention of one query honours, or that change nothing for it."""

_UNLIKE = (1, 3)
"""Products of so few queries are rounded by where the numbers lie in memory, which is another place for each thread."""


@contextmanager
def attention_through(
    model: PreTrainedModel, wrap: Callable[[str], Callable[..., Any]], mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Within the context every attention calls `wrap(name)`, name being the function that it would have called.

    mask: what makes the masks that it is called with; without, what would have made them.
    """
    configs: dict[int, Any] = {id(model.config): model.config}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None):
            configs[id(config)] = config
    before = [(config, str(config._attn_implementation)) for config in configs.values()]
    with ExitStack() as stack:
        for config, base in reversed(before):  # undone in reverse, the outermost first: it sets those within it
            stack.callback(setattr, config, "_attn_implementation", base)
        names: dict[str, str] = {}
        for config, base in before:
            if base not in names:
                name = stack.enter_context(registered(AttentionInterface, _PREFIX, wrap(base), base))
                names[base] = name
                if made := mask or ALL_MASK_ATTENTION_FUNCTIONS.get(base):
                    AttentionMaskInterface.register(name, made)
                    stack.callback(AttentionMaskInterface._global_mapping.pop, name, None)
            config._attn_implementation = names[base]
        yield


def stock_attention(base: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What `module` would have called: the attention function `base`; each model has an eager one of its own."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)  # pyright: ignore[reportArgumentType]
    config: Any = module.config
    name = config._attn_implementation
    config._attn_implementation = base  # flash attention looks up there which of its versions it is
    try:
        return function(module, *args, **kwargs)
    finally:
        config._attn_implementation = name


def is_softmax(base: str, module: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Whether `module` asks of its attention nothing but the softmax of scaled, perhaps soft-capped, products."""
    # an attention with parameters of its own (sinks) may do more with them
    known = base == "eager" or (base == "sdpa" and arguments.get("softcap") is None)
    return known and arguments.keys() <= _HARMLESS and not module._parameters


class Pattern:
    """Which keys a layer's queries may look at, by the positions of both: earlier ones, perhaps within a window.

    It takes the place of a mask, and gives one for the sequences at hand.
    """

    def __init__(self, allowed: Callable[[Tensor, int, Tensor, Tensor], Tensor]):
        """allowed: transformers' mask function of (batch, head, query position, key position)."""
        self._allowed = allowed
        self._kept: dict[tuple[object, ...], Tensor | None] = {}

    @classmethod
    def of(cls, *, mask_function: Callable[..., Any], **_: object) -> "Pattern":
        """What transformers calls to make a mask."""
        return cls(mask_function)

    def seen(self, queries: Int[Tensor, "B Q"], keys: Int[Tensor, " T"]) -> Bool[Tensor, "B 1 Q T"]:
        """Whether the query at position queries[b, q] looks at the key at position keys[t]."""
        row = torch.zeros((), dtype=torch.long, device=queries.device)
        seen = self._allowed(row, 0, queries[:, None, :, None], keys[None, None, None, :])
        return seen.expand(len(queries), 1, queries.shape[1], len(keys))

    def of_one_query(self, queries: Int[Tensor, " B"], rows: slice, keys: range) -> Bool[Tensor, "B 1 1 T"]:
        """For a query a row, of those of `rows` at their positions, which of the keys at these positions it looks at.

        Made once a step: it is the same for all layers that have this pattern.
        """
        known = (queries.device, rows.start, rows.stop, keys)
        if known not in self._kept:
            at = torch.arange(keys.start, keys.stop, device=queries.device)
            self._kept[known] = self.seen(queries[rows, None], at)
        mask = self._kept[known]
        assert mask is not None
        return mask

    def of_a_sequence(self, start: int, length: int, base: str, query: Tensor) -> Tensor | None:
        """The mask for the attention function `base` of `length` queries, from position `start` on, of one sequence.

        None where `base` sees to it itself, being causal. Made once, as above.
        """
        known = (start, length, base, query.device)
        if known not in self._kept:
            self._kept[known] = self._of_a_sequence(start, length, base, query)
        return self._kept[known]

    def _of_a_sequence(self, start: int, length: int, base: str, query: Tensor) -> Tensor | None:
        if base.startswith("flash"):
            return None
        position = torch.arange(start + length, device=query.device)
        seen = self.seen(position[None, start:], position)
        if base == "sdpa" and not start and bool((seen[0, 0] == torch.ones_like(seen[0, 0]).tril()).all()):
            return None
        return seen if base == "sdpa" else additive(seen, query.dtype)


def additive(seen: Bool[Tensor, "B 1 Q T"], dtype: torch.dtype) -> Float[Tensor, "B 1 Q T"]:
    """The mask that eager attention adds to its scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


_BLOCK = 32
"""Queries of unlike rows that look at the same keys are taken so many at a time: with another number, products are
rounded in another order."""


def attend_after(
    start: tuple[Float[Tensor, "K S D"], Float[Tensor, "K S D"]],
    query: Float[Tensor, "B H 1 D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    start_seen: Bool[Tensor, "B 1 1 S"],
    seen: Bool[Tensor, "B 1 1 T"],
    scaling: float | None,
    softcap: float | None,
) -> Float[Tensor, "B 1 H D"]:
    """What `attend` gives, on a CPU, where all rows look at the same keys and values first: those of `start`.

    These are read from memory once for all rows. Softmax over the two parts apart, each weighted by its share of the
    sum of exponentials, is softmax over both (to rounding). A row's result does not depend on the other rows, bit for
    bit.
    """
    rows, heads, _, size = query.shape
    key_heads = key.shape[1]
    groups = heads // key_heads
    packed = query.reshape(rows, key_heads, groups, size)
    own, own_total = _with_total(*_never_alone(packed, key, value, seen), scaling, softcap)
    own, own_total = own[:rows, :, :groups], own_total[:rows, :, :groups]

    count = rows * groups
    odd = -count % _BLOCK or (_BLOCK if count == _BLOCK and key_heads == 1 else 0)  # never one thread's work alone
    blocks = packed.transpose(0, 1).reshape(key_heads, count, size)
    blocks = nn.functional.pad(blocks, (0, 0, 0, odd)).view(key_heads, -1, _BLOCK, size).transpose(0, 1)
    each = None
    if not bool(start_seen.all()):  # a window does not reach back so far
        each = start_seen[:, 0].expand(-1, groups, -1).reshape(count, -1)
        each = nn.functional.pad(each, (0, 0, 0, odd), value=True).view(-1, 1, _BLOCK, start_seen.shape[-1])
    keys, values = (side.expand(len(blocks), -1, -1, -1) for side in start)
    shared, total = _with_total(blocks, keys, values, each, scaling, softcap)
    if each is not None:
        blind = ~each.any(-1).expand(total.shape)
        shared, total = shared.masked_fill(blind[..., None], 0), total.masked_fill(blind, -torch.inf)
    shared = shared.transpose(0, 1).reshape(key_heads, -1, size)[:, :count].view(key_heads, rows, groups, size)
    total = total.transpose(0, 1).reshape(key_heads, -1)[:, :count].view(key_heads, rows, groups)
    # of functions with exponentials only softmax is rounded alike wherever a row stands
    share = torch.stack([own_total, total.transpose(0, 1)], -1).softmax(-1)[..., 1:]
    own, shared = (side.to(share.dtype) for side in (own, shared.transpose(0, 1)))
    mixed = own + (shared - own) * share
    return mixed.to(query.dtype).reshape(rows, 1, heads, size)


def _with_total(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scaling: float | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention (B, K, Q, D), and the log of its sum of exponentials (B, K, Q) in float32."""
    bias = None if seen is None else additive(seen, query.dtype)
    if softcap is None:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scaling
        )
    else:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = softcap * torch.tanh((query @ key.mT).float() * scale / softcap)
        scores = scores if bias is None else scores + bias
        total = scores.amax(-1) - scores.log_softmax(-1).amax(-1)
        out = scores.softmax(-1).to(query.dtype) @ value
    return out, total


def attend(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    seen: Bool[Tensor, "B 1 Q T"],
    scaling: float | None,
    softcap: float | None,
) -> Float[Tensor, "B Q H D"]:
    """Softmax attention in which the query heads of a key head stand in for several queries of it.

    Attention functions copy keys and values for each query head where there is a mask; with its gradient that takes
    twice the time. With one query a row, its result does not depend on the other rows (CPU, bit for bit); on T it does,
    which decides in which order products are summed, though the row may not look at so many keys.
    """
    rows, heads, count, size = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(rows, key.shape[1], groups * count, size)
    seen = seen if count == 1 else seen.repeat(1, 1, groups, 1)
    if count == 1:
        packed, key, value, seen = _never_alone(packed, key, value, seen)
    if softcap is not None:
        scale = size**-0.5 if scaling is None else scaling
        scores = (softcap * torch.tanh(packed @ key.mT * scale / softcap)).masked_fill(~seen, -torch.inf)
        mixed = scores.float().softmax(-1).to(query.dtype) @ value
    else:
        mixed = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=seen, scale=scaling)
    return mixed[:rows, :, : groups * count].reshape(rows, heads, count, size).transpose(1, 2)


def _never_alone(packed: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One query a row (B, K, G, D) and what it looks at, with what is added lest rounding depend on the other rows."""
    if packed.shape[2] in _UNLIKE:
        packed = torch.cat([packed, packed[:, :, :1]], 2)
    if len(packed) == key.shape[1] == 1:  # else several threads would share what is one thread's
        packed, key, value, seen = (x.expand(2, -1, -1, -1) for x in (packed, key, value, seen))
    return packed, key, value, seen
