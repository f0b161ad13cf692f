"""How the learning rates of `cca compare`'s arms were chosen: by validation accuracy alone, on seeds of their own.

    python benchmarks/learning_rates.py OUT [--seeds 1000 1001] [--arms bias lora ...] [--rates 0.1 0.3] [--model MODEL]

For each arm and each rate, best validated step and its gain on the validation problems of each seed. No test problem
is looked at. The arms of a seed share traces, pivots and circuit; finished updates are not redone.
"""

import argparse
from pathlib import Path

from cca.controls.methods import ARMS
from cca.method.update import best_of
from cca.records import Metric
from cca.run.config import load_config
from cca.run.pipeline import Pipeline

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


def pipeline(out: Path, seed: int, arm: str, rate: float, model: str) -> Pipeline:
    settings = (*ARMS[arm].settings, f"seed={seed}", f"update.learning_rate={rate}", f"model.path={model}")
    return Pipeline.start(out / str(seed) / f"{arm}-{rate:g}", load_config(None, settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001])
    parser.add_argument("--arms", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--rates", type=float, nargs="+", help="for every arm, in place of each arm's own")
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    print("| arm | rate | " + " | ".join(f"seed {seed}: points (step)" for seed in options.seeds) + " |", flush=True)
    print("| --- " * (2 + len(options.seeds)) + "|")
    for arm in options.arms:
        for rate in options.rates or RATES[arm]:
            cells = []
            for seed in options.seeds:
                first = pipeline(options.out, seed, "branching", 0.2, options.model)
                run = pipeline(options.out, seed, arm, rate, options.model)
                first.run(("trace", "pivots", "circuit"))
                run.share(first, ARMS[arm].shares or ("trace", "pivots", "circuit"))
                run.run(("trace", "pivots", "circuit", "update"))
                metrics = run.folder.read("metrics.jsonl", Metric)
                best = best_of(metrics)
                cells.append(f"{(best.accuracy - metrics[0].accuracy) * 100:+.1f} ({best.step} of {metrics[-1].step})")
            print(f"| {arm} | {rate:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
