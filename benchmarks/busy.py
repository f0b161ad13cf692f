"""What work beside it on the same cores costs: `python benchmarks/busy.py [MODEL]` (if none is given the bundled one).

torch's threads wait for one another by spinning. Where another process has one of their cores, they spin in vain: the
`cca` command has them spin for a shorter while (`GOMP_SPINCOUNT`), and this compares the two, alone and beside a
process that keeps one core busy.
"""

import os
import subprocess
import sys
import time

from cca.cli import WAITING

BUSY = "while True: pass"
WAITS = {"torch's own": {}, "the cca command's": WAITING}


def work(path: str) -> None:
    """Write 64 sequences of 30 tokens, and take one gradient of 4 x 200; prints the seconds of each."""
    import torch

    import cca
    from cca.model.generate import generate_greedy

    network = cca.open_model(path, device="cpu").network.requires_grad_()
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 100, (64, 150), generator=draw).tolist()
    ids = torch.randint(5, 100, (4, 200), generator=draw)
    generate_greedy(network, prompts[:8], max_new_tokens=2, end_tokens=frozenset())
    start = time.perf_counter()
    generate_greedy(network, prompts, max_new_tokens=30, end_tokens=frozenset())
    written = time.perf_counter()
    for _ in range(3):
        network(input_ids=ids).logits.float().square().mean().backward()
    print(f"{written - start:.2f} {time.perf_counter() - written:.2f}")


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "bundled"
    rest = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_WAIT_POLICY")}
    print(f"{path}; {os.cpu_count()} cores. Seconds to write 64 x 30 tokens, and of three gradients of 4 x 200")
    for beside in ("nothing", "a busy process"):
        for wait, settings in WAITS.items():
            busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside != "nothing" else None
            try:
                child = [sys.executable, __file__, path, "--work"]
                found = subprocess.run(child, env=rest | settings, capture_output=True, text=True, check=True)
            finally:
                if busy:
                    busy.kill()
            print(f"beside {beside}, waiting of {wait}: {found.stdout.strip()}", flush=True)


if __name__ == "__main__":
    work(sys.argv[1]) if sys.argv[-1] == "--work" else main()
