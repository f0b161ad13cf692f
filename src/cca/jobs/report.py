"""The last stage of a run: its report."""

from cca.report.page import write_report
from cca.workspace import Workspace


def report(run: Workspace) -> None:
    """Write report.html."""
    run.display.doing("figures and pivots")
    write_report(run.folder.file("report.html"), run.folder, run.prompter)
