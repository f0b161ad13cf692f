"""`cca compare`: run every method on identical problems and budgets, several seeds each, and rank them in one table.

Each method is an ordinary run, OUT/SEED/METHOD. The methods of a seed share problems, traces, pivots and the base
model's answers, and all but the Prefix method the circuit; where pivots are confirmed, that has pivots of its own.
Finished runs are not redone.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca.controls.methods import METHODS, learning_rate
from cca.errors import InputError
from cca.evaluation import stats
from cca.evaluation.pooling import Answers, against_base, answers_of, between
from cca.evaluation.results import Comparison, MethodResult, PooledResult, Summary
from cca.folder import RunFolder
from cca.io import to_json, write_text
from cca.model.bundled import is_bundled
from cca.records import Score, Split
from cca.run.config import Config, load_config
from cca.run.run import Run
from cca.run.stages import MEASURED
from cca.show.tables import markdown
from cca.show.views import summary_of

if TYPE_CHECKING:
    from cca.show.progress import Display

SETS: dict[str, Split] = {
    "target": "test",
    "held_out_templates": "held_out",
    "transfer": "transfer",
    "retention": "retention",
}
"""What a method is judged on, and the split of its problems; all skills of a split together."""


class ComparisonPlan(NamedTuple):
    """What is compared. config: of a method and a seed."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    config: Callable[[str, int], Config]


def plan(
    path: Path | None,
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float],
) -> ComparisonPlan:
    """Check every method's config before anything runs.

    Args:
        path: The config file; None for the bundled run.
        overrides: As those of `load_config`.
        methods: Names in `METHODS`, in any order.
        seeds: Of the runs of each.
        rates: Learning rates of methods, in place of their own (`cca.controls.methods.learning_rate`).

    Raises:
        InputError: A bad config, or a package that a method needs is missing.
    """
    for method in rates:
        if method not in METHODS:
            raise InputError(f"--rate names no method {method!r}; methods are {', '.join(METHODS)}")

    def config(method: str, seed: int) -> Config:
        return method_config(path, overrides, method, seed, rates)

    if (method := load_config(path, overrides).pivots.method) != "branching":
        raise InputError(
            f"pivots.method is {method}, and a comparison takes branching pivots, and prefix ones for its method of "
            "that name; leave it out"
        )
    chosen = ComparisonPlan(tuple(m for m in METHODS if m in methods), tuple(dict.fromkeys(seeds)), config)
    for method in chosen.methods:
        Run.check(config(method, chosen.seeds[0]))
    return chosen


def method_config(
    path: Path | None, overrides: Sequence[str], method: str, seed: int, rates: Mapping[str, float]
) -> Config:
    """The config of a method's run; arguments as those of `plan`."""
    rate = rates.get(method) or learning_rate(method, is_bundled(load_config(path, overrides).model.path))
    own = () if rate is None else (f"update.learning_rate={rate}",)
    return load_config(path, (*overrides, *METHODS[method].settings, *own, f"seed={seed}"))


# ---- running ----


def run_methods(out: Path, plan: ComparisonPlan, display: "Display", say: Callable[[str], None]) -> None:
    """Run what is not finished, without reports, one after the other on one copy of the model."""
    model: Any = None
    for seed in plan.seeds:
        with _start(out, plan, "branching", seed, display) as first:
            for method in plan.methods:
                with nullcontext(first) if method == "branching" else _start(out, plan, method, seed, display) as run:
                    if run.folder.finished("evaluate"):
                        continue
                    say(f"seed {seed}, {method}: {METHODS[method].title}")
                    if model is not None:
                        first.use(model)
                    shared = _shared(method, run.config, first.config)
                    first.execute(shared)
                    run.share(first, shared)
                    share_base_answers(out / str(seed), run.folder)
                    run.use(first.model)
                    run.execute(MEASURED)
                    model = run.model


def _shared(method: str, own: Config, first: Config) -> tuple[str, ...]:
    """Stages whose outcome a method has in common with the branching one. The prefix pivots that are kept beside others
    are not confirmed."""
    confirms_others = own.pivots != first.pivots and own.pivots.confirm > 0
    return tuple(stage for stage in METHODS[method].shares if stage == "trace" or not confirms_others)


def _start(out: Path, plan: ComparisonPlan, method: str, seed: int, display: "Display") -> Run:
    """Start or resume a run, whose weights are of the type that those of the others in `out` are, if there are any."""
    run = Run.start(method_folder(out, seed, method), plan.config(method, seed), display)
    for begun in sorted(path.parent for path in out.glob("*/*/manifest.json")):
        if dtype := RunFolder.open(begun).manifest.get("dtype"):
            run.folder.manifest.setdefault("dtype", dtype)
            break
    return run


def method_folder(out: Path, seed: int, method: str) -> Path:
    """The run folder of a method."""
    return out / str(seed) / method


def share_base_answers(seed: Path, folder: RunFolder) -> None:
    """Give a run the base model's answers of a finished run of its seed, so that they are generated once."""
    if folder.file("base.jsonl").exists() or folder.finished("evaluate"):
        return
    for path in sorted(seed.iterdir()):
        if (path / "summary.json").exists() and (other := RunFolder.open(path)).finished("evaluate"):
            other.verify(["evaluate"])
            if other.file("base_tasks.jsonl").exists():
                shutil.copy(other.file("base_tasks.jsonl"), folder.file("base_tasks.jsonl"))
            folder.write("base.jsonl", [s for s in other.read("scores.jsonl", Score) if s.model == "base"])
            return


# ---- the table ----


class _Finished(NamedTuple):
    """A run of a method. answers: by split."""

    folder: RunFolder
    summary: Summary
    answers: Answers


def compare(out: Path, plan: ComparisonPlan) -> Comparison:
    """What the finished runs in `out` found, over all seeds.

    p-values against the base model, and of each method against the first, are corrected over the methods (Holm).

    Raises:
        InputError: A run is not finished.
    """
    runs = {method: [_finished(method_folder(out, seed, method)) for seed in plan.seeds] for method in plan.methods}
    first = plan.methods[0]
    answers = {method: [run.answers for run in found] for method, found in runs.items()}
    results = {
        method: _result(method, found, None if method == first else between(answers[first], answers[method]))
        for method, found in runs.items()
    }
    _correct(results, "target")
    _correct(results, "against_first")
    ranked = sorted(results, key=lambda method: -results[method].target.difference)
    return Comparison(list(plan.seeds), first, ranked, results)


def _finished(path: Path) -> _Finished:
    folder = RunFolder.open(path)
    return _Finished(folder, summary_of(folder), answers_of(folder))


def _result(method: str, runs: Sequence[_Finished], against_first: PooledResult | None) -> MethodResult:
    stages = (*METHODS[method].needs, "update")
    answers = [run.answers for run in runs]
    updates = [run.summary.update for run in runs]
    target = against_base(answers, "test")
    assert target is not None, "every run has target problems"
    return MethodResult(
        title=METHODS[method].title,
        target=target,
        held_out_templates=against_base(answers, SETS["held_out_templates"]),
        transfer=against_base(answers, SETS["transfer"]),
        retention=against_base(answers, SETS["retention"]),
        drift_kl={name: _mean_drift([run.summary for run in runs], name) for name in SETS},
        rows=[update.rows for update in updates],
        parameters=[update.parameters for update in updates],
        density=[run.summary.circuit.density for run in runs] if "circuit" in stages else None,
        best_step=[update.best_step for update in updates],
        seconds=[round(sum(run.folder.noted("seconds", stage) for stage in stages), 1) for run in runs],
        peak_gib=[max(run.folder.noted("peak_gib", stage, 0.0) for stage in stages) for run in runs],
        against_first=against_first,
    )


def _correct(results: dict[str, MethodResult], key: str) -> None:
    """Put Holm's p-values into the results called `key`, where there are such."""
    tested = {method: found for method, result in results.items() if (found := getattr(result, key))}
    for method, p in zip(tested, stats.holm([found.sign_flip_p for found in tested.values()]), strict=True):
        results[method] = replace(results[method], **{key: replace(tested[method], holm_p=p)})


def _mean_drift(summaries: Sequence[Summary], name: str) -> float | None:
    """Of the set `name`, all its skills and seeds weighing the same; benchmarks have none."""
    found: list[float] = []
    for summary in summaries:
        of = getattr(summary, name)
        results = of.values() if isinstance(of, dict) else [of] if of else []
        found += [result.drift.kl for result in results if result.drift]
    return sum(found) / len(found) if found else None


# ---- what is written ----


def write(out: Path, plan: ComparisonPlan, found: Comparison) -> None:
    """Write comparison.json, comparison.md and report.html, which is that of the first seed's first method."""
    from cca.show.report.page import write_report

    write_text(out / "comparison.json", to_json(found, indent=1) + "\n")
    write_text(out / "comparison.md", markdown(found))
    run = Run.load(method_folder(out, plan.seeds[0], plan.methods[0]))
    write_report(out / "report.html", run.folder, run.prompter, found)
