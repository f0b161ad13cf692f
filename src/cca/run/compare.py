"""`cca compare`: run every arm on identical problems and budgets, several seeds each, and rank them in one table.

Each arm is an ordinary run folder, OUT/SEED/ARM. The arms of a seed share problems, traces, pivots and the base model's
answers, and all but the Prefix arm the circuit; finished arms are not redone.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cca.controls.methods import ARMS
from cca.errors import InputError
from cca.evaluation import stats
from cca.folder import RunFolder, write_text
from cca.records import Answered, Score, answered
from cca.run.config import Config, load_config
from cca.run.pipeline import MEASURED, Pipeline
from cca.show import words
from cca.show.progress import Display

SETS = ("target", "held_out_templates", "transfer", "retention")


class Plan(NamedTuple):
    """What is compared. config: of an arm and a seed."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    config: Callable[[str, int], Config]


def plan(
    path: Path | None, overrides: Sequence[str], arms: Sequence[str], seeds: Sequence[int], rates: Mapping[str, float]
) -> Plan:
    """Check every arm's config before anything runs.

    rates: learning rates of arms, in place of their own.

    Raises:
        InputError: a bad config, or a package that an arm needs is missing.
    """
    for arm in rates:
        if arm not in ARMS:
            raise InputError(f"--rate names no arm {arm!r}; arms are {', '.join(ARMS)}")

    def config(arm: str, seed: int) -> Config:
        rate = (f"update.learning_rate={rates[arm]}",) if arm in rates else ()
        return load_config(path, (*overrides, *ARMS[arm].settings, *rate, f"seed={seed}"))

    chosen = Plan(tuple(a for a in ARMS if a in arms), tuple(dict.fromkeys(seeds)), config)
    for arm in chosen.arms:
        Pipeline.check(config(arm, chosen.seeds[0]))
    return chosen


def run_arms(out: Path, plan: Plan, display: Display, say: Callable[[str], None]) -> None:
    """Run what is not finished, without reports. Arms of a seed run one after the other, on one copy of the model."""
    loaded: Any = None
    for seed in plan.seeds:
        first = _pipeline(out, plan, seed, "branching", display)
        for arm in plan.arms:
            pipeline = first if arm == "branching" else _pipeline(out, plan, seed, arm, display)
            if pipeline.folder.finished("evaluate"):
                continue
            say(f"seed {seed}, {arm}: {ARMS[arm].title}")
            if loaded is not None:
                first.use(loaded)
            shared = ARMS[arm].shares
            first.run(shared)
            pipeline.share(first, shared)
            share_base_answers(out / str(seed), pipeline.folder)
            pipeline.use(first.loaded)
            pipeline.run(MEASURED)
            loaded = pipeline.loaded


def _pipeline(out: Path, plan: Plan, seed: int, arm: str, display: Display) -> Pipeline:
    return Pipeline.start(arm_folder(out, seed, arm), plan.config(arm, seed), display)


def arm_folder(out: Path, seed: int, arm: str) -> Path:
    """The run folder of an arm."""
    return out / str(seed) / arm


def share_base_answers(seed: Path, folder: RunFolder) -> None:
    """Give a run the base model's answers of a finished arm of its seed, so that they are generated once."""
    if folder.file("base.jsonl").exists() or folder.finished("evaluate"):
        return
    for other in sorted(seed.iterdir()):
        if (other / "summary.json").exists() and RunFolder.open(other).finished("evaluate"):
            scores = RunFolder.open(other).read("scores.jsonl", Score)
            if (other / "base_tasks.jsonl").exists():
                shutil.copy(other / "base_tasks.jsonl", folder.file("base_tasks.jsonl"))
            folder.write("base.jsonl", [s for s in scores if s.arm == "base"])
            return


# ---- the table ----


def table(out: Path, plan: Plan) -> dict[str, Any]:
    """What the finished arms found, over all seeds: `comparison.json`.

    p-values against the base model, and of each arm against the first, are corrected over the arms (Holm).
    """
    rows: dict[str, dict[str, Any]] = {}
    answers = {arm: [read_answers(arm_folder(out, seed, arm)) for seed in plan.seeds] for arm in plan.arms}
    for arm in plan.arms:
        summaries = [json.loads((arm_folder(out, seed, arm) / "summary.json").read_text()) for seed in plan.seeds]
        manifests = [RunFolder.open(arm_folder(out, seed, arm)).manifest for seed in plan.seeds]
        stages = (*ARMS[arm].needs, "update")
        rows[arm] = {
            "title": ARMS[arm].title,
            **{name: against_base(answers[arm], name) for name in SETS},
            "drift_kl": {name: _mean_drift(summaries, name) for name in SETS},
            "rows": [s["update"]["rows"] for s in summaries],
            "numbers": [s["update"]["parameters"] for s in summaries],
            "density": [s["circuit"]["density"] for s in summaries] if "circuit" in stages else None,
            "best_step": [s["update"]["best_step"] for s in summaries],
            "seconds": [round(sum(m["seconds"][stage] for stage in stages), 1) for m in manifests],
            "peak_gib": [max(m["peak_gib"].get(stage, 0.0) for stage in stages) for m in manifests],
            "against_first": None if arm == plan.arms[0] else between(answers[plan.arms[0]], answers[arm]),
        }
    for key in ("target", "against_first"):
        tested = [row[key] for row in rows.values() if row[key]]
        for found, p in zip(tested, stats.holm([f["mcnemar_p"] for f in tested]), strict=True):
            found["holm_p"] = p
    ranked = sorted(rows, key=lambda arm: -rows[arm]["target"]["difference"])
    return {"seeds": list(plan.seeds), "first": plan.arms[0], "ranked": ranked, "arms": rows}


def read_answers(path: Path) -> "Answers":
    """(base, updated) answers by set, skills of a kind together."""
    found: Answers = {}
    for both in answered(RunFolder.open(path).read("scores.jsonl", Score)):
        found.setdefault(both.base.set.split(":")[0], []).append(both)
    return found


def _outcomes(pairs: Sequence[tuple[Score, Score]], seed: int) -> stats.Outcomes:
    """Problems of a skill are independent draws, so each is a cluster of its own; those of a template are alike."""
    clusters = [f"{seed}:{b.problem}" if ":" in b.set else b.template for b, _ in pairs]
    return stats.Outcomes([b.correct for b, _ in pairs], [u.correct for _, u in pairs], clusters)


Answers = dict[str, list[Answered]]


def against_base(seeds: Sequence[Answers], name: str) -> dict[str, Any] | None:
    found = [_outcomes(answers[name], seed) for seed, answers in enumerate(seeds) if name in answers]
    return _described(stats.pooled(found, seed=0)) if found else None


def between(first: Sequence[Answers], other: Sequence[Answers]) -> dict[str, Any]:
    """The other arm's target answers against the first arm's, on the same problems."""
    outcomes = []
    for seed, (mine, theirs) in enumerate(zip(first, other, strict=True)):
        updated = {u.problem: u for _, u in theirs["target"]}
        outcomes.append(_outcomes([(u, updated[u.problem]) for _, u in mine["target"]], seed))
    return _described(stats.pooled(outcomes, seed=0))


def _described(seeds: stats.Seeds) -> dict[str, Any]:
    return seeds.pooled._asdict() | {"seeds_ci95": seeds.ci95, "by_seed": seeds.differences}


def _mean_drift(summaries: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [d["kl"] for s in summaries for key, d in s["drift"].items() if key.split(":")[0] == name]
    return sum(values) / len(values) if values else None


COLUMNS = (
    "arm", "target", "points (95%)", "Holm p", "held-out templates", "transfer", "retention",
    "drift target / transfer / retention", "rows", "numbers", "seconds", "GiB",
)  # fmt: skip


def cells(comparison: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table as text, best first."""
    for arm in comparison["ranked"]:
        row = comparison["arms"][arm]
        target = row["target"]
        yield [
            arm,
            f"{target['base']:.1%} -> {target['updated']:.1%}",
            points(target),
            f"{target['holm_p']:.1g}",
            *(points(row[name]) for name in SETS[1:]),
            " / ".join(
                "-" if row["drift_kl"][n] is None else f"{row['drift_kl'][n]:.4f}" for n in ("target", *SETS[2:])
            ),
            _span(row["rows"]),
            _span(row["numbers"]),
            f"{_mean(row['seconds']):.0f}",
            f"{_mean(row['peak_gib']):.2f}",
        ]


def points(found: Mapping[str, Any] | None) -> str:
    """A difference with its interval, and what the sample could have seen where that holds 0."""
    if found is None:
        return "-"
    least = found["detectable"] if words.holds_zero(found) else None
    seen = "" if least is None else f", sees {least * 100:.1f}"
    return f"{words.points(found['difference'])} ({words.interval(found['ci95'])}){seen}"


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def markdown(comparison: dict[str, Any]) -> str:
    """The table, each seed by itself, and each arm against the first, as Markdown."""
    first, seeds = comparison["first"], comparison["seeds"]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells(comparison)]
    columns = ("target, points by seed", *map(str, seeds), "mean of such seeds (95%)", "steps kept", "density")
    lines += ["", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for arm in comparison["ranked"]:
        row = comparison["arms"][arm]
        interval = row["target"]["seeds_ci95"]
        spread = "-" if interval is None else f"{interval[0] * 100:+.1f} to {interval[1] * 100:+.1f}"
        density = ", ".join(f"{d:.2%}" for d in row["density"]) if row["density"] else "-"
        by_seed = [f"{d * 100:+.1f}" for d in row["target"]["by_seed"]]
        lines.append("| " + " | ".join([arm, *by_seed, spread, ", ".join(map(str, row["best_step"])), density]) + " |")
    lines += ["", f"| against {first} | points (95%) | gained / lost | Holm p |", "| --- | --- | --- | --- |"]
    for arm in comparison["ranked"]:
        found = comparison["arms"][arm]["against_first"]
        if found:
            lines.append(f"| {arm} | {points(found)} | {found['gained']} / {found['lost']} | {found['holm_p']:.1g} |")
    return "\n".join(lines) + "\n"


def write(out: Path, comparison: dict[str, Any]) -> None:
    """Write comparison.json and comparison.md."""
    write_text(out / "comparison.json", json.dumps(comparison, indent=1) + "\n")
    write_text(out / "comparison.md", markdown(comparison))
