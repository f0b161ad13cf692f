"""Ordinary fine-tuning and LoRA, with trl's SFTTrainer, on worked solutions: what a comparison puts beside the circuit.

Both train a copy, so that the caller's model only ever holds a change while it is measured, in the way in which the
change will be evaluated later. trl, peft and datasets take seconds to import and are optional: nothing here needs them
before `fine_tune` runs.
"""

import copy
import gc
import importlib.util
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cca.controls.lora import LowRank
from cca.controls.weights import WeightChange
from cca.errors import InputError, install_command
from cca.method.course import Course, Training
from cca.method.options import UpdateOptions
from cca.method.update import Progress, Work
from cca.model.intervention import Intervention
from cca.model.recompute import is_offloaded, recomputed
from cca.model.state import frozen
from cca.records import Metric

_SETTINGS: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "bf16": False,  # trl's default is mixed precision
    "gradient_checkpointing": None,
    "router_aux_loss_coef": 0.0,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
_NOT_LEARNED = -100
"""The label of a token that is given."""


Measure = Callable[[int, float | None], Metric]


class Solved(NamedTuple):
    """A problem's prompt and the worked solution to learn, with its end token. Token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Lora(NamedTuple):
    """LoRA (Hu et al. 2021): weight + alpha / rank x B A, with B 0 at first, and no biases.

    targets: modules or weights of linear layers, by whole name or by its last parts (``q_proj``). dropout: the share of
    the input to A that is left out in training.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0


def check_installed() -> None:
    """See, without importing anything, that trl and peft are there.

    Raises:
        InputError: they are not.
    """
    missing = [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"fine-tuning needs {' and '.join(missing)}; install what is missing with: {install_command(*missing)}"
        )


def rounded(dtype: str) -> InputError:
    """What says that weights of this type cannot all be trained."""
    return InputError(
        f"full fine-tuning needs float32 weights, since small steps are lost in the rounding of {dtype}; set "
        "model.dtype to float32, or leave finetune out"
    )


def fine_tune(
    network: PreTrainedModel,
    examples: Sequence[Solved],
    measure: Measure,
    options: UpdateOptions,
    *,
    lora: Lora | None,
    seed: int,
    pad_token: int,
    recompute: Sequence[nn.Module] = (),
    progress: Progress | None = None,
    work: Work | None = None,
) -> Training[Intervention]:
    """Train all weights, or a LoRA, to write the answers of `examples`; the change of the best measured epoch.

    An epoch is one pass over `examples` in shuffled batches. The loss is the mean negative log-likelihood of a batch's
    answer tokens, end token included; nothing is added for the routers of a mixture. AdamW as SFTTrainer sets it up
    (betas 0.9 and 0.999, no weight decay, gradients clipped to norm 1), its parameters in float32, at a constant rate
    without warm-up: training stops early, and a decay would make every epoch depend on how many were planned. The
    weights below a LoRA keep their type.

    Args:
        network: only ever holds a change while it is measured; it and all that training draws on besides (random
            states, environment) are afterwards as they were.
        measure: from an epoch and the mean loss over its batches, the metric of the network, which holds the change
            meanwhile. Called at epoch 0 (loss None: no change) and where the options say.
        options: of which `steps` are epochs, and `solution_batch` is the batch size.
        lora: None trains all weights.
        pad_token: any token id; padding is masked by length, never by this id.
        recompute: layers whose activations are computed again in the backward pass.
        progress: epoch, epochs, metric.
        work: told after each batch how many tokens it read, padding included, and how many epochs are done, the part
            of this one included.

    Returns:
        A `WeightChange` of all weights, or a `LowRank` of those that the LoRA targets. Ties go to the earlier epoch.

    Raises:
        InputError: trl or peft is missing, the model is offloaded, all of its weights are to be trained and are not
            float32, or a target is no linear layer.
        FloatingPointError: the loss is not finite.
    """
    check_installed()
    _check_weights(network, lora)
    adapted = target_modules(network, lora.targets) if lora else []
    batches = math.ceil(len(examples) / options.solution_batch)
    epochs = _Epochs(network, measure, options, progress, work, batches)
    with _restored(), TemporaryDirectory(prefix="cca-") as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "learning_rate": options.learning_rate,
            "num_train_epochs": options.steps,
            "per_device_train_batch_size": options.solution_batch,
            "seed": seed,
            "use_cpu": network.device.type == "cpu",
        }
        adapter = _adapter(lora, adapted) if lora else None
        _train(network, examples, epochs, settings | _SETTINGS, pad_token, recompute, adapter)
    gc.collect()  # the trainer and its copy of the model hold each other
    return epochs.course.result(epochs.stopped)


def target_modules(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The names of the linear layers that `targets` name.

    Raises:
        InputError: a target names none, or something else.
    """
    found: list[str] = []
    weights = dict(model.named_parameters(remove_duplicate=False))
    for target in targets:
        ending = "." + target.removesuffix(".weight")
        names = [name for name in weights if f".{name.removesuffix('.weight')}".endswith(ending)]
        if not names:
            raise InputError(f"LoRA: the model has no weight {target!r}; name modules (q_proj) or whole weights")
        for name in names:
            module = model.get_submodule(name.rpartition(".")[0])
            if weights[name].dim() == 3:
                why = "it holds the weights of several experts"
            elif not isinstance(module, nn.Linear | Conv1D) or not name.endswith(".weight"):
                why = "it is not the weight of a linear layer"
            elif module is model.get_output_embeddings():
                why = "it is the output embedding, which trl reads without its adapter"
            else:
                found.append(name.removesuffix(".weight"))
                continue
            raise InputError(f"LoRA cannot change {name}: {why}; choose other targets, or full fine-tuning")
    return list(dict.fromkeys(found))


class _Epochs:
    """Measures the network as training goes on, and keeps the change of the best epoch."""

    def __init__(
        self,
        network: PreTrainedModel,
        measure: Measure,
        options: UpdateOptions,
        progress: Progress | None,
        work: Work | None,
        batches: int,
    ):
        """batches: of an epoch."""
        self.network, self.measure, self.options, self.progress = network, measure, options, progress
        self.work, self.batches = work, batches
        self.course: Course[Intervention] = Course(options.patience, WeightChange({}))
        self.epoch, self.stopped = 0, "epochs"
        self.losses: list[float] = []
        """Of the batches of the epoch that is running."""

    @torch.no_grad()
    def look(self, change: Intervention, loss: float | None = None) -> None:
        """Measure the network with `change` on."""
        with change.active(self.network), frozen(self.network):
            metric = self.measure(self.epoch, loss)
        self.course.record(metric, lambda: change)
        if self.progress:
            self.progress(self.epoch, self.options.steps, metric)

    def batch_done(self, loss: float, tokens: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"epoch {self.epoch + 1}: the loss is {loss:g}; try a lower learning rate")
        self.losses.append(loss)
        if self.work:
            self.work(tokens, self.epoch + len(self.losses) / self.batches)

    def epoch_done(self, change: Callable[[], Intervention]) -> bool:
        """Whether to stop."""
        self.epoch += 1
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        if self.progress:
            self.progress(self.epoch, self.options.steps, None)
        if self.options.validated(self.epoch):
            self.look(change(), loss)
        if self.epoch < self.options.steps and self.course.exhausted:
            self.stopped = "patience"
        return self.stopped == "patience"


def _train(
    model: PreTrainedModel,
    examples: Sequence[Solved],
    epochs: _Epochs,
    settings: dict[str, Any],
    pad_token: int,
    recompute: Sequence[nn.Module],
    adapter: Any,
) -> None:
    """Train a copy of `model`: all weights, or `adapter` (a LoraConfig)."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    memo: dict[int, Any] = {}
    if adapter:  # leaves the weights alone, so the copy can share them
        memo |= {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    trained = copy.deepcopy(model, memo).requires_grad_()  # peft will freeze all but its adapter

    def change() -> Intervention:
        return _lora_change(trained) if adapter else _full_change(model, trained)

    trainer_class, callback = _reporting_to(epochs, change)
    data = Dataset.from_dict(
        {
            "input_ids": [[*e.prompt, *e.answer] for e in examples],
            "labels": [[_NOT_LEARNED] * len(e.prompt) + [*e.answer] for e in examples],
        }
    )
    wanted = {f"{name}.weight" for name in adapter.target_modules} if adapter else set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries deprecate in one another is not the caller's concern
        options = SFTConfig(**settings)
        options._n_gpu = min(options.n_gpu, 1)  # transformers would use every GPU it sees, which trl refuses
        try:
            trainer = trainer_class(
                trained,
                options,
                data_collator=DataCollatorForLanguageModeling(pad_token),
                train_dataset=data,
                processing_class=PreTrainedTokenizerBase(),  # trl wants one, token ids need none
                callbacks=[callback],
                peft_config=adapter,
            )
        except ValueError as error:
            raise InputError(f"trl cannot train this model: {error}; choose other targets, or another model") from error
    found = set(_lora_layers(trained)) if adapter else set[str]()
    if found != wanted:  # in a mixture peft reads some names as those of its experts
        other, left = (", ".join(sorted(names)) for names in (found - wanted, wanted - found))
        raise InputError(f"LoRA: peft would adapt {other} in place of {left} in this model; choose other targets")
    trainer.remove_callback(PrinterCallback)
    with recomputed([memo[id(layer)] for layer in recompute]):
        trainer.train()


def _reporting_to(epochs: _Epochs, change: Callable[[], Intervention]) -> tuple[type[Any], Any]:
    """A trainer's class and a callback that tell `epochs` of each batch and each epoch."""
    from transformers import TrainerCallback
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _send_telemetry(self) -> None:
            """Tell nobody: trl would report every run to huggingface.co."""

        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if inputs["input_ids"].device.type == "cpu":
                return _answer_loss(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            tokens = inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *args, **kwargs)
            epochs.batch_done(loss.item(), tokens)
            return loss

    class Epochs(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            epochs.look(change())

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            control.should_training_stop |= epochs.epoch_done(change)

    return Trainer, Epochs()


def _answer_loss(model: nn.Module, tokens: Tensor, there: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens. trl's is the same, but where there is no Triton it takes the
    logits of every token of the prompts as well, which with a large vocabulary is half as long as the layers."""
    answered = labels != _NOT_LEARNED
    start = max(1, int(answered.any(0).nonzero()[0]))  # nothing says the first token of all
    kept = labels.shape[1] - start + 1
    logits = model(input_ids=tokens, attention_mask=there, use_cache=False, logits_to_keep=kept).logits[:, :-1]
    answered, wanted = answered[:, start:], labels[:, start:]
    return nn.functional.cross_entropy(logits[answered].float(), wanted[answered])


def _adapter(lora: Lora, names: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )


def _full_change(model: nn.Module, trained: nn.Module) -> WeightChange:
    """Trained minus base weights, on the CPU."""
    found = trained.named_parameters()
    return WeightChange({name: p.detach().cpu() - model.get_parameter(name).detach().cpu() for name, p in found})


def _lora_layers(trained: nn.Module) -> dict[str, Any]:
    """The modules with an adapter by the name of the weight that it changes."""
    from peft.tuners.lora import LoraLayer

    return {f"{name}.weight": module for name, module in trained.named_modules() if isinstance(module, LoraLayer)}


def _lora_change(trained: nn.Module) -> LowRank:
    """The adapters as they are now."""
    layers = _lora_layers(trained)

    def copies(side: str) -> dict[str, Tensor]:
        return {name: getattr(layer, side)["default"].weight.detach().clone() for name, layer in layers.items()}

    (scale,) = {layer.scaling["default"] for layer in layers.values()}
    return LowRank(copies("lora_A"), copies("lora_B"), scale)


def _check_weights(model: PreTrainedModel, lora: Lora | None) -> None:
    if is_offloaded(model):
        raise InputError(
            "fine-tuning cannot train an offloaded model; leave model.device_map out, or choose a smaller one"
        )
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}
    if types and not lora:
        raise rounded(min(types))


@contextmanager
def _restored() -> Iterator[None]:
    """Afterwards what a trainer changes in the process is as it was: random states, environment, accelerate's state."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    cuda = torch.cuda.is_initialized()
    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in states]
    environment, python, numpy = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # would overrule that training is in float32
        with (
            torch.cuda.device(torch.cuda.current_device() if cuda else -1),
            torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else ()),
        ):
            yield
    finally:
        for state, before in zip(states, kept, strict=True):
            state.clear()
            state.update(before)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        os.environ.clear()
        os.environ.update(environment)
