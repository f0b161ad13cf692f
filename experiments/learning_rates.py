"""How the learning rates in `cca compare` were chosen: by validation accuracy alone, on seeds used for nothing else.

    python experiments/learning_rates.py OUT [--seeds 1000 1001] [--methods bias lora ...] [--rates 0.1 0.3]

For each method and each rate, prints the best validated step and its gain on the validation problems of each seed. No
test problem is looked at. The methods share the traces, pivots and circuit of a seed; finished updates are not redone.
"""

import argparse
from pathlib import Path

from cca.controls.methods import METHODS
from cca.records import Metric, best_of
from cca.run.config import load_config
from cca.run.run import Run

RATES: dict[str, tuple[float, ...]] = {
    "branching": (0.1, 0.2, 0.4),
    "prefix": (0.1, 0.2, 0.4),
    "random": (0.2, 0.4, 0.8),
    "all": (0.1, 0.2, 0.4),
    "gradient": (0.05, 0.1, 0.2),
    "bias": (0.3, 1.0, 3.0, 10.0),
    "steering": (300.0, 1000.0, 3000.0, 10000.0),
    "lora-pivots": (0.0003, 0.001, 0.003),
    "lora": (0.00003, 0.0001, 0.0003, 0.001),
    "finetune": (0.00001, 0.00003, 0.0001, 0.0003),
}


def start(options: argparse.Namespace, seed: int, method: str, rate: float) -> Run:
    settings = (*options.settings, *METHODS[method].settings, f"seed={seed}", f"update.learning_rate={rate}")
    return Run.start(options.out / str(seed) / f"{method}-{rate:g}", load_config(options.config, settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001])
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--rates", type=float, nargs="+", help="for every method, in place of its own")
    parser.add_argument("--config", type=Path, help="by default the bundled run's")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    print("| method | rate | " + " | ".join(f"seed {seed}: points (step)" for seed in options.seeds) + " |", flush=True)
    print("| --- " * (2 + len(options.seeds)) + "|")
    for method in options.methods:
        for rate in options.rates or RATES[method]:
            cells = []
            for seed in options.seeds:
                with start(options, seed, "branching", 0.2) as first:
                    first.execute(("trace", "pivots", "circuit"))
                with start(options, seed, method, rate) as run:
                    run.share(first, METHODS[method].shares or ("trace", "pivots", "circuit"))
                    run.execute(("trace", "pivots", "circuit", "update"))
                metrics = run.folder.read("metrics.jsonl", Metric)
                best = best_of(metrics)
                cells.append(f"{(best.accuracy - metrics[0].accuracy) * 100:+.1f} ({best.step} of {metrics[-1].step})")
            print(f"| {method} | {rate:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
