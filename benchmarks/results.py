"""The tables of docs/results.md: several seeds, both methods, the paper's loss, and the controls, on the bundled model.

    python benchmarks/results.py OUT [--seeds 10 11 12] [--arms branching prefix ...] [--set KEY=VALUE ...]

Each arm is an ordinary run folder OUT/SEED-ARM. The arms of a seed share problems and traces, and all but the Prefix
method also pivots and circuit, so that they differ in nothing but the rows they update or the loss. Finished runs are
not redone.
Prints one row a run; then, over all seeds, each arm against the base model and the branching arm against each other
arm on the same problems, and the branching arm by kind of planted slip, with bootstrap intervals over templates.
"""

import argparse
import json
import shutil
from pathlib import Path

from cca import stats
from cca.config import Config, load_config
from cca.models import BUNDLED
from cca.pipeline import ARTIFACTS, Pipeline
from cca.records import Score
from cca.store import RunFolder

ARMS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "branching": ([], ()),
    "prefix": (['pivots.method="prefix"'], ("trace",)),
    "random": (['circuit.rows="random"'], ("trace", "pivots", "circuit")),
    "all": (['circuit.rows="all"'], ("trace", "pivots", "circuit")),
    "linear": (['update.loss="linear"', "update.learning_rate=0.05"], ("trace", "pivots", "circuit")),
}
"""Overrides of each arm and the stages it takes from the seed's branching run."""


def share(base: Path, folder: RunFolder, stages: tuple[str, ...]) -> None:
    """Copy finished stages of `base` into `folder` where it does not have them."""
    source = RunFolder.open(base)
    for stage in stages:
        if not folder.finished(stage):
            for name in ARTIFACTS[stage]:
                shutil.copy(source.file(name), folder.file(name))
            folder.finish(stage, ARTIFACTS[stage])


def run_arm(out: Path, seed: int, arm: str, overrides: list[str]) -> Path:
    """Run one arm of one seed to its end and return its folder."""
    own, stages = ARMS[arm]
    config: Config = load_config(None, (f"seed={seed}", *own, *overrides))
    path = out / f"{seed}-{arm}"
    pipeline = Pipeline.start(path, config, quiet=True)
    if stages:
        share(out / f"{seed}-branching", pipeline.folder, stages)
    pipeline.run()
    return path


def line(path: Path) -> str:
    """One run as a row of Markdown."""
    summary = json.loads((path / "summary.json").read_text())
    target, held_out = summary["target"], summary["held_out_templates"]
    worst = min(summary["retention"].items(), key=lambda item: item[1]["difference"])
    drift = max(part["drift_kl"] for part in summary["retention"].values())
    slip = summary["pivots"]["on_slip"].get(summary["method"]) or {"share": float("nan"), "n": 0}
    return (
        f"| {path.name} | {summary['circuit']['density']:.2%} | {summary['update']['rows']} | "
        f"{summary['update']['best_step']} | {target['base']:.1%} -> {target['updated']:.1%} | "
        f"{target['difference'] * 100:+.1f} ({target['ci95'][0] * 100:+.1f} to {target['ci95'][1] * 100:+.1f}) | "
        f"{target['mcnemar_p']:.1g} | {held_out['difference'] * 100:+.1f} ({held_out['ci95'][0] * 100:+.1f} to "
        f"{held_out['ci95'][1] * 100:+.1f}) | {worst[1]['difference'] * 100:+.1f} ({worst[0]}) | "
        f"{target['drift_kl']:.4f} / {drift:.4f} | {slip['share']:.1%} of {slip['n']} |"
    )


def target_scores(paths: list[Path], arm: str) -> dict[tuple[str, str], Score]:
    """The scores of the base or the updated model on the target problems of several seeds, by (seed, problem)."""
    return {
        (path.name.split("-")[0], score.problem): score
        for path in paths
        for score in RunFolder.open(path).read("scores.jsonl", Score)
        if score.set == "target" and score.arm == arm
    }


def compared(first: dict[tuple[str, str], Score], second: dict[tuple[str, str], Score]) -> str:
    """`second` minus `first` on the problems of `first`, as cells of Markdown."""
    keys = sorted(first)
    clusters = [first[k].template for k in keys]
    found = stats.paired([first[k].correct for k in keys], [second[k].correct for k in keys], clusters, seed=0)
    return (
        f"{found.n} | {found.base:.1%} -> {found.updated:.1%} | {found.difference * 100:+.1f} "
        f"({found.ci95.low * 100:+.1f} to {found.ci95.high * 100:+.1f}) | {found.gained} / {found.lost} |"
    )


def by_kind(base: dict[tuple[str, str], Score], updated: dict[tuple[str, str], Score]) -> list[str]:
    """`updated` against `base` for each kind of planted slip, where it prevails and where it is the minority."""
    planted = json.loads((BUNDLED / "slips.json").read_text())
    groups: dict[str, dict[tuple[str, str], Score]] = {}
    for key, score in base.items():
        slip = planted.get(score.template)
        prevails = slip and ("prevails" if slip["share"] > 0.5 else "minority")
        groups.setdefault(f"{slip['kind']} | {prevails}" if slip else "none | ", {})[key] = score
    return [f"| {name} | {compared(scores, updated)}" for name, scores in sorted(groups.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print(
        "| seed-arm | density | rows | step | target | points (95%) | p | held-out templates (95%) | worst skill | "
        "drift target / worst skill | pivots on slip |\n" + "| --- " * 11 + "|",
        flush=True,
    )
    paths: dict[str, list[Path]] = {}
    for seed in options.seeds:
        for arm in options.arms:
            path = run_arm(options.out, seed, arm, options.overrides)
            paths.setdefault(arm, []).append(path)
            print(line(path), flush=True)
    print("\n| all seeds | n | accuracy | points (95%) | gained / lost |\n| --- | --- | --- | --- | --- |")
    updated = {arm: target_scores(found, "updated") for arm, found in paths.items()}
    base = target_scores(next(iter(paths.values())), "base")
    for arm, scores in updated.items():
        print(f"| base -> {arm} | {compared(base, scores)}")
    branching = updated.pop("branching", None)
    if branching:
        for arm, scores in updated.items():
            print(f"| {arm} -> branching | {compared(scores, branching)}")
        print("\n| planted slip | | n | accuracy | points (95%) | gained / lost |\n" + "| --- " * 6 + "|")
        print("\n".join(by_kind(base, branching)))


if __name__ == "__main__":
    main()
