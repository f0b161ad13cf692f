"""The last stage of a run but its report: base against updated model on every evaluation set, and the summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cca.controls.load import load_intervention
from cca.evaluation.choices import choices
from cca.evaluation.drift import Text, drift, plain_texts, solution_texts
from cca.evaluation.harness.run import Progress as TaskProgress
from cca.evaluation.harness.run import check_tasks, run_tasks
from cca.evaluation.pivot_kinds import between
from cca.evaluation.results import Drift, ModelRead, RoundSummary, Summary
from cca.evaluation.scores import answer, evaluated_sets
from cca.evaluation.summarize import (
    by_skill,
    circuit_summary,
    comparisons,
    pivot_summary,
    task_comparisons,
    update_summary,
)
from cca.io import from_json
from cca.method.circuit import Circuit
from cca.method.traces import by_length
from cca.model.intervention import Intervention
from cca.problems.splits import ProblemSizes
from cca.records import (
    Choice,
    Metric,
    Pivot,
    Problem,
    ProblemSet,
    Score,
    TaskScore,
    TracePair,
    Which,
    WithoutPivot,
    best_of,
    problem_of,
)
from cca.run.journal import Keep, journalled
from cca.run.run import Run, read_text
from cca.run.stages.diagnose import diagnose
from cca.run.writing import answers_of
from cca.show.progress import Bar

T = TypeVar("T")
Sets = Mapping[ProblemSet, Sequence[Problem]]
_BOTH: tuple[Which, Which] = ("base", "updated")
_TARGET, _HELD_OUT = ProblemSet("test", None), ProblemSet("held_out", None)


def work(run: Run) -> None:
    """Write scores.jsonl, choices.jsonl and summary.json."""
    config, folder = run.config, run.folder
    intervention = load_intervention(folder.final_delta(), run.model.network.device)
    metrics = folder.read("metrics.jsonl", Metric)
    # where no step was kept the two are one model: a second reading would take as long, and in 16 bits or on a GPU
    # could differ by rounding
    change = intervention if best_of(metrics).step else None
    sets = evaluated_sets(run.problems)
    scores = _answers(run, change, sets)
    drifts = _drifts(run, change, "drift", {name: _solutions(run, found) for name, found in sets.items()})
    text_drift = _drifts(run, change, "drift on text", _texts(run))
    made_of = _choices(run, change)
    tasks = _tasks(run, change)
    found = comparisons(scores, drifts, config.seed)
    problems = {p.id: p for p in run.problems}
    turns = {
        p.problem: between(p, run.prompter, problem_of(p, problems, "pivots.jsonl").answer) for p in run.found_pivots()
    }
    learned = {p.problem for p in run.pivots()}
    diagnosis = diagnose(
        run, made_of, [turn for name, turn in turns.items() if name in learned], sets[_TARGET], scores, found[_TARGET]
    )
    benchmarks = task_comparisons(tasks["base"], tasks["updated"], config.seed) if tasks else {}
    summary = Summary(
        model=ModelRead(config.model.path, run.model.revision),
        method=config.update.method,
        pivot_method=config.pivots.method,
        seed=config.seed,
        problems=from_json(json.dumps(folder.kept("problems", "trace")), ProblemSizes, "manifest.json, problems"),
        pivots=pivot_summary(
            folder.read("traces.jsonl", TracePair),
            folder.read("without_pivot.jsonl", WithoutPivot),
            _by_method(run),
            config.pivots.method,
            {problem: turn.kind for problem, turn in turns.items()},
            made_of,
            frozenset(turns.keys() - learned),
        ),
        circuit=circuit_summary(Circuit.load(folder.file("circuit.safetensors"))),
        update=update_summary(intervention, metrics, folder.noted("learning_rate", "update")),
        target=found[_TARGET],
        held_out_templates=found.get(_HELD_OUT),
        transfer=by_skill(found, "transfer"),
        retention=by_skill(found, "retention") | benchmarks,
        text_drift=text_drift,
        rounds=folder.read("rounds.jsonl", RoundSummary),
        diagnosis=diagnosis,
    )
    folder.write_one("summary.json", summary)


def _by_method(run: Run) -> dict[str, list[Pivot]]:
    found: dict[str, list[Pivot]] = {run.config.pivots.method: []}
    for pivot in run.folder.read("pivots.jsonl", Pivot):
        found.setdefault(pivot.method, []).append(pivot)
    return found


def _answers(run: Run, change: Intervention | None, sets: Sets) -> list[Score]:
    engine, limit = run.model.engine, run.config.answer_limit.tokens
    writing = answers_of(run)
    models = _read(change)
    there = {score.problem for score in run.folder.recover("scores.jsonl", Score) if score.model == "base"}
    if known := [score for score in run.folder.read("base.jsonl", Score) if score.problem not in there]:
        run.folder.append("scores.jsonl", known)
    ordered = [p for problems in sets.values() for p in by_length(problems, run.prompter)]

    def answers(left: list[tuple[Which, Problem]], keep: Keep[Score]) -> None:
        for which in models:
            problems = [p for of, p in left if of == which]
            with engine.changed(change) if change and which == "updated" else nullcontext():
                answer(
                    engine,
                    run.prompter,
                    problems,
                    model=which,
                    max_new_tokens=limit,
                    slots=run.config.evaluation.batch,
                    done=lambda score: keep([score]),
                    watch=writing.watch,
                )

    items: dict[tuple[Which, str], tuple[Which, Problem]] = {
        (which, p.id): (which, p) for p in ordered for which in models
    }
    scores = journalled(
        run.folder,
        run.display,
        "evaluate",
        "scores.jsonl",
        Score,
        items,
        lambda score: (score.model, score.problem),
        answers,
        each=1,
        shown=shown,
        writing=writing,
        unit="answers",
    )
    if not change:
        scores = [of for score in scores for of in (score, replace(score, model="updated"))]
        run.folder.write("scores.jsonl", scores)
    return scores


def _read(change: Intervention | None) -> Sequence[Which]:
    """The models that are read; what the updated one gives is otherwise what the base does."""
    return _BOTH if change else _BOTH[:1]


def _made(network: Any, which: Which, change: Intervention | None) -> AbstractContextManager[None]:
    """The network is the one of the two models within the context."""
    return change.active(network) if change and which == "updated" else nullcontext()


def shown(scores: Sequence[Score]) -> tuple[str, str]:
    """The current figure: on the set at work, accuracy of the models on the problems that both have answered."""
    last = scores[-1]
    correct = {(s.model, s.problem): s.correct for s in scores if s.set == last.set}
    ids = [problem for model, problem in correct if model == last.model]
    models = _BOTH if last.model == "updated" else _BOTH[:1]  # the base model answers first
    share = " -> ".join(f"{sum(correct[model, i] for i in ids) / len(ids):.1%}" for model in models)
    return "evaluated", f"{last.set.name} {share} of {len(ids):,}"


def _choices(run: Run, change: Intervention | None) -> list[Choice]:
    """Write choices.jsonl: what both models make of the pivots."""
    network, batch = run.model.network, run.config.update.batch
    pivots = run.pivots_of("train") + run.pivots_of("validation")
    models, found = _read(change), list[Choice]()
    tokens = len(models) * sum(len(p.prefix) for p in pivots)
    with run.display.reading("pivots under both models", tokens) as read:
        for which in models:
            with _made(network, which, change):
                found += choices(network, pivots, model=which, batch=batch, progress=read)
    if not change:
        found += [replace(choice, model="updated") for choice in found]
    run.folder.write("choices.jsonl", found)
    return found


def _tasks(run: Run, change: Intervention | None) -> dict[Which, list[TaskScore]]:
    """Scores of the benchmarks by model; a model that is finished is not run again."""
    options, network = run.config.evaluation, run.model.network
    if not options.tasks:
        return {}
    if left_out := check_tasks(options.tasks, options.task_folder, shots=options.task_shots).left_out:
        run.warn("evaluate", f"without local files, these benchmarks are left out: {', '.join(left_out)}")
    found: dict[Which, list[TaskScore]] = {}
    for which in _read(change):
        name = f"{which}_tasks.jsonl"
        if not run.folder.file(name).exists():
            with (
                _made(network, which, change),
                _requests(run, f"benchmarks, {which} model") as answered,
            ):
                scores = run_tasks(
                    network,
                    run.model.tokenizer,
                    options.tasks,
                    data=options.task_folder,
                    limit=options.task_limit or None,
                    shots=options.task_shots,
                    batch_size=options.batch,
                    seed=run.config.seed,
                    progress=answered,
                )
            run.folder.write(name, scores)
        found[which] = run.folder.read(name, TaskScore)
    if not change:
        found["updated"] = found["base"]
        run.folder.write("updated_tasks.jsonl", found["base"])
    return found


@contextmanager
def _requests(run: Run, what: str) -> Iterator[TaskProgress]:
    """Counts the requests of benchmarks, each kind on a bar of its own."""
    bar: Bar | None = None
    run.display.doing(what)
    with ExitStack() as bars:

        def answered(tokens: int, done: int, of: int) -> None:
            nonlocal bar
            if bar is None or done < bar.done or bar.total != of:  # the next kind
                bars.close()
                bar = bars.enter_context(run.display.bar(what, of, "requests"))
            bar.done = done
            bar.work(tokens)

        yield answered


def _solutions(run: Run, problems: Sequence[Problem]) -> list[Text]:
    return solution_texts(run.prompter, problems, run.config.evaluation.drift_problems)


def _texts(run: Run) -> dict[str, list[Text]]:
    return {
        Path(file).name: plain_texts(run.model.tokenizer.encode(read_text(file))) for file in run.config.evaluation.text
    }


def _drifts(run: Run, change: Intervention | None, what: str, texts: Mapping[T, Sequence[Text]]) -> dict[T, Drift]:
    """The drift on each of `texts` that has any."""
    network, batch = run.model.network, run.config.update.batch
    tokens = 2 * sum(text.tokens for found in texts.values() for text in found)
    if not tokens:
        return {}
    if not change:
        return {name: Drift(0.0, 1.0, sum(len(t.written) for t in found)) for name, found in texts.items() if found}
    with run.display.reading(what, tokens) as read:
        return {name: drift(network, change, found, batch, read) for name, found in texts.items() if found}
