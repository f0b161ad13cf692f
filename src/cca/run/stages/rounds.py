"""Further rounds: trace again with the updated model, find new pivots and a new circuit, and update on top."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from cca.errors import InputError
from cca.folder import RunFolder, write_text
from cca.method.circuit import Circuit
from cca.method.update import best_of
from cca.model.delta import Delta
from cca.records import Metric
from cca.run.workspace import Workspace

Jobs = Mapping[str, Callable[[Workspace], None]]


def further_rounds(run: Workspace, jobs: Jobs) -> None:
    """Write rounds.jsonl, one line a round, and total.safetensors, the sum of the deltas, where there are several.

    Round r > 1 is a run folder of its own, round-r, whose base is the model as the rounds before it left it. Ends with
    the first round whose update does not raise validation accuracy, or that finds nothing more to learn from.
    jobs: the stages of a round, by name.
    """
    lines, total = [_figures(run, 1)], Delta({})
    for number in range(2, run.config.rounds + 1):
        if lines[-1]["best_step"] == 0:
            break
        model = run.loaded.network
        total = total.plus(Delta.load(_folder(run, number - 1).file("delta.safetensors"), model.device))
        total.save(run.folder.file("total.safetensors"))
        part = Workspace(_folder(run, number), run.config, run.display)
        part.prompter = run.prompter
        run.display.figure("round", f"{number} of at most {run.config.rounds}")
        part.use(run.loaded)
        try:
            with total.active(model):
                for stage, job in jobs.items():
                    if not part.folder.finished(stage):
                        with part.folder.timed(stage):
                            job(part)
                        part.folder.finish(stage, ())
        except InputError as error:
            run.warn("rounds", f"round {number - 1} was the last: {error}")
            break
        lines.append(_figures(part, number))
        if lines[-1]["best_step"] > 0:
            more = Delta.load(part.folder.file("delta.safetensors"), model.device)
            total.plus(more).save(run.folder.file("total.safetensors"))
    write_text(run.folder.file("rounds.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))


def _folder(run: Workspace, number: int) -> RunFolder:
    return run.folder if number == 1 else RunFolder.create(run.folder.file(f"round-{number}"), run.config)


def _figures(run: Workspace, number: int) -> dict[str, Any]:
    metrics = run.folder.read("metrics.jsonl", Metric)
    kept, (train, validation) = best_of(metrics), run.chosen_pivots()
    return {
        "round": number,
        "pivots": len(train),
        "held_out_pivots": len(validation),
        "density": Circuit.load(run.folder.file("circuit.safetensors")).density,
        "best_step": kept.step,
        "validation": {"n": kept.n, "base": metrics[0].accuracy, "updated": kept.accuracy},
    }
