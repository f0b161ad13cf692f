"""The stages of a run in order (a stand-in until the table of run/ lands)."""

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage: its line of help and its artifacts."""

    name: str
    help: str
    artifacts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()


STAGES = {
    stage.name: stage
    for stage in (
        Stage("trace", "stage 1a: problems, greedy traces and samples of opposite correctness"),
        Stage("pivots", "stage 1b: the token at which each pair of traces turns"),
        Stage("circuit", "stage 2: learn which components favour the desired token"),
        Stage("update", "stage 3: change only the circuit's rows, keep the best validated step"),
        Stage("evaluate", "base against updated on target, held-out templates and other skills"),
        Stage("report", "report.html: the whole run in one page that opens offline"),
    )
}
MEASURED = tuple(name for name in STAGES if name != "report")
