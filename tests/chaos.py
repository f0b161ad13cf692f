"""Kill a run at random moments, again and again, and see that it always ends with the identical result.

    python tests/chaos.py --kills 100 --seed 0

Each kill is SIGKILL to the whole process group of a real ``cca run`` of the bundled model: half of them at a random
moment, which may be in its first imports, half as its folder changes, where a file is begun, grows or gets its name.
Then the same command goes on, to be killed again or to the end, where every file must be as it is of a run that nothing
disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path

from cca.run.stages import STAGES

SOURCE = Path(__file__).parent.parent / "src"
SMALLEST = """
seed = 3
[problems]
templates = [62, 0]
train = 3
validation = 2
test = 1
held_out = 0.0
[traces]
samples = 4
skip_solved = 0
max_new_tokens = 80
[pivots]
confirm = 2
gap = 0.0
[circuit]
lambda = 0.1
target_density = 0.05
learning_rate = 0.2
epochs = 3
min_steps = 0
[update]
steps = 2
validate_every = 1
[evaluation]
transfer = []
retention = ["leg_counting"]
per_skill = 1
drift_problems = 2
"""
"""Every stage does something: pivots are confirmed, a lambda is searched for, a step is kept, and answers that are cut
are warned of."""
TWO_ROUNDS = "rounds = 2" + SMALLEST
_TIMES = ("seconds", "peak_gib", "date", "checksum")
"""What the manifest says that differs between any two runs; its checksum covers the others."""
_EVERY = 0.001
"""Seconds between two looks at the folder."""
_LONGEST = 900
"""Seconds that a run may take, however busy the machine is."""


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed. begun: seconds until its folder was there. changes: that its folder showed."""

    folder: Path
    seconds: float
    begun: float
    changes: int


@dataclass(frozen=True)
class Kill:
    """A kill. stage: in which it fell, as the folder says. left: files that were half written. result: of its run."""

    moment: str
    stage: str
    left: tuple[str, ...]
    result: str = ""

    @property
    def identical(self) -> bool:
        return self.result == "identical"

    def __str__(self) -> str:
        left = f", left {' '.join(self.left)}" if self.left else ""
        return f"{self.moment:<38} {self.stage}{left}: {self.result}"


class Victim:
    """A run at work, of which is known what its folder shows."""

    def __init__(self, config: Path, folder: Path):
        self.folder, self.said = folder, config.with_suffix(".stderr")
        command = [sys.executable, "-m", "cca.cli", "run", str(config), "--out", str(folder), "--quiet"]
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
            )
        self.began, self.changes, self._seen = time.monotonic(), 0, _state(folder)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for a moment; False where the run ended before."""
        while self.process.poll() is None:
            if (now := _state(self.folder)) != self._seen:
                self.changes, self._seen = self.changes + 1, now
            if reached():
                return True
            if self.seconds > _LONGEST:
                self.kill()
                raise TimeoutError(f"{self.folder} took more than {_LONGEST} seconds")
            time.sleep(_EVERY)
        return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Let it end; what is wrong with how it did, else nothing."""
        self.until(lambda: False)
        said = self.said.read_text(errors="replace")
        if self.process.returncode or "Traceback" in said:
            return f"exit code {self.process.returncode}: {said.strip().splitlines()[-1:]}"
        return ""


def _state(folder: Path) -> dict[str, int]:
    """The files of a run and their sizes; what goes as it is looked at is not there."""
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    found |= {f"{entry.name}/{name}": size for name, size in _state(Path(entry.path)).items()}
                else:
                    found[entry.name] = entry.stat().st_size
    except FileNotFoundError:
        pass
    return found


def undisturbed(config: Path, folder: Path) -> Whole:
    """Run `config` once, to its end."""
    victim = Victim(config, folder)
    victim.until(lambda: victim.changes > 0)
    begun = victim.seconds
    if wrong := victim.end():
        raise RuntimeError(f"the undisturbed run failed with {wrong}")
    return Whole(folder, victim.seconds, begun, victim.changes)


def killed(config: Path, folder: Path, whole: Whole, draw: random.Random, kills: int) -> list[Kill]:
    """Kill a run so many times in a row, fewer where it ends before, then let it end and compare it."""
    found, worked, seen, wrong = list[Kill](), 0.0, 0, ""
    for _ in range(kills):
        victim, share = Victim(config, folder), draw.random()
        if draw.random() < 0.5:
            number, late = 1 + int(share * max(1, whole.changes - seen)), draw.uniform(0, 0.003)
            there = victim.until(lambda victim=victim, number=number: victim.changes >= number)
            time.sleep(late)  # into what the change begins
            moment = f"change {number} of about {max(1, whole.changes - seen)}"
        else:
            at = share * max(whole.begun, whole.seconds - worked)
            there = victim.until(lambda victim=victim, at=at: victim.seconds >= at)
            moment = f"{at:.3f} s"
        if not there:
            wrong = victim.end()
            break
        moment, worked, seen = f"{moment} ({victim.seconds:.3f} s)", worked + victim.seconds, seen + victim.changes
        worked -= min(victim.seconds, whole.begun)
        victim.kill()
        found.append(Kill(moment, stage_of(folder), tuple(sorted(n for n in _state(folder) if n.endswith(".tmp")))))
    result = wrong or Victim(config, folder).end() or _compared(whole.folder, folder)
    if not found and result != "identical":
        raise RuntimeError(f"a run that was not even killed: {result}")
    return [replace(kill, result=result) for kill in found]


def stage_of(folder: Path) -> str:
    """At what a run is, as its manifest says."""
    if not (folder / "manifest.json").exists():
        return "before its manifest" if folder.exists() else "before its folder"
    finished = json.loads((folder / "manifest.json").read_text())["stages"]
    stage = next((name for name in STAGES if name not in finished), "after the last stage")
    inner = max(folder.glob("round-*"), default=None) if stage == "update" else None
    return f"update, {inner.name}, {stage_of(inner)}" if inner else stage


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run, without the times that it took."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in found:
        if name.endswith("manifest.json"):
            manifest = {key: value for key, value in json.loads(found[name]).items() if key not in _TIMES}
            manifest["stages"].get("report", {}).clear()
            found[name] = json.dumps(manifest, sort_keys=True).encode()
        elif name == "report.html":  # which tells the times
            found[name] = found[name][-20:]
    return found


def _compared(whole: Path, folder: Path) -> str:
    there, here = contents(whole), contents(folder)
    wrong = {
        "lacks": there.keys() - here.keys(),
        "has": here.keys() - there.keys(),
        "differs in": {name for name in there.keys() & here.keys() if there[name] != here[name]},
    }
    return ", ".join(f"{how} {' '.join(sorted(names))}" for how, names in wrong.items() if names) or "identical"


def chaos(
    configs: Sequence[str], out: Path, kills: int, seed: int, in_a_row: Sequence[int] = (1, 1, 2, 3, 5)
) -> Iterator[Kill]:
    """So many kills of runs of `configs` in turn.

    Args:
        configs: as TOML.
        out: where the runs go; those that end as they should are deleted.
        in_a_row: kills of a run, of which one is drawn for each.
    """
    variants = list[tuple[Path, Whole]]()
    for number, text in enumerate(configs):
        path = out / f"config-{number}.toml"
        path.write_text(text)
        variants.append((path, undisturbed(path, out / f"undisturbed-{number}")))
    done = 0
    for number, (config, whole) in zip(count(), cycle(variants)):
        draw, folder = random.Random(f"{seed}, {number}"), out / f"killed-{number}"
        found = killed(config, folder, whole, draw, min(draw.choice(in_a_row), kills - done))
        yield from found
        done += len(found)
        if all(kill.identical for kill in found):
            shutil.rmtree(folder)
        if done >= kills:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where runs go (default: a folder that is deleted in the end)")
    parser.add_argument(
        "--config", type=Path, help="of the run (default: a small one, with and without a second round)"
    )
    options = parser.parse_args()
    configs = [options.config.read_text()] if options.config else [SMALLEST, TWO_ROUNDS]
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        identical = 0
        for number, kill in enumerate(chaos(configs, out, options.kills, options.seed), 1):
            identical += kill.identical
            print(f"{number:>4} {kill}", flush=True)
    print(f"{identical} of {options.kills} identical")
    return int(identical < options.kills)


if __name__ == "__main__":
    sys.exit(main())
