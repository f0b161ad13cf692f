"""What the updates of finished runs do to benchmarks that must not move, each of as many documents as time allows.

    python experiments/benchmarks.py runs/compare/0/* --tasks mmlu=20 truthfulqa_mc2=300 --data retention --out scores

`evaluation.tasks` measures them in a run, with one limit for all; a limit is of each subtask, of which MMLU has 57 and
TruthfulQA one. Scores go to OUT, a file for each model, update, benchmark and limit, and are not asked for again. With
the least true change that so many documents would show 80% of the time, wherever the interval holds 0.
"""

import argparse
from pathlib import Path

from elsewhere import name_of, put_on

from cca.evaluation.harness.run import check_tasks, run_tasks
from cca.evaluation.results import difference
from cca.evaluation.summarize import task_comparisons
from cca.folder import RunFolder
from cca.records import TaskScore, Which
from cca.run.run import Run
from cca.show.words import detectable


def scores(run: Run, task: str, limit: int | None, data: Path | None, out: Path, which: Which) -> list[TaskScore]:
    """Of one model on one benchmark; asked for once."""
    folder, network = RunFolder(out, {"stages": {}}), run.model.network
    name = f"{task}-{limit or 'all'}-{name_of(run, which, task, limit)}.jsonl"
    if not folder.file(name).exists():
        with put_on(run, which):
            found = run_tasks(network, run.model.tokenizer, [task], data=data, limit=limit, batch_size=16)
        folder.write(name, found)
    return folder.read(name, TaskScore)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished up to the update, of one model")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME=LIMIT", help="=LIMIT may be left out")
    parser.add_argument("--data", type=Path, help="local files, as evaluation.task_data; by default from the hub")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    asked = [(name, int(limit) if limit else None) for name, _, limit in (t.partition("=") for t in options.tasks)]
    check_tasks([name for name, _ in asked], options.data)
    runs = [Run.load(path) for path in options.runs]
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        "| benchmark | update | documents | base | updated | difference (95%) | detectable |\n" + "| --- " * 7 + "|",
        flush=True,
    )
    for task, limit in asked:
        base = scores(runs[0], task, limit, options.data, options.out, "base")
        for run in runs:
            run.use(runs[0].model)
            updated = scores(run, task, limit, options.data, options.out, "updated")
            found = task_comparisons(base, updated, seed=0)[task]
            print(
                f"| {task} | {run.folder.path} | {len(base):,} | {found.base:.1%} | {found.updated:.1%} | "
                f"{difference(found)} | {detectable(found.minimum_detectable_effect, found.ci95)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
