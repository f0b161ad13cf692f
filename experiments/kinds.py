"""Are circuits about their kind of slip? One circuit and update for each kind, and what it does to the others.

    python experiments/kinds.py runs/kinds --seeds 10 11 12

Each is an ordinary run folder, OUT/SEED/KIND, run up to the update on the templates of that kind alone; finished
ones are not redone. Prints how the circuits overlap, and what each kind's update does to every kind.
"""

import argparse
import json
from pathlib import Path

from ground_truth import OVERLAP, Answered, Selected, compared, overlap_lines, selection

from cca.method.traces import greedy_traces
from cca.model.bundled import slip_kinds
from cca.model.delta import Delta
from cca.records import Problem
from cca.run.config import load_config
from cca.run.run import Run
from cca.show.tables import points


def kind_runs(out: Path, seed: int, model: str) -> dict[str, Run]:
    """One run for each kind of slip, on its templates alone, up to the update."""
    templates: dict[str, list[str]] = {}
    for template, kind in slip_kinds(model).items():
        templates.setdefault(kind, []).append(template)
    runs = {}
    for kind, names in sorted(templates.items()):
        settings = (
            f"seed={seed}",
            f"problems.templates={json.dumps(names)}",
            "problems.held_out=0.0",
            f"model.path={model}",
        )
        runs[kind] = Run.start(out / str(seed) / kind, load_config(None, settings))
        if len(runs) > 1:
            runs[kind].use(next(iter(runs.values())).model)
        runs[kind].execute(("trace", "pivots", "circuit", "update"))
    return runs


def answers(run: Run, problems: list[Problem]) -> dict[str, bool]:
    """Whether the run's model, as it stands now, answers each problem correctly."""
    traces = greedy_traces(run.model.engine, run.prompter, problems, 160, slots=128)
    return {p.id: trace.correct for p, trace in zip(problems, traces, strict=True)}


def kinds_against_kinds(out: Path, seeds: list[int], model: str) -> None:
    """How the kinds' circuits overlap, and what each kind's update does to every kind's test problems."""
    circuits: dict[str, list[Selected]] = {}
    changes: dict[tuple[str, str], list[Answered]] = {}
    components = []
    for seed in seeds:
        runs = kind_runs(out, seed, model)
        problems = {kind: [p for p in run.problems if p.split == "test"] for kind, run in runs.items()}
        every = [p for found in problems.values() for p in found]
        first = next(iter(runs.values()))
        components = list(first.model.components)
        base = answers(first, every)
        for kind, run in runs.items():
            circuits.setdefault(kind, []).append(selection(run))
            with Delta.load(run.folder.final_delta(), first.model).active(first.model):
                updated = answers(first, every)
            for other, found in problems.items():
                changes.setdefault((kind, other), []).extend(
                    Answered(base[p.id], updated[p.id], p.template) for p in found
                )
    kinds = list(circuits)
    print(OVERLAP)
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            for seed, one, two in zip(seeds, circuits[kind], circuits[other], strict=True):
                print("\n".join(overlap_lines(components, f"{kind}, {other}", seed, one, two)))
    print("\n| update learned from | " + " | ".join(kinds) + " |\n" + "| --- " * (len(kinds) + 1) + "|")
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(points(compared(changes[kind, other])) for other in kinds) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    kinds_against_kinds(options.out, options.seeds, options.model)


if __name__ == "__main__":
    main()
