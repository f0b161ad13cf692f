"""Does a row of a product have the same bits whatever stands beside it, and what does that cost?
`python benchmarks/same_bits.py`

Products of the shapes of a 0.5B model, among 8 to 512 rows and with one and two threads, in float32 and bfloat16, as
the libraries do them and under settings that their makers name for this. `cca` sets the first, `ROUNDING`.
"""

import os
import subprocess
import sys
import time

from cca.cli import ROUNDING, WAITING

SETTINGS = {"float32": ({}, ROUNDING), "bfloat16": ({}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})}
SHAPES = ((896, 896), (896, 128), (896, 4864), (4864, 896), (896, 151936))
ROWS = (8, 16, 64, 128, 512)


def work(dtype: str) -> None:
    """Prints seconds of all products for each number of rows, and how many shapes gave some row other bits."""
    import torch
    from torch.nn.functional import linear

    seconds, differing = dict.fromkeys(ROWS, 0.0), set[tuple[int, int]]()
    for inputs, outputs in SHAPES:
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(outputs, inputs, generator=draw).mul(0.05).to(getattr(torch, dtype))
        rows = torch.randn(ROWS[-1], inputs, generator=draw).to(weight.dtype)
        found = list[torch.Tensor]()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in ROWS:
                found.append(linear(rows[:count], weight))
                took = list[float]()
                for _ in range(3):
                    start = time.perf_counter()
                    linear(rows[:count], weight)
                    took.append(time.perf_counter() - start)
                seconds[count] += min(took) if threads == 2 else 0.0
        if any(not out.equal(found[-1][: len(out)]) for out in found):
            differing.add((inputs, outputs))
    times = " / ".join(f"{1000 * s:.1f}" for s in seconds.values())
    print(f"ms {times}; {len(differing)} of {len(SHAPES)} products depend on rows or threads")


def main() -> None:
    print(f"{os.cpu_count()} cores; among {', '.join(map(str, ROWS))} rows, two threads")
    rest = {k: v for k, v in os.environ.items() if not k.startswith(("MKL_", "ONEDNN_", "OMP_"))} | WAITING
    for dtype, settings in SETTINGS.items():
        for setting in settings:
            child = [sys.executable, __file__, dtype]
            found = subprocess.run(child, env=rest | setting, capture_output=True, text=True, check=True)
            said = ", ".join("=".join(pair) for pair in setting.items()) or "as it is"
            print(f"{dtype}, {said}: {found.stdout.strip()}", flush=True)


if __name__ == "__main__":
    work(sys.argv[1]) if len(sys.argv) > 1 else main()
