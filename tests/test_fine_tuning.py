import copy
import functools
import gc
import importlib.util
import itertools
import os
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_qwen2
from families import family_model
from transformers.pytorch_utils import Conv1D

import cca.model.recompute
from cca.controls.fine_tuning import Lora, Solved, check_installed, fine_tune
from cca.controls.lora import LowRank
from cca.controls.weights import WeightChange
from cca.errors import InputError
from cca.method.options import UpdateOptions
from cca.records import Metric

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "peft")), reason="needs trl and peft"
)

VOCABULARY = 60
END = 0
LORA = Lora(rank=2, alpha=6, targets=("q_proj", "model.layers.1.mlp.down_proj.weight"))
GPT2_LORA = Lora(rank=2, alpha=6, targets=("c_attn", "c_fc"))
MIXTURE_LORA = LORA._replace(targets=("q_proj", "o_proj"))
NO_DROPOUT: dict[str, Any] = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Each training collects garbage, which takes most of its time here unless it knows what stays."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def model():
    return tiny_qwen2(vocab_size=VOCABULARY)


def examples(count: int = 5) -> list[Solved]:
    """Prompts and answers of different lengths, each ending with the end token, which is also the padding's."""
    draw = random.Random(1)
    tokens = lambda length: tuple(draw.randrange(1, VOCABULARY) for _ in range(length))
    return [Solved(tokens(draw.randrange(2, 7)), (*tokens(draw.randrange(1, 8)), END)) for _ in range(count)]


def rising(epoch: int, loss: float | None) -> Metric:
    return Metric(epoch, loss, 0.0, 0.0, epoch / 100, 10)


def tuned(model, measure=rising, solved=None, **changes):
    """Three epochs, measured at the first and the last, unless `changes` say otherwise."""
    options = UpdateOptions(learning_rate=0.01, steps=3, validate_every=100, patience=9, solution_batch=8)
    fields = {k: changes.pop(k) for k in list(changes) if k in UpdateOptions.model_fields}
    others = {"lora": None, "seed": 5, "pad_token": END} | changes
    return fine_tune(model, solved or examples(), measure, options.changed(fields), **others)


def dense(model, change) -> dict[str, torch.Tensor]:
    """What an intervention adds to each weight, shaped like it."""
    if isinstance(change, WeightChange):
        return change.weights
    added = {name: change.scale * change.up[name] @ down for name, down in change.down.items()}
    transposed = {n: isinstance(model.get_submodule(n.rpartition(".")[0]), Conv1D) for n in added}
    return {name: value.T if transposed[name] else value for name, value in added.items()}


def learned(model, *args, **changes) -> dict[str, torch.Tensor]:
    return dense(model, tuned(model, *args, **changes).intervention)


def plain_loss(model, solved: list[Solved]) -> torch.Tensor:
    """Mean negative log-likelihood of the answer tokens, one example after the other and no padding."""
    found = []
    for prompt, answer in solved:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        found.append(-logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found).mean()


def descend(model, solved: list[Solved], steps: int) -> None:
    """AdamW by hand on whatever of `model` requires gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rule = torch.optim.AdamW(parameters, 0.01, weight_decay=0.0)
    for _ in range(steps):
        rule.zero_grad()
        plain_loss(model, solved).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rule.step()


def moved_by_hand(model, trained) -> dict[str, torch.Tensor]:
    """What a plain loop changed, by name."""
    return {name: p.detach() - model.get_parameter(name) for name, p in trained.named_parameters()}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """In norm: where a gradient is nearly zero, Adam makes a step of its rounding."""
    assert set(found) == set(wanted)
    for name, change in wanted.items():
        assert (found[name] - change).norm() <= 5e-3 * change.norm(), name


def state(model) -> dict:
    """All that a trainer could leave behind on a model."""
    return {
        "config": (model.config.to_dict(), model.generation_config.to_dict(), sorted(vars(model))),
        "modules": [(name, type(m), m.training, sorted(vars(m))) for name, m in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "weights": [(n, id(p), p.data_ptr(), p.requires_grad, p.dtype) for n, p in model.named_parameters()],
        "numbers": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def same(before: dict, after: dict) -> bool:
    numbers = zip(before.pop("numbers").values(), after.pop("numbers").values(), strict=True)
    return all(torch.equal(a, b) for a, b in numbers) and before == after


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "qwen3_moe"])
def test_full_fine_tuning_equals_plain_adamw_on_the_plain_loss(family):
    model = family_model(family, **{"gpt2": NO_DROPOUT, "qwen2": {"tie_word_embeddings": True}}.get(family, {}))
    found = learned(model)
    reference = copy.deepcopy(model).requires_grad_(True)
    descend(reference, examples(), 3)
    wanted = moved_by_hand(model, reference)
    assert all(change.norm() > 0.01 for change in wanted.values())
    if family == "gpt2":  # the key's bias shifts all scores of a query alike: no gradient but rounding
        for name in wanted:
            if name.endswith("c_attn.bias"):
                found[name][32:64] = wanted[name][32:64] = 0
    close(found, wanted)


@pytest.mark.parametrize(("family", "lora"), [("qwen2", LORA), ("gpt2", GPT2_LORA), ("qwen3_moe", MIXTURE_LORA)])
def test_a_lora_equals_the_same_adapter_trained_by_hand_and_merged(family, lora):
    from peft import LoraConfig, get_peft_model

    model = family_model(family, **NO_DROPOUT if family == "gpt2" else {})
    found = learned(model, lora=lora)
    targets = [name.removesuffix(".weight") for name in found]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2")
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(copy.deepcopy(model), config)
    descend(wrapped, examples(), 3)
    wanted = moved_by_hand(model, wrapped.merge_and_unload())
    close(found, {name: change for name, change in wanted.items() if name in found})
    assert not any(change.any() for name, change in wanted.items() if name not in found)
    assert all(change.norm() > 0.01 for change in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lora_of_16_bit_weights_is_trained_in_float32_and_is_about_that_of_float32_weights(model, dtype):
    short = copy.deepcopy(model).to(dtype)
    found, wanted = tuned(short, lora=LORA).intervention, learned(model, lora=LORA)
    assert isinstance(found, LowRank)
    assert {t.dtype for t in (*found.down.values(), *found.up.values())} == {torch.float32}
    assert {p.dtype for p in short.parameters()} == {dtype}
    for name, change in dense(short, found).items():
        assert torch.cosine_similarity(change.flatten(), wanted[name].flatten(), dim=0) > 0.9, name
    logits = lambda network: network(input_ids=torch.tensor([[3, 4, 5]])).logits[0].float()
    before = logits(short), logits(model)
    with found.active(short), found.active(model):
        moved = [(logits(of) - was).flatten() for of, was in zip((short, model), before, strict=True)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.9, "what is put on is not lost to the rounding of the weights"


def test_a_lora_changes_its_targets_alone_by_at_most_its_rank(model):
    weights = learned(model, lora=LORA)
    assert sorted(weights) == sorted(
        ["model.layers.1.mlp.down_proj.weight", *(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3))]
    )
    for name, change in weights.items():
        assert change.shape == model.get_parameter(name).shape
        sizes = torch.linalg.svdvals(change)
        assert sizes[1] > 1e-3 and sizes[2:].max() < 1e-5


def test_the_loss_is_that_of_the_answers_alone_end_token_included(model):
    solved = examples()
    assert tuned(model, steps=1).metrics[1].loss == pytest.approx(float(plain_loss(model, solved)), rel=1e-5)
    without_end = [e._replace(answer=e.answer[:-1]) for e in solved if len(e.answer) > 1]
    assert float(plain_loss(model, without_end)) != pytest.approx(float(plain_loss(model, solved)), rel=1e-3)


def test_the_end_token_is_learned_although_it_is_the_padding_too(model):
    solved = [Solved((3, 4), (5, END)), Solved((6, 7, 8, 9), (10, 11, 12, END))]
    result = tuned(model, solved=solved, steps=20)
    with result.intervention.active(model):
        for prompt, answer in solved:
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            assert tuple(logits.argmax(-1)[len(prompt) - 1 : -1].tolist()) == answer


def test_the_head_reads_no_more_of_the_prompts_than_the_answers_need(model):
    """With a vocabulary of 150,000 the logits of whole prompts take over half as long as the layers."""
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    tuned(model, solved=[Solved((3,) * 40, (5, END)), Solved((6,) * 38, (7, 8, 9, END))], steps=1)
    assert set(seen) == {5}  # the shorter prompt's last token and the four that follow


def test_a_prompt_of_no_tokens_teaches_all_of_its_answer_but_the_first(model):
    solved = [Solved((), (3, 4, END)), Solved((5, 6), (7, END))]
    said = tuned(model, solved=solved, steps=1).metrics[1].loss
    assert said == pytest.approx(float(plain_loss(model, [Solved((3,), (4, END)), solved[1]])), rel=1e-5)


def test_padding_counts_for_nothing_whatever_its_token(model):
    close(learned(model, pad_token=7), learned(model))


def test_an_epoch_is_one_pass_over_the_examples_in_batches(model):
    seen, batches, solved = [], [], examples(5)
    report = lambda epoch, epochs, metric: seen.append((epoch, epochs, metric and metric.step))
    work = lambda tokens, epochs: batches.append((tokens, epochs))
    result = tuned(model, solved=solved, steps=2, solution_batch=2, learning_rate=1e-12, progress=report, work=work)
    assert seen == [(0, 2, 0), (1, 2, None), (2, 2, None), (2, 2, 2)]
    assert [epochs for _, epochs in batches] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert sum(tokens for tokens, _ in batches) >= 2 * sum(len(e.prompt) + len(e.answer) for e in solved)
    of = functools.cache(lambda batch: float(plain_loss(model, [solved[i] for i in batch])))
    possible = [
        sum(of(tuple(sorted(order[i : i + 2]))) for i in (0, 2, 4)) / 3 for order in itertools.permutations(range(5))
    ]
    assert any(result.metrics[-1].loss == pytest.approx(loss, abs=1e-5) for loss in possible)
    assert of((0, 1, 2, 3, 4)) not in [pytest.approx(loss, abs=1e-4) for loss in possible]


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_measured_is_the_change_of_that_epoch_in_evaluation_mode(model, lora):
    base = {name: p.clone() for name, p in model.named_parameters()}
    logits = lambda: model(input_ids=torch.tensor([[3, 4, 5]])).logits.detach()
    before = logits()
    model.train()
    seen = {}

    def look(epoch, loss):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        seen[epoch] = logits()
        return rising(epoch, loss)

    result = tuned(model, look, lora=lora, validate_at={1})
    assert list(seen) == [0, 1, 3] and torch.equal(seen[0], before)
    with result.intervention.active(model):
        assert torch.equal(seen[3], logits())
    assert not torch.allclose(seen[1], seen[0], atol=1e-3) and not torch.allclose(seen[1], seen[3], atol=1e-3)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("interrupted", [False, True])
def test_model_and_process_are_afterwards_as_they_were(model, lora, interrupted, monkeypatch, tmp_path, capfd):
    from accelerate.state import AcceleratorState, PartialState
    from transformers.utils import logging

    def interrupt(epoch, loss):
        assert AcceleratorState._shared_state
        os.environ["CCA_TEST"] = "1"
        if epoch == 2:
            raise KeyboardInterrupt
        return rising(epoch, loss)

    AcceleratorState._reset_state(reset_partial_state=True)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model.get_parameter("model.norm.weight").requires_grad_(True)
    model.model.layers[1].train()
    process = lambda: (
        dict(os.environ),
        random.getstate(),
        str([x if isinstance(x, str | int | float) else x.tolist() for x in np.random.get_state()]),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        logging.get_verbosity(),
        dict(AcceleratorState._shared_state) | dict(PartialState._shared_state),
        torch.is_grad_enabled(),
    )
    before, around = state(model), process()
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            tuned(model, interrupt, lora=lora, validate_at={1, 2})
    else:
        tuned(model, lora=lora, validate_at={1, 2})
    assert same(before, state(model)) and process() == around
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lora", [None, LORA])
def test_no_copy_of_the_model_stays_in_memory(model, lora):
    tuned(model, lora=lora, steps=1)
    gc.disable()
    try:
        assert sum(type(found) is type(model) for found in gc.get_objects()) == 1
    finally:
        gc.enable()


def test_trl_tells_nobody_about_a_run(model, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("told"))
    tuned(model, steps=1)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_best_measured_epoch_is_kept_not_the_last(model, lora):
    scores = iter([0.1, 0.9, 0.9, 0.2])
    peak = lambda epoch, loss: Metric(epoch, loss, 0.0, 0.0, next(scores), 10)
    result = tuned(model, peak, lora=lora, steps=6, validate_at={2, 4})
    assert (result.best_step, [m.step for m in result.metrics], result.stopped) == (2, [0, 2, 4, 6], "epochs")
    two = learned(model, lora=lora, steps=2)
    assert all(torch.equal(change, two[name]) for name, change in dense(model, result.intervention).items())


@pytest.mark.parametrize("lora", [None, LORA])
def test_no_epoch_helped_is_an_outcome_and_patience_ends_the_training(model, lora):
    flat = lambda epoch, loss: Metric(epoch, loss, 0.0, 0.0, 0.5, 10)
    result = tuned(model, flat, lora=lora, steps=50, validate_at=range(51), patience=3)
    assert (result.best_step, result.stopped, result.metrics[-1].step) == (0, "patience", 3)
    kept = dense(model, result.intervention)
    assert kept and not any(change.any() for change in kept.values())


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_same_seed_gives_the_same_change_and_another_seed_another(model, lora):
    dropout = family_model("gpt2") if lora is None else model
    one, two, other = (learned(dropout, lora=lora, solution_batch=2, steps=2, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_lora_is_trained_with_dropout_on_its_input_which_repeats_and_is_off_while_it_is_measured(model):
    dropping = LORA._replace(dropout=0.5)
    seen = []

    def look(epoch: int, loss: float | None) -> Metric:
        with torch.no_grad():
            seen.append([float(plain_loss(model, examples())) for _ in range(2)])
        return rising(epoch, loss)

    one = learned(model, look, lora=dropping, validate_at={1, 2})
    assert all(first == second for first, second in seen)
    torch.manual_seed(99)
    close(learned(model, lora=dropping), one)
    close(learned(model, lora=dropping, recompute=list(model.model.layers)), one)
    without = learned(model, lora=LORA)
    assert all((one[name] - without[name]).norm() > 0.05 * without[name].norm() for name in one)


def test_activations_computed_again_give_the_same_change(model, monkeypatch):
    calls = []
    once = cca.model.recompute.checkpoint
    monkeypatch.setattr(
        "cca.model.recompute.checkpoint", lambda *args, **kwargs: calls.append(1) or once(*args, **kwargs)
    )
    again = learned(model, recompute=list(model.model.layers))
    assert len(calls) == 3 * 3
    close(again, learned(model))
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_lora_keeps_no_second_copy_of_the_weights(model):
    where = model.get_parameter("model.norm.weight").data_ptr()  # no target, so that measuring does not copy it
    shared = []

    def look(epoch, loss):
        parameters = [found for found in gc.get_objects() if type(found) is torch.nn.Parameter]
        shared.append(sum(p.data_ptr() == where for p in parameters))
        return rising(epoch, loss)

    tuned(model, look, lora=LORA)
    assert shared == [2, 2]


def test_training_is_in_float32_whatever_the_environment_asks_for(model, monkeypatch):
    wanted = learned(model)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    close(learned(model), wanted)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_a_loss_that_is_not_finite_stops_with_its_epoch(model):
    with pytest.raises(FloatingPointError, match=r"epoch \d: the loss is nan"):
        tuned(model, learning_rate=1e30)


def test_what_cannot_be_trained_is_refused_with_a_remedy(model):
    mixture = family_model("qwen3_moe")
    for which, target, message in (
        (mixture, "gate_up_proj", r"LoRA cannot change model\.layers\.0\.mlp\.experts\.gate_up_proj: .* experts"),
        (mixture, "mlp.gate", r"model\.layers\.0\.mlp\.gate\.weight: it is not the weight of a linear layer"),
        (model, "embed_tokens", r"model\.embed_tokens\.weight: it is not the weight of a linear layer"),
        (model, "q_proj.bias", r"q_proj\.bias: it is not the weight of a linear layer"),
        (model, "lm_head", r"lm_head\.weight: it is the output embedding"),
        (model, "proj", "no weight 'proj'"),
        (mixture, "mlp.down_proj", "in place of model\\.layers\\.1\\.mlp\\.down_proj.* choose other targets"),
        (mixture, "mlp.up_proj", "Cannot convert PEFT .*choose other targets"),
    ):
        with pytest.raises(InputError, match=message):
            tuned(which, lora=LORA._replace(targets=("o_proj", target)))
    with pytest.raises(InputError, match=r"bfloat16; set model\.dtype to float32, or leave finetune out"):
        tuned(copy.deepcopy(model).bfloat16())
    with pytest.raises(InputError, match="offloaded"):
        tuned(copy.deepcopy(model).to("meta"))


@pytest.mark.parametrize("missing", ["trl", "peft"])
def test_a_missing_package_is_named_with_how_to_install_it(model, missing, monkeypatch):
    check_installed()
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    message = rf"needs {missing}; .* -m pip install '{missing}>="
    with pytest.raises(InputError, match=message):
        check_installed()
    with pytest.raises(InputError, match=message):
        tuned(model)
