"""Nothing is left behind: the caller's model, what else was passed in, and the process are as they were found."""

import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CIRCUIT, random_pivots, tiny_qwen2
from families import family_model
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AttentionInterface, Gemma3Config
from transformers.integrations.moe import ExpertsInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

import cca
from cca.controls.start import start
from cca.method.circuit import learn_gates
from cca.method.options import UpdateOptions
from cca.method.update import Validation, full_gradient, held_out_margins, train
from cca.model.attention import attention_through, stock_attention
from cca.model.checks import load_tokenizer
from cca.model.experts import with_experts
from cca.model.gates import gated
from cca.model.rows import Rows
from cca.model.verify import verify_components

LOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def of_network(network: Any) -> dict[str, Any]:
    """All that could be changed of a network, but for the numbers in its weights."""
    config = network.config
    return {
        "gradients": {n: (p.requires_grad, p.grad) for n, p in network.named_parameters()},
        "modes": {n: m.training for n, m in network.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in network.named_modules()},
        "hooks": {n: [len(getattr(m, look)) for look in LOOKS] for n, m in network.named_modules()},
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "config": config.to_dict(),
        "generation": network.generation_config.to_dict(),
    }


def of_process() -> dict[str, Any]:
    """What all code of a process shares."""
    registries = (AttentionInterface, AttentionMaskInterface, ExpertsInterface)
    return {
        "registries": [dict(r._global_mapping) for r in registries],
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # not Python's own, which the checker of shapes draws from
        "random": (torch.get_rng_state().tolist(), repr(np.random.get_state())),  # noqa: NPY002
        "logging": (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "environment": dict(os.environ),
    }


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def same(before: dict[str, torch.Tensor], network: Any) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


class Work:
    """A model as a caller may have it, in training with some weights frozen, and what each function takes."""

    def __init__(self, family: str):
        tokenizer = load_tokenizer("bundled")
        shape: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
        network: Any = tiny_qwen2() if family == "qwen2" else family_model(family, **shape)
        network.requires_grad_(True).train()
        network.get_output_embeddings().weight.requires_grad_(False)
        next(iter(network.get_decoder().layers)).eval()
        self.network, self.tokenizer = network, tokenizer
        self.model = cca.open_model((network, tokenizer), grader=lambda text, _: sum(map(ord, text)) % 2 == 0)
        self.pivots = random_pivots(5, len(tokenizer))
        rows = [{"question": f"{a} and 1?", "answer": str(a + 1), "solution": f"#### {a + 1}"} for a in range(10)]
        self.problems = cca.load_problems(rows)
        self.circuit = cca.Circuit(
            gates=torch.tensor([float(i % 9 == 0) for i in range(self.model.components.size)]),
            history=torch.zeros(1, self.model.components.size),
            losses=torch.zeros(1),
            sizes=torch.tensor([layer.sizes for layer in self.model.components.layers]),
            stopped="epochs",
        )
        self.rows = self.model.components.rows(self.circuit.selected)
        self.delta = cca.Delta.zeros(self.model, self.rows)
        for value in self.delta.parameters.values():
            value += 0.01

    # ---- the front door ----

    def open_model(self, stop: Callable[..., None]) -> None:
        cca.open_model((self.network, self.tokenizer))
        stop()

    def trace(self, stop: Callable[..., None]) -> None:
        cca.trace(self.model, self.problems, samples=2, max_new_tokens=4, batch=2, progress=stop)

    def find_pivots(self, stop: Callable[..., None]) -> None:
        traces = cca.trace(self.model, self.problems, samples=8, max_new_tokens=4, skip_solved=0)
        cca.find_pivots(self.model, traces, progress=stop)

    def learn_circuit(self, stop: Callable[..., None]) -> None:
        cca.learn_circuit(self.model, self.pivots, CIRCUIT, epochs=2, min_steps=6, penalty=0.0, progress=stop)

    def update(self, stop: Callable[..., None]) -> None:
        cca.update(
            self.model,
            self.circuit,
            self.pivots,
            validate=self.problems,
            steps=2,
            validate_every=1,
            max_new_tokens=3,
            progress=stop,
        )

    def evaluate(self, stop: Callable[..., None]) -> None:
        cca.evaluate(self.model, self.problems, self.delta, max_new_tokens=3, batch=2, progress=stop)

    # ---- what it stands on ----

    def learn_gates(self, stop: Callable[..., None]) -> None:
        learn_gates(self.network, self.model.components, self.pivots, CIRCUIT, progress=stop)

    def train(self, stop: Callable[..., None]) -> None:
        options = UpdateOptions(steps=2, validate_every=1, batch=2)
        validate = lambda _: Validation(0.5, 2)
        train(self.network, self.delta, self.pivots, self.pivots, validate, options, progress=stop)

    def full_gradient(self, stop: Callable[..., None]) -> None:
        full_gradient(self.network, self.delta, self.pivots, 2)
        stop()

    def held_out_margins(self, stop: Callable[..., None]) -> None:
        held_out_margins(self.network, self.delta, self.pivots, 2)
        stop()

    def verify_components(self, stop: Callable[..., None]) -> None:
        verify_components(self.network, self.model.components)
        stop()

    def start_from_the_gradient(self, stop: Callable[..., None]) -> None:
        start(self.model, self.circuit, self.pivots, UpdateOptions(method="gradient"), 0)
        stop()

    def inside(self, context: AbstractContextManager[Any], stop: Callable[..., None]) -> None:
        with context, torch.no_grad():
            self.network(input_ids=torch.tensor([[1, 2, 3]]))
            stop()

    def gated(self, stop: Callable[..., None]) -> None:
        gates = torch.full((self.model.components.size,), 0.4)
        with gated(self.network, self.model.components, gates):
            self.inside(gated(self.network, self.model.components, gates), stop)

    def attention_through(self, stop: Callable[..., None]) -> None:
        def wrap(base: str) -> Callable[..., Any]:
            return lambda module, *args, **kwargs: stock_attention(base, module, *args, **kwargs)

        with attention_through(self.network, wrap):
            self.inside(attention_through(self.network, wrap), stop)

    def active(self, stop: Callable[..., None]) -> None:
        self.inside(self.delta.active(self.model), stop)

    def attached(self, stop: Callable[..., None]) -> None:
        with self.delta.attached(self.model):
            self.inside(self.delta.attached(self.network), stop)


FRONT = ("open_model", "trace", "find_pivots", "learn_circuit", "update", "evaluate")
BELOW = (
    *("learn_gates", "train", "full_gradient", "held_out_margins", "verify_components", "start_from_the_gradient"),
    *("gated", "attention_through", "active", "attached"),
)
ENDS: dict[str, type[BaseException] | None] = {
    "done": None,
    "raised": ZeroDivisionError,
    "interrupted": KeyboardInterrupt,
}


@pytest.fixture(scope="module", params=["qwen2", "mixtral"])
def work(request) -> Work:
    return Work(request.param)


@pytest.mark.filterwarnings("ignore:100% of the (traces|validation answers of step 0) were cut")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", [*FRONT, *BELOW])
def test_every_function_leaves_model_arguments_and_process_as_they_were(work, name, end):
    kind = ENDS[end]

    def stop(*_: object) -> None:
        if kind:
            raise kind

    def look() -> dict[str, Any]:
        return of_process() | of_network(work.network)

    before, numbers = look(), weights(work.network)
    given = {n: (v.clone(), v.requires_grad) for n, v in work.delta.parameters.items()}
    with pytest.raises(kind) if kind else nullcontext():
        getattr(work, name)(stop)
    after = look()
    for what, found in before.items():
        assert after[what] == found, what
    assert same(numbers, work.network)
    for n, value in work.delta.parameters.items():
        assert torch.equal(value, given[n][0])
        assert value.requires_grad == given[n][1]
        assert value.grad is None


@pytest.mark.filterwarnings("ignore:100% of the (traces|validation answers of step 0) were cut")
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_nothing_keeps_a_model_alive_that_its_owner_let_go(family):
    work = Work(family)
    never = lambda *_: None
    for name in ("learn_circuit", "update", "gated", "attention_through", "active", "verify_components"):
        getattr(work, name)(never)
    lives = [weakref.ref(work.network), *(weakref.ref(layer.attention) for layer in work.model.components.layers)]
    del work
    gc.collect()
    assert [life() for life in lives] == [None] * len(lives)


def test_attention_of_a_configuration_within_another_is_put_back_too():
    config: Any = Gemma3Config()
    config._attn_implementation = {"": "sdpa", "text_config": "eager"}
    model: Any = SimpleNamespace(config=config, modules=lambda: [SimpleNamespace(config=config.text_config)])
    with attention_through(model, lambda _: lambda *_: None):
        assert config.text_config._attn_implementation not in ("sdpa", "eager")
    assert (config._attn_implementation, config.text_config._attn_implementation) == ("sdpa", "eager")


@pytest.mark.parametrize("bars", [True, False])
def test_loading_leaves_the_process_as_it_was_also_where_it_fails(bars, tmp_path):
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        cca.open_model("bundled", device="cpu")
        before = of_process()
        cca.open_model("bundled", device="cpu")
        assert of_process() == before
        with pytest.raises(cca.InputError):
            cca.open_model("bundled", device="cpu", attention="flash_attention_3")
        assert of_process() == before
    finally:
        logging.enable_progress_bar()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_grad_mode_of_the_caller_does_not_matter(mode):
    work = Work("qwen2")
    plain = learn_gates(work.network, work.model.components, work.pivots, CIRCUIT).gates
    with mode():
        assert torch.equal(learn_gates(work.network, work.model.components, work.pivots, CIRCUIT).gates, plain)
        work.train(lambda *_: None)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_gates_within_gates_multiply(family):
    work = Work(family)
    parts, ids = work.model.components, torch.tensor([[1, 2, 3, 4]])
    generator = torch.Generator().manual_seed(0)
    outer, inner = (torch.rand(parts.size, generator=generator) for _ in range(2))
    with torch.no_grad(), gated(work.network, parts, outer * inner * 2):
        wanted = work.network(input_ids=ids).logits
    with torch.no_grad(), gated(work.network, parts, outer):
        with gated(work.network, parts, inner):
            torch.testing.assert_close(work.network(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
        with gated(work.network, parts, torch.full((parts.size,), 0.5)):
            once = work.network(input_ids=ids).logits
        torch.testing.assert_close(work.network(input_ids=ids).logits, once, atol=1e-5, rtol=1e-4)


def test_experts_within_experts_add_up_and_leave_nothing():
    work = Work("mixtral")
    module = next(part.down for layer in work.model.components.layers for part in layer.feed_forward)
    rows = Rows(torch.tensor([1, 30]), torch.ones(2, module.gate_up_proj.shape[-1]))
    hidden, chosen, share = torch.randn(3, 32), torch.tensor([[0], [1], [2]]), torch.ones(3, 1)
    with torch.no_grad():
        with with_experts(module, rows=rows), with_experts(module, rows=rows):
            both = module(hidden, chosen, share)
        with with_experts(module, rows=Rows(rows.index, rows.values * 2)):
            torch.testing.assert_close(module(hidden, chosen, share), both, atol=1e-5, rtol=1e-4)
    assert "_cca_experts" not in vars(module)
