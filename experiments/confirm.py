"""Which pivots to learn from: those of each method, all of them or only those that sampled completions confirm.

    python experiments/confirm.py runs/confirm --seeds 10 11 12 13 14

Each variant is an ordinary run folder, OUT/SEED/VARIANT, on the same traces; finished ones are not done again. Prints
how many pivots each learns from and, where slips are planted, how many of these sit on one; then what its update does
to problems, to those of the first variant's, and to held-out pivots that are the same for all.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from ground_truth import percent
from variants import row

from cca.controls.load import load_intervention
from cca.evaluation import stats
from cca.evaluation.choices import choices
from cca.evaluation.pooling import against_base, answers_of, between
from cca.folder import RunFolder
from cca.records import Metric, Pivot, best_of
from cca.run.compare import share_base_answers
from cca.run.config import load_config
from cca.run.run import Run
from cca.run.stages import MEASURED

VARIANTS: dict[str, tuple[str, ...]] = {
    "branching": (),
    "unconfirmed": ("pivots.confirm=0",),  # for a config that confirms
    "branching confirmed": ("pivots.confirm=16",),
    "branching confirmed by half": ("pivots.confirm=16", "pivots.gap=0.5"),
    "prefix": ("pivots.method=prefix",),
    "prefix confirmed": ("pivots.method=prefix", "pivots.confirm=16"),
    "probability": ("pivots.method=probability", "pivots.confirm=16"),
}
Runs = dict[str, list[Run]]


def variant_runs(out: Path, config: Path | None, settings: list[str], seeds: list[int], names: list[str]) -> Runs:
    """A run of each variant for each seed, all of one seed on the traces of the first."""
    found: Runs = {name: [] for name in names}
    model = None
    for seed in seeds:
        for name in names:
            folder = out / str(seed) / name.replace(" ", "-")
            run = Run.start(folder, load_config(config, (*settings, f"seed={seed}", *VARIANTS[name])))
            found[name].append(run)
            if run.folder.finished("evaluate"):
                continue
            if name != names[0]:
                run.share(found[names[0]][-1], ("trace",))
            if model is not None:
                run.use(model)
            share_base_answers(out / str(seed), run.folder)
            run.execute(MEASURED)
            model = run.model
    return found


def learned_table(runs: Runs) -> None:
    """What each variant learned from, and what came of it on the validation problems."""
    print("| variant | seed | pivots | on a slip | density | step kept | seconds |\n" + "| --- " * 7 + "|")
    for name, of_seeds in runs.items():
        for run in of_seeds:
            train = run.pivots_of("train")
            print(
                f"| {name} | {run.config.seed} | {len(train)} | {on_slips(train)} | "
                f"{run.summary.circuit.density:.2%} | "
                f"{best_of(run.folder.read('metrics.jsonl', Metric)).step} | {run.summary.seconds['pivots']:.0f} |"
            )
    print("\n| variant, all seeds | pivots | on a slip, of those where one is planted |\n" + "| --- " * 3 + "|")
    for name, of_seeds in runs.items():
        train = [p for run in of_seeds for p in run.pivots_of("train")]
        print(f"| {name} | {len(train)} | {on_slips(train)} |")


def on_slips(pivots: list[Pivot]) -> str:
    known = [p.on_slip for p in pivots if p.on_slip is not None]
    return percent(stats.precision_recall(sum(known), len(known) - sum(known), 0).precision)


def answers_table(runs: Runs) -> None:
    answers = {name: [answers_of(RunFolder.open(run.folder.path)) for run in of] for name, of in runs.items()}
    first, *others = answers
    print("\n| problems | points (95%) | by seed | gained / lost |\n" + "| --- " * 4 + "|")
    for name, seeds in answers.items():
        print(row(f"base -> {name}, target", against_base(seeds, "test")))
        print(row(f"base -> {name}, held-out templates", against_base(seeds, "held_out")))
    for other in others:
        print(row(f"{first} -> {other}, target", between(answers[first], answers[other])))


def held_out_table(runs: Runs) -> None:
    """Preference accuracy of the base and the updated models on the same validation pivots."""
    found: dict[str, dict[str, list[bool]]] = {}
    for number in range(len(next(iter(runs.values())))):
        of_seed = {name: of[number] for name, of in runs.items()}
        pivots = [(title, p) for title, belonging in held_out(of_seed).items() for p in belonging]
        model = next(iter(of_seed.values())).model
        for name in ("base", *of_seed):
            change = (
                nullcontext() if name == "base" else load_intervention(of_seed[name].folder.final_delta()).active(model)
            )
            with change:
                seen = choices(model.network, [p for _, p in pivots], model="base", batch=32)
            for (title, _), choice in zip(pivots, seen, strict=True):
                found.setdefault(title, {}).setdefault(name, []).append(choice.desired > choice.undesired)
    print("\n| held-out pivots | n | base | " + " | ".join(runs) + " |\n" + "| --- " * (len(runs) + 3) + "|")
    for title, preferred in found.items():
        cells = " | ".join(f"{stats.accuracy(one).value:.1%}" for one in preferred.values())
        print(f"| {title} | {len(preferred['base'])} | {cells} |")


def held_out(of_seed: dict[str, Run]) -> dict[str, list[Pivot]]:
    """Pivots of a seed's validation problems, by where they come from."""
    found: dict[str, list[Pivot]] = {}
    for run in of_seed.values():
        options = run.config.pivots
        for pivot in run.folder.read("pivots.jsonl", Pivot):
            if pivot.split == "validation" and pivot.method == options.method and pivot.counts(options.gap):
                kind = f"{options.method}" + (f", confirmed by {options.gap:g}" if pivot.samples else "")
                found.setdefault(kind, []).append(pivot)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--config", type=Path, help="by default the bundled run's")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    known = [name for name in VARIANTS if name != "unconfirmed"]
    parser.add_argument("--variants", nargs="+", default=known, choices=VARIANTS, help="the first is compared with")
    options = parser.parse_args()
    runs = variant_runs(options.out, options.config, options.settings, options.seeds, options.variants)
    learned_table(runs)
    answers_table(runs)
    held_out_table(runs)


if __name__ == "__main__":
    main()
