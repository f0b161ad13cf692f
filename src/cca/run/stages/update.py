"""Stage 3 of a run: train what its method trains, keep the best validated step; then further rounds, where wanted."""

from collections.abc import Callable
from dataclasses import replace

import torch

from cca.controls.fine_tuning import Lora, Solved, fine_tune
from cca.controls.lora import LowRank
from cca.controls.methods import OF_SOLUTIONS
from cca.controls.start import start
from cca.evaluation.results import RoundSummary, Validated
from cca.evaluation.stats import wilson
from cca.method.circuit import Circuit
from cca.method.course import Training
from cca.method.processes import ALONE, Processes
from cca.method.rounds import Round, further_rounds
from cca.method.traces import cut_note
from cca.method.update import (
    Progress,
    Validation,
    Work,
    cut_in_validation,
    held_out_margins,
    measured,
    own_problems,
    read_twice,
    train,
    validator,
)
from cca.model.delta import Delta
from cca.model.engine import Transformers
from cca.model.intervention import Intervention, Trainable
from cca.model.open import Model
from cca.records import Metric, best_of
from cca.run.changes import open_folder
from cca.run.run import Run
from cca.run.stages import OF_A_ROUND
from cca.run.writing import answers_of
from cca.show.progress import Bar, Display


def work(run: Run) -> None:
    """Write delta.safetensors and metrics.jsonl, and rounds.jsonl with a line for each round.

    Round r > 1 is a run of one round in the folder round-r, whose base is the model as the rounds before it left it.
    total.safetensors is the sum of the deltas, where there was more than one round.
    """
    _update_once(run)
    lines = [_figures(run, 1)]

    def again(number: int, total: Delta) -> Round:
        base = run.folder.file("total.safetensors")
        total.save(base)
        run.display.figure("round", f"{number} of at most {run.config.rounds}")
        config = run.config.model_copy(update={"rounds": 1})
        with open_folder(run.folder.file(f"round-{number}"), config) as folder:
            folder.verify()
            folder.manifest["problems"] = run.folder.manifest["problems"]
            folder.write("problems.jsonl", run.problems)  # those of the run, whatever became of their source
            part = Run(folder, config, _Within(run.display))
            part.tracking, part.base = run.tracking, base
            part.prompter = run.prompter
            part.use(run.model)
            part.execute(OF_A_ROUND)
            lines.append(_figures(part, number))
            return _round(part)

    if run.config.rounds > 1:
        total, lacking = further_rounds(run.model, _round(run), again, run.config.rounds)
        if lacking:
            run.warn("update", lacking)
        if len(lines) > 1:
            total.save(run.folder.file("total.safetensors"))
    run.folder.write("rounds.jsonl", lines)


class _Within(Display):
    """The display of a round: its bars and figures are those of the run, whose stages stay as they are."""

    def __init__(self, outer: Display):
        super().__init__(outer.now)
        self.bar, self.doing, self.figure = outer.bar, outer.doing, outer.figure


def _round(run: Run) -> Round:
    delta = Delta.load(run.folder.file("delta.safetensors"), device=run.model.network.device)
    return Round(delta, best_of(run.folder.read("metrics.jsonl", Metric)).step)


def _figures(run: Run, number: int) -> RoundSummary:
    metrics = run.folder.read("metrics.jsonl", Metric)
    kept = best_of(metrics)
    return RoundSummary(
        round=number,
        pivots=len(run.pivots_of("train")),
        held_out_pivots=len(run.pivots_of("validation")),
        density=Circuit.load(run.folder.file("circuit.safetensors")).density,
        best_step=kept.step,
        validation=Validated(kept.n, metrics[0].accuracy, kept.accuracy),
    )


def _update_once(run: Run) -> None:
    """Write delta.safetensors and metrics.jsonl."""
    options = run.config.update
    run.model  # is loaded before its work is counted  # noqa: B018
    with run.display.bar("update", options.steps, "steps", at_most=True) as bar:
        bar.expect(1 + _validations(run, 0))

        def work(tokens: int, steps: float) -> None:
            if tokens:
                bar.work(tokens, steps - bar.done)
            else:
                bar.resume(int(steps))
                bar.expect(_validations(run, bar.done))

        def report(step: int, _: int, metric: Metric | None) -> None:
            if metric:
                low, high = wilson(round(metric.accuracy * metric.n), metric.n)
                said = f"{metric.accuracy:.1%} ({low:.1%} to {high:.1%}){cut_note(metric.cut or 0.0)}"
                bar.figure("validation", said)
                if metric.loss is not None:
                    bar.figure("target loss", f"{metric.loss:.3f}")
                run.track(
                    "update",
                    step=step,
                    loss=metric.loss,
                    accuracy=metric.accuracy,
                    margin=metric.margin,
                    preference_accuracy=metric.preference_accuracy,
                )
            bar.reach(step)

        learn = _learn_solutions if options.method in OF_SOLUTIONS else _learn_pivots
        result = learn(run, bar, report, work)
    if said := cut_in_validation(result.metrics, *run.config.answer_limit):
        run.warn("update", said)
    if result.best_step == 0:
        run.warn("update", "no step of the update helped on the validation problems: the model stays as it was")
    if result.rate is not None:
        run.folder.note("learning_rate", "update", result.rate)
    result.intervention.save(run.folder.file("delta.safetensors"))
    run.folder.write("metrics.jsonl", result.metrics)


def _validations(run: Run, step: int) -> int:
    """How many are still to come after `step`."""
    options = run.config.update
    return sum(options.validated(later) for later in range(step + 1, options.steps + 1))


def _validator(run: Run, bar: Bar, model: Model, processes: Processes = ALONE) -> Callable[[Intervention], Validation]:
    """A validation of `model` that counts this process's work on a bar within `bar`."""
    held, writing = [p for p in run.problems if p.split == "validation"], answers_of(run)
    limit, batch = run.config.answer_limit.tokens, run.config.evaluation.batch
    answer = validator(model, held, limit, batch, writing.watch, processes)
    own = len(own_problems(held, model, processes))

    def validate(intervention: Intervention) -> Validation:
        with bar.bar("validation", own, "problems") as inner, writing.told(inner, own):
            return answer(intervention)

    return validate


def helper(run: Run, processes: Processes) -> Callable[[], None]:
    """What another process than the first does."""

    def train() -> None:
        with run.display.bar("update", run.config.update.steps, "steps") as bar:
            _train(run, bar, processes)

    return train


def _learn_pivots(run: Run, bar: Bar, report: Progress, work: Work) -> Training:
    with run.together("update") as processes:
        return _train(run, bar, processes, report, work)


def _train(
    run: Run, bar: Bar, processes: Processes, report: Progress | None = None, work: Work | None = None
) -> Training:
    options, model, pivots = run.config.update, run.model, run.pivots_of("train")
    circuit = Circuit.load(run.folder.file("circuit.safetensors"))
    untrained = start(model, circuit, pivots, options, run.config.seed, bar.work, processes)
    bar.resume(0)  # what that took says nothing about the steps

    def in_step(trained: Trainable, step: int) -> Trainable:
        dropout = options.lora_dropout
        return trained.dropping(dropout, run.config.seed, step) if dropout and isinstance(trained, LowRank) else trained

    return train(
        model.network,
        untrained,
        pivots,
        run.pivots_of("validation"),
        _validator(run, bar, model, processes),
        options,
        optimizer="adam" if options.method == "lora-pivots" else "descent",
        in_step=in_step,
        recompute=read_twice(model, options),
        state_path=run.folder.file("update.partial.safetensors"),
        processes=processes,
        progress=report,
        work=work,
    )


def _learn_solutions(run: Run, bar: Bar, report: Progress, work: Work) -> Training:
    """The worked solutions of the training problems; an epoch of them counts as a step."""
    options, model, prompter = run.config.update, run.model, run.prompter
    # the weights are trained here, and another process knows nothing of that
    here = replace(model, engine=Transformers(model.network))
    held_out, validate, none = run.pivots_of("validation"), _validator(run, bar, here), Delta({})

    def measure(epoch: int, loss: float | None) -> Metric:
        margins = held_out_margins(model.network, none, held_out, options.batch, bar.work)
        return measured(epoch, loss, margins, validate(none))

    everything = torch.ones(model.components.size, dtype=torch.bool)
    targets = tuple(model.components.rows(everything))
    solved = [Solved(prompter.prompt(p), prompter.reference(p.solution)) for p in run.problems if p.split == "train"]
    pad = model.tokenizer.pad_token_id
    return fine_tune(
        model.network,
        solved,
        measure,
        options,
        lora=Lora(options.lora_rank, options.lora_alpha, targets, options.lora_dropout)
        if options.method == "lora"
        else None,
        seed=run.config.seed,
        pad_token=pad if pad is not None else min(prompter.end_tokens),
        recompute=read_twice(model, options),
        progress=report,
        work=work,
    )
