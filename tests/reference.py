"""The plain methods: slow, obvious, and written without the library's shortcuts. Tests compare against them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cca.anatomy import Anatomy
from cca.prompts import Prompter
from cca.records import Pivot, Problem, TracePair


@torch.no_grad()
def greedy(model, prompt: Sequence[int], max_new_tokens: int, end_tokens: frozenset[int]) -> list[int]:
    """Greedy decoding of one prompt, reading everything again for each token."""
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in end_tokens:
            break
    return tokens


@torch.no_grad()
def branching_pivot(model, prompter: Prompter, pair: TracePair, problem: Problem, limit: int) -> tuple[Pivot, int]:
    """A greedy completion after every token of the sampled trace until one is graded unlike the greedy trace.

    Also returns how many tokens were generated. `model.generate` writes the completions.
    """
    assert pair.sampled is not None
    y = pair.sampled.tokens
    generated = 0
    for k in range(len(y)):
        start = [*pair.prompt, *y[: k + 1]]
        completion = list(y[: k + 1])
        if y[k] not in prompter.end_tokens and len(completion) < limit:
            ids = torch.tensor([start])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=limit - len(completion),
                pad_token_id=min(prompter.end_tokens),
            )
            completion += out[0, len(start) :].tolist()
            generated += out.shape[1] - len(start)
        if prompter.trace(problem, completion).correct is not pair.greedy.correct:
            prefix = (*pair.prompt, *y[:k])
            z = int(model(input_ids=torch.tensor([prefix])).logits[0, -1].argmax())
            desired, undesired = (z, y[k]) if pair.greedy.correct else (y[k], z)
            pivot = Pivot(
                pair.problem,
                pair.split,
                pair.template,
                "branching",
                prefix,
                desired,
                undesired,
                k,
                pair.greedy.correct,
            )
            return pivot, generated
    raise AssertionError("the whole sampled trace is graded like the greedy trace")


@contextmanager
def projections_gated(anatomy: Anatomy, gates: Tensor) -> Iterator[None]:
    """Gates where the components leave their projections, before rotation: equal for models without q/k norm."""
    hooks = []

    def scale(factor: Tensor):
        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
            return torch.cat([out[:, :-1], out[:, -1:] * factor], dim=1)

        return hook

    def scale_input(factor: Tensor):
        def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (torch.cat([args[0][:, :-1], args[0][:, -1:] * factor], dim=1),)

        return hook

    try:
        for layer, (query, key, value, neuron) in zip(anatomy.layers, anatomy.split(gates * 2), strict=True):
            for module, gate in ((layer.query, query), (layer.key, key), (layer.value, value)):
                hooks.append(module.register_forward_hook(scale(gate.repeat_interleave(layer.head_dim))))
            hooks.append(layer.down.register_forward_pre_hook(scale_input(neuron)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def pivot_loss(model, pivots: Sequence[Pivot]) -> Tensor:
    """Mean of logit[undesired] - logit[desired], one pivot at a time."""
    losses = []
    for pivot in pivots:
        logits = model(input_ids=torch.tensor([pivot.prefix]), use_cache=False).logits[0, -1]
        losses.append(logits[pivot.undesired] - logits[pivot.desired])
    return torch.stack(losses).mean()


def descend_weights(model, rows: dict[str, Tensor], pivots: Sequence[Pivot], lr: float, steps: int) -> None:
    """Full-batch gradient descent that writes straight into the given rows of the model's weights."""
    weights = {name: model.get_parameter(name) for name in rows}
    for weight in weights.values():
        weight.requires_grad_(True)
    for _ in range(steps):
        gradients = torch.autograd.grad(pivot_loss(model, pivots), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                weight[rows[name]] -= lr * gradient[rows[name]]
    for weight in weights.values():
        weight.requires_grad_(False)
