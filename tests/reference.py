"""The plain methods: slow, obvious, and written without the library's shortcuts. Tests compare against them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TopKLogitsWarper

from cca.model.components import Components
from cca.model.sampling import pick, stream
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


@torch.no_grad()
def greedy(model, prompt: Sequence[int], max_new_tokens: int, end_tokens: frozenset[int]) -> list[int]:
    """Greedy decoding of one prompt, reading everything again for each token."""
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]], device=model.device), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in end_tokens:
            break
    return tokens


def chances(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The chance (V,) of each token, as transformers' warpers leave it; of tokens that are not drawn exactly 0."""
    scores = logits.float()[None] / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(torch.empty(1, 0, dtype=torch.long), scores)  # pyright: ignore[reportArgumentType]
    return scores[0].softmax(-1)


def completions(
    model, prompter: Prompter, pair: TracePair, heads: Sequence[Sequence[int]], limit: int
) -> list[list[int]]:
    """Each head of the sampled trace completed greedily by `model.generate`, to `limit` tokens in all."""
    end = min(prompter.end_tokens)
    width = max(len(head) for head in heads)
    prompt = list(pair.prompt)
    ids = [[end] * (width - len(head)) + prompt + list(head) for head in heads]
    mask = [[0] * (width - len(head)) + [1] * (len(prompt) + len(head)) for head in heads]
    ids, mask = (torch.tensor(rows, device=model.device) for rows in (ids, mask))
    shortest = min(len(head) for head in heads)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=max(1, limit - shortest), pad_token_id=end
    )
    completed = []
    for head, row in zip(heads, out[:, ids.shape[1] :].tolist(), strict=True):
        tokens = list(head)
        for token in row:
            if len(tokens) >= limit or (tokens and tokens[-1] in prompter.end_tokens):
                break
            tokens.append(token)
        completed.append(tokens)
    return completed


@torch.no_grad()
def branching_pivot(
    model, prompter: Prompter, pair: TracePair, problem: Problem, limit: int, group: int = 1
) -> tuple[Pivot, int]:
    """A greedy completion after every token of the sampled trace until one is graded unlike the greedy trace.

    Completes `group` prefixes at a time. Also returns how many tokens were generated.
    """
    assert pair.sampled is not None
    y = pair.sampled.tokens
    generated = 0
    for start in range(0, len(y), group):
        ks = range(start, min(len(y), start + group))
        heads = [y[: k + 1] for k in ks]
        for k, tokens in zip(ks, completions(model, prompter, pair, heads, limit), strict=True):
            generated += len(tokens) - (k + 1)
            if prompter.trace(problem, tokens).correct is pair.greedy.correct:
                continue
            prefix = (*pair.prompt, *y[:k])
            z = int(model(input_ids=torch.tensor([prefix], device=model.device)).logits[0, -1].argmax())
            desired, undesired = (z, y[k]) if pair.greedy.correct else (y[k], z)
            found = Pivot(
                prefix,
                desired,
                undesired,
                pair.problem,
                pair.split,
                pair.template,
                "branching",
                k,
                pair.greedy.correct,
            )
            return found, generated
    raise AssertionError("the whole sampled trace is graded like the greedy trace")


@torch.no_grad()
def right_completions(
    model, prompter: Prompter, pair: TracePair, problem: Problem, node: tuple[int, int], count: int, limit: int, **how
) -> int:
    """How many of `count` sampled completions of the trace's first k tokens and one more, `node`, are right.

    Each alone, reading everything again for each token. how: `temperature` and `seed`.
    """
    assert pair.sampled is not None
    k, token = node
    right = 0
    for n in range(count):
        uniforms = torch.from_numpy(stream(how["seed"], problem.id, k, token, n).random(limit - k))
        tokens = [*pair.sampled.tokens[:k], token]
        while len(tokens) < limit and tokens[-1] not in prompter.end_tokens:
            logits = model(
                input_ids=torch.tensor([[*pair.prompt, *tokens]], device=model.device), use_cache=False
            ).logits[:, -1]
            tokens.append(int(pick(logits, how["temperature"], uniforms[[len(tokens) - k]])))
        right += prompter.trace(problem, tokens).correct
    return right


def halved(rates: Sequence[int], upwards: bool) -> int:
    """The place i at which `rates` go up (or down) most, by halving: from rates[i] to rates[i + 1]."""
    if len(rates) == 2:
        return 0
    middle = (len(rates) - 1) // 2
    first, second = rates[middle] - rates[0], rates[-1] - rates[middle]
    if (first >= second) if upwards else (first <= second):
        return halved(rates[: middle + 1], upwards)
    return middle + halved(rates[middle:], upwards)


@contextmanager
def projections_gated(model, components: Components, gates: Tensor) -> Iterator[None]:
    """Gates where the components leave their projection or, where there is one, its normalisation; before rotation."""
    hooks = []
    plain_experts = []

    def last_scaled(x: Tensor, factor: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], x[:, -1:] * factor], dim=1)

    def scale_rows(rows: Tensor, gate: Tensor):
        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
            where = rows.flatten().to(gate.device)
            factor = gate.new_ones(out.shape[-1]).index_put((where,), gate.repeat_interleave(rows.shape[1]))
            return last_scaled(out, factor)

        return hook

    def scale_heads(heads_first: bool, gate: Tensor):
        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
            if heads_first:
                return last_scaled(out.transpose(1, 2), gate[:, None]).transpose(1, 2)
            if out.dim() == 4:
                return last_scaled(out, gate[:, None])
            return last_scaled(out, gate.repeat_interleave(out.shape[-1] // len(gate)))

        return hook

    def scale_input(factor: Tensor):
        def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0] if args[0].dim() == 3 else args[0][None]  # some see one sequence's tokens as their batch
            return (last_scaled(x, factor).reshape(args[0].shape),)

        return hook

    try:
        for layer, (query, key, value, neuron) in zip(components.layers, components.split(gates * 2), strict=True):
            attention: Any = layer.attention
            for owned, gate, norm in (
                (layer.query, query, "q_norm"),
                (layer.key, key, "k_norm"),
                (layer.value, value, ""),
            ):
                if norm and hasattr(attention, norm):
                    heads_first = type(attention).__name__.startswith("Gemma3")
                    hooks.append(getattr(attention, norm).register_forward_hook(scale_heads(heads_first, gate)))
                else:
                    projection = model.get_submodule(owned.weight.removesuffix(".weight"))
                    hooks.append(projection.register_forward_hook(scale_rows(owned.rows, gate)))
            sizes = [len(part.up.rows) for part in layer.feed_forward]
            for part, factor in zip(layer.feed_forward, neuron.split(sizes), strict=True):
                if hasattr(part.down, "gate_up_proj"):
                    plain_experts.append(part.down)
                    part.down.forward = partial(_experts, part.down, factor)  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    hooks.append(part.down.register_forward_pre_hook(scale_input(factor)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in plain_experts:
            del module.forward


def _experts(module, factor: Tensor, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Token by token, for one sequence whose last token's neurons are scaled."""
    rows = []
    for number, x in enumerate(hidden):
        total = torch.zeros_like(x)
        for expert, weight in zip(chosen[number].tolist(), weights[number], strict=True):
            gate, up = (module.gate_up_proj[expert] @ x).chunk(2)
            neurons = module.act_fn(gate) * up
            if number == len(hidden) - 1:
                neurons = neurons * factor.view(module.num_experts, -1)[expert]
            total = total + weight * (module.down_proj[expert] @ neurons)
        rows.append(total)
    return torch.stack(rows)


def pivot_loss(model, pivots: Sequence[Pivot], loss: str = "linear") -> Tensor:
    """Mean of d = logit[undesired] - logit[desired], or of log(1 + exp(d)), one pivot at a time."""
    losses = []
    for pivot in pivots:
        logits = model(input_ids=torch.tensor([pivot.prefix], device=model.device), use_cache=False).logits[0, -1]
        difference = logits[pivot.undesired] - logits[pivot.desired]
        losses.append(difference if loss == "linear" else torch.log1p(difference.exp()))
    return torch.stack(losses).mean()


def outputs_first(model, name: str, weight: Tensor) -> Tensor:
    """`weight` with one row an output: GPT-2's are transposed, experts are stacked."""
    if name.startswith("transformer.h."):
        return weight.T
    return weight.reshape(-1, weight.shape[-1])


def descend_weights(
    model, rows: dict[str, Tensor], pivots: Sequence[Pivot], lr: float, steps: int, loss: str = "linear"
) -> None:
    """Full-batch gradient descent that writes straight into the given rows of the model's weights."""
    weights = {name: model.get_parameter(name) for name in rows}
    for weight in weights.values():
        weight.requires_grad_(True)
    for _ in range(steps):
        gradients = torch.autograd.grad(pivot_loss(model, pivots, loss), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                outputs_first(model, name, weight)[rows[name]] -= lr * outputs_first(model, name, gradient)[rows[name]]
    for weight in weights.values():
        weight.requires_grad_(False)
