"""Other ways to run stage 3 on the same circuits: a second round against more steps, and the paper's linear loss.

    cca compare --out runs/compare --methods branching --seeds 10 11 12
    python experiments/variants.py runs/compare OUT --seeds 10 11 12

A second round traces again, from the updated model, and finds its own pivots and circuit. Each variant is an ordinary
run folder, OUT/SEED/VARIANT, which takes the first round's traces, pivots and circuit from the comparison. Prints the
figures of every round, and compares the variants with each other on the test problems of all seeds.
"""

import argparse
from pathlib import Path

from cca.evaluation.pooling import against_base, answers_of, between
from cca.evaluation.results import PooledResult, RoundSummary
from cca.folder import RunFolder
from cca.records import Split
from cca.run.compare import share_base_answers
from cca.run.config import load_config
from cca.run.run import Run
from cca.run.stages import MEASURED
from cca.show.tables import points

VARIANTS: dict[str, tuple[str, ...]] = {
    "two rounds": ("rounds=2",),
    "more steps": ("update.steps=40", "update.patience=8"),
    "linear loss": ("update.loss=linear", "update.learning_rate=0.05"),
}
PAIRS = (
    ("one round", "two rounds"),
    ("one round", "more steps"),
    ("more steps", "two rounds"),
    ("linear loss", "one round"),
)

SETS: dict[str, Split] = {
    "target": "test",
    "held-out templates": "held_out",
    "transfer": "transfer",
    "retention": "retention",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", type=Path, help="folder of cca compare with the method branching")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    folders = {"one round": [options.compared / str(seed) / "branching" for seed in options.seeds]}
    for variant, settings in VARIANTS.items():
        folders[variant] = [options.out / str(seed) / variant.replace(" ", "-") for seed in options.seeds]
        for seed, first, folder in zip(options.seeds, folders["one round"], folders[variant], strict=True):
            run = Run.start(folder, load_config(None, (f"seed={seed}", *settings)))
            run.share(Run.resume(first), ("trace", "pivots", "circuit"))
            share_base_answers(options.compared / str(seed), run.folder)
            run.execute(MEASURED)

    print("| seed | variant | round | pivots | density | step | validation |\n" + "| --- " * 7 + "|")
    for variant, runs in folders.items():
        for seed, folder in zip(options.seeds, runs, strict=True):
            for found in RunFolder.open(folder).read("rounds.jsonl", RoundSummary):
                seen = found.validation
                print(
                    f"| {seed} | {variant} | {found.round} | {found.pivots} | {found.density:.2%} | "
                    f"{found.best_step} | {seen.base:.1%} -> {seen.updated:.1%} of {seen.n} |"
                )
    answers = {variant: [answers_of(RunFolder.open(folder)) for folder in runs] for variant, runs in folders.items()}
    print("\n| test problems | points (95%) | by seed | gained / lost |\n" + "| --- " * 4 + "|")
    for variant, seeds in answers.items():
        for name, split in SETS.items():
            print(row(f"base -> {variant}, {name}", against_base(seeds, split)))
    for one, other in PAIRS:
        print(row(f"{one} -> {other}, target", between(answers[one], answers[other])))


def row(name: str, found: PooledResult | None) -> str:
    if found is None:
        return f"| {name} | - | - | - |"
    seeds = ", ".join(f"{d * 100:+.1f}" for d in found.by_seed)
    return f"| {name} | {points(found)} | {seeds} | {found.gained} / {found.lost} |"


if __name__ == "__main__":
    main()
