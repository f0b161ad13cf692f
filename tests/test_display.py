"""What people see in the terminal while a run works."""

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import SMALL_BUT_WHOLE

from cca import cli
from cca.folder import RunFolder
from cca.io import to_json
from cca.records import Problem
from cca.run.run import Run
from cca.show.progress import Display, Lines, LiveDisplay, clock


def one_line(text: str) -> str:
    return " ".join(text.split())


def in_a_terminal(command: list[str], until: str | None = None, columns: int = 100) -> tuple[str, int]:
    """What `command` writes to a terminal, and its exit code; Ctrl-C is typed once `until` was written."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    os.close(follower)
    text, deadline = b"", time.monotonic() + 180
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                text += os.read(leader, 65536)
            except OSError:  # nobody writes there any more
                break
            if until is not None and until.encode() in text:
                os.killpg(process.pid, signal.SIGINT)
                until = None
    os.close(leader)
    return text.decode(errors="replace"), process.wait()


def test_the_live_display_shows_stages_and_figures_and_ctrl_c_leaves_the_command_that_resumes(tmp_path):
    (tmp_path / "c.toml").write_text(SMALL_BUT_WHOLE)
    command = [sys.executable, "-m", "cca.cli", "run", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")]
    text, code = in_a_terminal(command, until="0/32 problems")
    assert code == 130
    assert "▶" in text
    assert all(stage in text for stage in ("trace", "pivots", "circuit", "update", "evaluate", "report"))
    assert "✗" in text, "the stage that was stopped is marked"
    assert "\x1b[?25h" in text, "the cursor is shown again"
    end = one_line(text[text.rindex("interrupted") :]).replace(" ", "")
    assert f"cca run {tmp_path / 'c.toml'} --out {tmp_path / 'run'}".replace(" ", "") in end
    assert "Traceback" not in text
    assert RunFolder.open(tmp_path / "run").read("problems.jsonl", Problem)


def test_where_there_is_no_terminal_there_are_plain_lines_with_the_current_figures(capsys):
    display = Lines()
    with display.running(["update"], []), display.stage("update"), display.bar("update", 3, "steps", done=1) as bar:
        bar.figure("validation", "56.3%")
        bar.reach(2)
        display.shown -= 11  # ten seconds later
        bar.reach(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "update: 2 steps to do"
    assert lines[1].startswith("update: 2/3 steps, ")
    assert lines[1].endswith(" left; validation 56.3%")
    assert lines[2].startswith("update: done in ")


def test_the_display_marks_what_is_done_at_work_and_stopped():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    display = LiveDisplay(console, "a run")
    with pytest.raises(KeyboardInterrupt), display.running(["trace", "pivots", "circuit"], ["trace"]):
        with display.stage("pivots"), display.bar("pivots", 4, "problems") as bar:
            bar.reach(2)
            bar.figure("pivot yield", "50.0%")
        with display.stage("circuit"):
            display.doing("something long")
            console.print(display.progress)
            raise KeyboardInterrupt
    text = console.export_text()
    assert "✓ trace" in text
    assert "done before" in text
    assert "2/4 problems" in text
    assert re.search("▶ circuit ━+ something long", one_line(text))
    assert "pivot yield 50.0%" in text
    assert display.current is not None
    assert (display.current.description, display.current.fields["state"]) == ("circuit", "stopped")
    assert [clock(s) for s in (8, 185, 3760)] == ["8 s", "3:05", "1:02:40"]


def test_quiet_shows_nothing(capsys):
    display = Display()
    with display.running(["trace"], []), display.stage("trace"), display.bar("trace", 3, "problems") as bar:
        bar.reach(3)
        bar.figure("a", "b")
        display.doing("more")
    assert capsys.readouterr().err == ""


def test_progress_goes_to_stderr_and_json_to_stdout(mended, tmp_path, capfd):
    shutil.copytree(mended, tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run"), "--redo", "--json"]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out) == json.loads(to_json(Run.load(mended).summary))
    assert "figures and pivots" in error
