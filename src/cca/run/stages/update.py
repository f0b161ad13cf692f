"""Stage 3 of a run: train what its arm trains on the same pivots or problems, and keep the best validated step."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cca.controls.interventions import Intervention, LowRank, OutputBias, Steering, Trainable
from cca.evaluation import stats
from cca.evaluation.scores import answer_chunk
from cca.method.circuit import Circuit, random_circuit
from cca.method.traces import chunks
from cca.method.update import Update, Validation, full_gradient, held_out_margins, largest_rows, measured
from cca.model.delta import Delta
from cca.model.recompute import is_offloaded
from cca.records import Metric, Pivot
from cca.run.stages.circuit import circuit
from cca.run.stages.pivots import pivots
from cca.run.stages.rounds import further_rounds
from cca.run.stages.trace import trace
from cca.run.workspace import Workspace

SOLUTION_ARMS = ("lora", "finetune")
"""Arms that learn correct solutions in place of pivots."""


def update(run: Workspace) -> None:
    """Write delta.safetensors and metrics.jsonl; then as many more rounds as the config asks for, and rounds.jsonl."""
    update_once(run)
    further_rounds(run, {"trace": trace, "pivots": pivots, "circuit": circuit, "update": update_once})


def update_once(run: Workspace) -> None:
    """Write delta.safetensors and metrics.jsonl."""
    options, model = run.config.update, run.loaded.network
    problems = [p for p in run.problems if p.split == "validation"]
    groups = list(chunks(problems, run.prompter, run.config.evaluation.batch))

    def accuracy() -> Validation:
        right = 0
        for group in groups:
            limit = run.config.traces.max_new_tokens
            right += sum(
                s.correct for s in answer_chunk(model, run.prompter, group, arm="validation", max_new_tokens=limit)
            )
        return Validation(right / len(problems), len(problems))

    def validate(intervention: Intervention) -> Validation:
        with intervention.active(model):
            return accuracy()

    # an offloaded model's backward pass would hold every layer's weights
    again = options.gradient_checkpointing or is_offloaded(model)
    recompute = [layer.module for layer in run.components.layers] if again else []
    validate_at = {*options.validate_at, *range(options.validate_every, options.steps + 1, options.validate_every)}
    with run.display.bar("update", options.steps, "steps") as bar:

        def report(step: int, _: int, metric: Metric | None) -> None:
            if metric:
                low, high = stats.wilson(round(metric.accuracy * metric.n), metric.n)
                bar.figure("validation", f"{metric.accuracy:.1%} ({low:.1%} to {high:.1%})")
                if metric.loss is not None:
                    bar.figure("target loss", f"{metric.loss:.3f}")
            bar.reach(step)

        result: Update[Any]
        if options.arm in SOLUTION_ARMS:
            result = _learn_solutions(run, accuracy, validate_at, recompute, report)
        else:
            train, validation = run.chosen_pivots()
            result = train(
                model,
                _start(run, train),
                train,
                validation,
                validate,
                loss=options.loss,
                learning_rate=options.learning_rate,
                steps=options.steps,
                validate_at=validate_at,
                patience=options.patience,
                batch_size=options.batch,
                optimizer="adam" if options.arm == "lora-pivots" else "descent",
                recompute=recompute,
                state_path=run.folder.file("update.partial.safetensors"),
                progress=report,
            )
    if result.best_step == 0:
        run.warn("update", "no step of the update helped on the validation problems: the model stays as it was")
    result.intervention.save(run.folder.file("delta.safetensors"))
    run.folder.write("metrics.jsonl", result.metrics)


def _start(run: Workspace, train: list[Pivot]) -> Trainable:
    """What the run's arm trains, before its first step: a intervention that changes nothing."""
    options, model, parts = run.config.update, run.loaded.network, run.components
    selected = Circuit.load(run.folder.file("circuit.safetensors")).selected
    everything = torch.ones_like(selected)
    rows = sum(len(r) for r in parts.rows(selected).values())
    match options.arm:
        case "circuit":
            return Delta.zeros(model, parts.rows(selected))
        case "random":
            return Delta.zeros(model, parts.rows(random_circuit(parts, selected, run.config.seed)))
        case "all":
            return Delta.zeros(model, parts.rows(everything))
        case "gradient":
            every = Delta.zeros(model, parts.rows(everything))
            _, gradients = full_gradient(model, every, train, options.batch, options.loss)
            return Delta.zeros(model, largest_rows(every, gradients, rows))
        case "bias":
            seen = Counter(token for p in train for token in (p.desired, p.undesired))
            return OutputBias.zeros(torch.tensor(sorted(t for t, _ in seen.most_common(rows)), device=model.device))
        case "steering":
            return Steering.zeros(parts.layers[-1].name, model.config.get_text_config().hidden_size, model.device)
        case "lora-pivots":
            rank = options.lora_rank
            return LowRank.fresh(model, parts.rows(everything), rank, options.lora_alpha / rank, run.config.seed)
    raise ValueError(f"{options.arm} does not learn pivots")


def _learn_solutions(
    run: Workspace,
    accuracy: Callable[[], Validation],
    validate_at: Collection[int],
    recompute: Sequence[nn.Module],
    report: Callable[[int, int, Metric | None], None],
) -> Update[Any]:
    """The arms that learn the worked solutions of the training problems; an epoch of them counts as a step."""
    from cca.controls.fine_tuning import Lora, Solved, fine_tune

    options, model = run.config.update, run.loaded.network
    _, validation = run.chosen_pivots()
    none = Delta({})

    def measure(epoch: int, loss: float | None) -> Metric:
        held_out: Tensor = held_out_margins(model, none, validation, options.batch)
        return measured(epoch, loss, held_out, accuracy())

    targets = tuple(run.components.rows(torch.ones(run.components.size, dtype=torch.bool)))
    solved = [
        Solved(run.prompter.prompt(p), run.prompter.reference(p.solution)) for p in run.problems if p.split == "train"
    ]
    tokenizer = run.loaded.tokenizer
    return fine_tune(
        model,
        solved,
        measure,
        lora=Lora(options.lora_rank, options.lora_alpha, targets) if options.arm == "lora" else None,
        learning_rate=options.learning_rate,
        epochs=options.steps,
        validate_at=validate_at,
        patience=options.patience,
        batch_size=options.solution_batch,
        seed=run.config.seed,
        pad_token=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(run.prompter.end_tokens),
        recompute=recompute,
        progress=report,
    )
