"""The last stage of a run: its report."""

from cca.run.run import Run
from cca.show.report.page import write_report


def work(run: Run) -> None:
    """Write report.html."""
    run.display.doing("figures and pivots")
    write_report(run.folder.file("report.html"), run.folder, run.prompter)
