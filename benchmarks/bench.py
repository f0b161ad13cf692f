"""The library's shortcuts against the plain methods, side by side, with the floor beside each.

    python benchmarks/bench.py [--model qwen2.5-coder-0.5b-instruct.gguf] [--only circuit_step,update_step] [--json]

Each part is a process of its own, in which the methods take turns; what it is compared with stands at the top of its
file. Nothing else may run meanwhile. Without a model, by --model or in CCA_BENCH_MODEL, the bundled one is all that is
measured. The exit code is 1 where a bar is missed or a part failed; --quick has no bars.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from lines import Line, Setting, add_arguments, head, missed, said_by, setting_of
from timing import environment

PARTS = {
    "branch_search": "branch search",
    "circuit_step": "circuit step",
    "update_step": "update step",
    "generation": "generation",
    "end_to_end": "end to end",
    "growth": "growth",
    "workers": "workers",
}
BUSY = 0.5
"""A load above which something else is running."""


class PartFailed(Exception):
    """A part ended with an error, which it has said."""


def run(name: str, setting: Setting) -> Iterator[Line]:
    """The lines of a part, as it finds them.

    Raises:
        PartFailed: it did not end well.
    """
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *setting.arguments()]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield from said_by(process.stdout)
    if process.returncode:
        raise PartFailed(f"{PARTS[name]} ended with exit code {process.returncode}")


def machine(load: float) -> str:
    """What is said at the top."""
    cores, threads = os.cpu_count(), os.environ.get("OMP_NUM_THREADS", "as many")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    said = [
        f"{cores} cores, {threads} threads; {versions}. Nothing else may run beside this; the load is {load:.1f}.",
        "The shortest repeat counts; spread: by how much the longest exceeds it. ratio: plain / cca, or, where the bar",
        "is a most, cca / plain. floor: the linear layers alone, on as many rows.",
    ]
    if load > BUSY:
        said.append("WARNING: something else is running, so these figures are worth little.")
    return "\n".join(said)


def ended(found: Mapping[str, Sequence[Line]], failed: Sequence[str]) -> tuple[list[str], int]:
    """What to say at the end, and the exit code: 1 where a bar is missed or a part failed."""
    said = [f"FAILED: {why}" for why in failed]
    barred = 0
    for name, lines in found.items():
        barred += sum(line.reached is not None for line in lines)
        said += [f"MISSED: {PARTS[name]}, {line.what}: {line.ratio:.2f}x" for line in missed(lines)]
    below = sum(len(missed(lines)) for lines in found.values())
    said.append(f"{barred - below} of {barred} bars that were measured are reached")
    return said, int(bool(below or failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", action="store_true", help="all lines as JSON on the standard output, when it is over")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose among {', '.join(PARTS)}")
    setting = setting_of(given)
    table = sys.stderr if given.json else sys.stdout
    print(machine(os.getloadavg()[0]), head(), sep="\n\n", file=table, flush=True)
    found, failed = dict[str, list[Line]](), list[str]()
    for name in chosen:
        print(PARTS[name], file=table, flush=True)
        found[name] = []
        try:
            for line in run(name, setting):
                line = replace(line, bar=None) if setting.quick else line
                found[name].append(line)
                print(f"  {line.row()}", file=table, flush=True)
        except PartFailed as error:
            failed.append(str(error))
    said, code = ended(found, failed)
    print(*said, sep="\n", file=table)
    if given.json:
        print(json.dumps({name: [asdict(line) for line in lines] for name, lines in found.items()}, indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main())
