"""The last stage of a run: base against updated model on every evaluation set, and the summary of the whole run."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from cca.controls.interventions import Intervention, load_intervention
from cca.evaluation.harness.run import TaskScore, check_tasks, run_tasks
from cca.evaluation.scores import Drift, Text, answer_chunk, choices, drift, plain_texts, set_name
from cca.evaluation.summary import circuit_summary, comparisons, pivot_summary, task_comparisons, update_summary
from cca.folder import write_text
from cca.method.circuit import Circuit
from cca.method.traces import chunks
from cca.method.update import best_of
from cca.records import Choice, Metric, Pivot, Problem, Score, TracePair, WithoutPivot
from cca.run.stages.diagnose import diagnose
from cca.run.workspace import Workspace, read_text


def evaluate(run: Workspace) -> None:
    """Write scores.jsonl, choices.jsonl and summary.json."""
    intervention = load_intervention(run.folder.final_delta(), run.loaded.network.device)
    sets: dict[str, list[Problem]] = {}
    for problem in run.problems:
        if problem.split not in ("train", "validation"):
            sets.setdefault(set_name(problem), []).append(problem)
    scores = _answers(run, intervention, sets)
    run.display.doing("drift and pivots under both models")
    drifts = _drifts(run, intervention, sets)
    made_of = _choices(run, intervention)
    tasks = _tasks(run, intervention)
    summary = _summary(run, intervention, scores, drifts, tasks)
    run.display.doing("diagnosis")
    summary["diagnosis"] = diagnose(run, made_of, sets["target"])
    write_text(run.folder.file("summary.json"), json.dumps(summary, indent=1) + "\n")


def _answers(run: Workspace, intervention: Intervention, sets: dict[str, list[Problem]]) -> list[Score]:
    model, limit = run.loaded.network, run.config.traces.max_new_tokens
    groups = [g for problems in sets.values() for g in chunks(problems, run.prompter, run.config.evaluation.batch)]
    known = {score.problem: score for score in run.folder.read("base.jsonl", Score)}

    def answer(group: list[Problem]) -> list[Score]:
        def scores(arm: str) -> list[Score]:
            return answer_chunk(model, run.prompter, group, arm=arm, max_new_tokens=limit)

        base = [known[p.id] for p in group] if all(p.id in known for p in group) else scores("base")
        with intervention.active(model):
            return base + scores("updated")

    def shown(scores: Sequence[Score]) -> tuple[str, str]:
        name = scores[-1].set
        of = {arm: [s.correct for s in scores if s.arm == arm and s.set == name] for arm in ("base", "updated")}
        share = " -> ".join(f"{sum(right) / len(right):.1%}" for right in of.values())
        return "evaluated", f"{name.replace('_', ' ')} {share} of {len(of['base']):,}"

    return run.in_chunks("evaluate", "scores.jsonl", Score, groups, lambda p: p.id, answer, each=2, shown=shown)


def _choices(run: Workspace, intervention: Intervention) -> list[Choice]:
    """Write choices.jsonl: what both models make of the pivots."""
    model, pivots, batch = (
        run.loaded.network,
        [p for part in run.chosen_pivots() for p in part],
        run.config.update.batch,
    )
    found = choices(model, pivots, arm="base", batch=batch)
    with intervention.active(model):
        found += choices(model, pivots, arm="updated", batch=batch)
    run.folder.write("choices.jsonl", found)
    return found


def _tasks(run: Workspace, intervention: Intervention) -> dict[str, list[TaskScore]]:
    """Scores of the benchmarks by arm; an arm that is finished is not run again."""
    options, model = run.config.evaluation, run.loaded.network
    if not options.tasks:
        return {}
    data = Path(options.task_data) if options.task_data else None
    if left_out := check_tasks(options.tasks, data, shots=options.task_shots).left_out:
        run.warn("evaluate", f"without local files, these benchmarks are left out: {', '.join(left_out)}")

    def scores() -> list[TaskScore]:
        return run_tasks(
            model,
            run.loaded.tokenizer,
            options.tasks,
            data=data,
            limit=options.task_limit or None,
            shots=options.task_shots,
            batch_size=options.batch,
            seed=run.config.seed,
        )

    found: dict[str, list[TaskScore]] = {}
    for arm in ("base", "updated"):
        name = f"{arm}_tasks.jsonl"
        if not run.folder.file(name).exists():
            run.display.doing(f"benchmarks, {arm} model")
            with nullcontext() if arm == "base" else intervention.active(model):
                run.folder.write(name, scores())
        found[arm] = run.folder.read(name, TaskScore)
    return found


def _drifts(run: Workspace, intervention: Intervention, sets: dict[str, list[Problem]]) -> dict[str, Drift]:
    options = run.config.evaluation
    texts = {
        name: [
            Text(run.prompter.prompt(p), run.prompter.reference(p.solution))
            for p in spread(problems, options.drift_problems)
        ]
        for name, problems in sets.items()
    }
    for file in options.text:
        texts[f"text:{Path(file).name}"] = plain_texts(run.loaded.tokenizer.encode(read_text(file)))
    return {
        name: drift(run.loaded.network, intervention, found, run.config.update.batch) for name, found in texts.items()
    }


def _summary(
    run: Workspace,
    intervention: Intervention,
    scores: Sequence[Score],
    drifts: dict[str, Drift],
    tasks: dict[str, list[TaskScore]],
) -> dict[str, object]:
    config, folder = run.config, run.folder
    found = comparisons(scores, drifts, config.seed)
    by_method: dict[str, list[Pivot]] = {config.pivots.method: []}
    for pivot in folder.read("pivots.jsonl", Pivot):
        by_method.setdefault(pivot.method, []).append(pivot)
    metrics = folder.read("metrics.jsonl", Metric)

    def group(prefix: str) -> dict[str, object]:
        return {name.removeprefix(prefix): row for name, row in found.items() if name.startswith(prefix)}

    return {
        "model": {"path": config.model.path, "revision": run.loaded.revision},
        "method": config.pivots.method,
        "arm": config.update.arm,
        "seed": config.seed,
        "problems": folder.manifest.get("problems"),
        "pivots": pivot_summary(
            folder.read("traces.jsonl", TracePair),
            folder.read("without_pivot.jsonl", WithoutPivot),
            by_method,
            config.pivots.method,
        ),
        "circuit": circuit_summary(run.components, Circuit.load(folder.file("circuit.safetensors"))),
        "update": update_summary(intervention, metrics, best_of(metrics).step),
        "target": found["target"],
        "held_out_templates": found.get("held_out_templates"),
        "transfer": group("transfer:"),
        "retention": group("retention:") | (task_comparisons(**tasks, seed=config.seed) if tasks else {}),
        "drift": {name: found_drift._asdict() for name, found_drift in drifts.items()},
        "rounds": [json.loads(line) for line in folder.file("rounds.jsonl").read_text(encoding="utf-8").splitlines()],
    }


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """At most `count` of `problems`, evenly spaced, so that every template has its part."""
    if len(problems) <= count:
        return list(problems)
    return [problems[i * len(problems) // count] for i in range(count)]
