"""A process that answers messages, and its death."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cca.errors import InputError
from cca.model.engines.process import Process, Refused

ANSWERS = """
import json, os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
print("said on the way", flush=True)
for line in channel.makefile("rb"):
    asked = json.loads(line)
    if "die" in asked:
        os.kill(os.getpid(), asked["die"])
    if "leave" in asked:
        sys.exit(asked["leave"])
    channel.sendall(json.dumps({**asked, "pid": os.getpid()}).encode() + b"\\n")
"""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "answers.py").write_text(ANSWERS)
    process = Process("it", sys.executable, tmp_path / "answers.py", os.environ)
    yield process
    if process.child.returncode is None:
        process.end()


def test_it_answers_and_ends_when_it_is_told_to(process):
    assert process.ask({"n": 1})["n"] == 1
    with pytest.raises(Refused, match="not today"):
        process.ask({"error": "not today"})
    assert process.ask({"n": 2})["pid"] == process.child.pid, "what it refused did not end it"
    process.end()
    assert process.child.returncode == 0


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            {"die": signal.SIGKILL},
            "of it was killed by SIGKILL, as by a system whose memory is full; it said last: said",
        ),
        ({"die": signal.SIGSEGV}, "of it was killed by SIGSEGV; it said last: said on the way"),
        ({"leave": 3}, "of it ended with exit code 3"),
    ],
)
def test_its_death_is_an_error_that_says_how_it_ended(process, message, said):
    with pytest.raises(ConnectionError, match=said):
        process.ask(message)
    assert process.child.returncode is not None


def test_it_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "answers.py").write_text(ANSWERS)
    starts = (
        "import os, sys\nfrom pathlib import Path\nfrom cca.model.engines.process import Process\n"
        f"process = Process('it', sys.executable, Path({str(tmp_path / 'answers.py')!r}), os.environ)\n"
        "print(process.ask({})['pid'], flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    while True:  # an orphan that has ended is gone as soon as its new parent sees it
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            break
        if state == "Z":
            break


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"cannot start it with /nowhere/python \(No such file"):
        Process("it", "/nowhere/python", Path("x.py"), os.environ)
