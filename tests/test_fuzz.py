"""Whatever a stranger put into a file is read or refused; what the fuzzing itself would miss, it would not be worth."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from fuzz import REFUSED, Target, fault

from cca.errors import InputError

SCRIPT = Path(fuzz.__file__)


def test_a_thousand_made_up_files_of_every_kind_are_read_or_refused(tmp_path):
    command = [sys.executable, str(SCRIPT), "--inputs", "1020", "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "1,020 inputs, 0 faults"
    counts = re.findall(r"60 inputs, (\d+) read", done.stdout)
    assert len(counts) == len(fuzz.TARGETS) and sum(map(int, counts)) > 50, "enough of them get past the first check"


def _raises(_: Path) -> None:
    raise ValueError("what was that?")


def _refuses(_: Path) -> None:
    raise InputError("mend it")


def _writes(path: Path) -> None:
    (path.parent.parent / "outside").write_text("x")


def _deletes(path: Path) -> None:
    (path.parent.parent / "precious").unlink(missing_ok=True)


def _starts(_: Path) -> None:
    os.system("true")


def _takes_long(_: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        pass


def _reads(path: Path) -> None:
    (path.parent / "inside").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (_raises, "ValueError: what was that?"),
        (_writes, "writes .*outside"),
        (_deletes, "os.remove .*precious"),
        (_starts, "os.system"),
        (_takes_long, "takes more than 1 seconds"),
        (_refuses, f"^{REFUSED}$"),
        (_reads, None),
    ],
)
def test_the_fuzzing_sees_what_must_not_happen(read: Callable[[Path], None], said, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    fuzz.watch()
    found = fault(Target("x", list, read), b"data", tmp_path / "input")
    assert found is None if said is None else re.search(said, found or "")


def test_the_same_seed_makes_the_same_inputs():
    import random

    seeds = [b'{"question": "2 + 3?", "answer": 5}' * 3]
    made = [[fuzz.mutated(seeds, random.Random(f"0 x {n}"), "x") for n in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 40
