"""A real pretrained model on this machine: each part's time, what the part before it took, and the floor under both.

    python benchmarks/real_model.py qwen2.5-coder-0.5b-instruct.gguf --before ../cca-fd27c82 [--only decode,read]

--before is a worktree of an earlier commit (git worktree add ../cca-fd27c82 fd27c82), whose code does the same work in
a process of its own; without it there is no such column. Nothing else may run meanwhile. The floor of a step is the
time of its linear layers alone, on the same numbers of rows; a copy of memory is timed beside it.

decode      a step of 16, 64 and 128 rows after prompts of 100 tokens: greedy, and sampled
read        prompts of 100 tokens, 16, 64 and 128 of them: tokens a second
start       a step of 64 and 128 rows that begin with the same 500 or 1,000 tokens, and where each keeps these itself
generate    a greedy step of 16 and 64 rows, and of `model.generate`
stage1      greedy traces and samples of opposite correctness for GSM-Symbolic problems
branch      the pivots of the pairs that stage1 found
gradient    stage 3: one full gradient over 100 pivots of 210 tokens, and of 32 after 8 worked examples of 700 tokens
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from floor import best, copy_rate, decode_steps, linear_layers, wait
from real_model_work import WORK, gradient_work
from transformers import StoppingCriteria, StoppingCriteriaList

from cca.model.open import Model, open_model
from cca.model.read import read, texts, tokens_of_a_pass
from cca.problems.prompts import PromptOptions
from cca.problems.splits import ProblemOptions, build_problems, chosen_source

ASK = "{question}\nSolve the problem step by step, briefly. End with a last line of the form: #### number"
ROWS = (16, 64, 128)
PROMPT = 100
STARTS = (500, 1000)
PARTS = ("decode", "read", "start", "generate", "stage1", "branch", "gradient")


def line(what: str, now: str, before: str = "", floor: str = "", ratio: str = "") -> None:
    print(f"{what:<34}{now:>14}{before:>16}{floor:>16}  {ratio}", flush=True)


def prompts(network: Any, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    vocabulary = network.config.get_text_config().vocab_size
    return torch.randint(10, vocabulary - 500, (count, PROMPT), generator=generator).tolist()


class _Clock(StoppingCriteria):
    """Asked after each step of `model.generate`: when that was."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        del scores
        wait()
        self.seen.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_step(network: Any, ids: Any, steps: int = 17) -> float:
    """Seconds of the shortest step of `model.generate`, prompts not counted."""
    clock = _Clock()
    network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return min(b - a for a, b in itertools.pairwise(clock.seen))


def decode(network: Any) -> None:
    for rows in ROWS:
        (greedy, sampled), floor = decode_steps(network, prompts(network, rows), (0.0, 1.2))
        line(
            f"decode, a step of {rows} rows",
            f"{greedy * 1e3:.0f} ms",
            "",
            f"{floor * 1e3:.0f} ms",
            f"{greedy / floor:.2f}x the floor; sampled {sampled * 1e3:.0f} ms ({sampled / greedy:.2f}x)",
        )


def after_a_start(network: Any) -> None:
    for rows, length in itertools.product(ROWS[1:], STARTS):
        start = prompts(network, 1)[0] * (length // PROMPT)
        (once, copied), floor = decode_steps(
            network, [start + own for own in prompts(network, rows)], (0.0,), starts=(start, ())
        )
        line(
            f"decode, {rows} rows after {length} + {PROMPT}",
            f"{once * 1e3:.0f} ms",
            f"{copied * 1e3:.0f} ms +",
            f"{floor * 1e3:.0f} ms",
            f"{copied / once:.2f}x",
        )


def generate(network: Any) -> None:
    """Not of more rows, whose prompts would fill the memory of a small machine."""
    for rows in ROWS[:-1]:
        ids = prompts(network, rows)
        (now,), floor = decode_steps(network, ids, (0.0,))
        before = generate_step(network, torch.tensor(ids, device=network.device))
        line(
            f"decode, against generate, {rows} rows",
            f"{now * 1e3:.0f} ms",
            f"{before * 1e3:.0f} ms *",
            f"{floor * 1e3:.0f} ms",
            f"{before / now:.2f}x",
        )


@torch.no_grad()
def reading(network: Any) -> None:
    for rows in ROWS:
        ids, tokens, took, floors = prompts(network, rows), rows * PROMPT, list[float](), list[float]()
        some = min(tokens, tokens_of_a_pass(network))
        for _ in range(3):
            took.append(best(lambda ids=ids: read(network, texts(ids, ())), 1))
            floors.append(linear_layers(network, some, some // PROMPT, 1) * tokens / some)
        now, most = tokens / min(took), tokens / min(floors)
        line(f"read {rows} prompts", f"{now:.0f} tok/s", "", f"{most:.0f} tok/s", f"{most / now:.2f}x the floor's time")


def draw(model: Model, source: str, count: int, tokens: int, samples: int) -> dict[str, Any]:
    """Problems as both sides are asked them."""
    drawn = ProblemOptions(source=source, train=3, validation=1, test=1, held_out=0.0)
    problems = [p for p in build_problems(chosen_source(drawn), drawn, seed=0) if p.split == "train"]
    chosen = problems[:: max(1, len(problems) // count)][:count]
    return {
        "problems": [(p.id, p.template, model.prompter.prompt(p), p.answer) for p in chosen],
        "end_tokens": sorted(model.end_tokens),
        "limit": tokens,
        "samples": samples,
    }


class Sides:
    """The same work by the code of here and, where it is given, of an earlier commit; each in a process of its own."""

    def __init__(self, before: Path | None, folder: Path):
        here = Path(__file__).parent.parent / "src"
        self.sources = {"now": here} | ({"before": before / "src"} if before else {})
        self.folder = folder

    def run(self, part: str, work: dict[str, Any]) -> dict[str, dict[str, Any]]:
        file = self.folder / "work.json"
        file.write_text(json.dumps(work), encoding="utf-8")
        found = {}
        for side, source in self.sources.items():
            command = [sys.executable, WORK, part, side, str(self.folder / "model"), str(file)]
            environment = os.environ | {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
            out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[side] = json.loads(out.splitlines()[-1])
        return found


def compare(what: str, found: dict[str, dict[str, Any]], floor: str = "") -> None:
    now, before = found["now"], found.get("before")
    line(
        what,
        f"{now['seconds']:.1f} s",
        f"{before['seconds']:.1f} s" if before else "",
        floor,
        (f"{before['seconds'] / now['seconds']:.1f}x; " if before else "")
        + "; ".join(f"{side}: {f['said']}, peak {f['gib']:.1f} GiB" for side, f in found.items()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file or a folder")
    parser.add_argument("--before", type=Path, help="a worktree of an earlier commit")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", help="of decode and read")
    parser.add_argument("--source", default="gsm-symbolic", help="of the problems, as problems.source takes it")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    parts = options.only.split(",")
    prompt = PromptOptions(style="chat", template=ASK)
    model = open_model(options.model, dtype=options.dtype, device=options.device, prompt=prompt)
    network = model.network
    print(
        f"{model}\n{torch.get_num_threads()} threads, {options.dtype}; a copy: {copy_rate(options.device):.0f} GB/s\n"
    )
    line("", "now", "before", "floor")
    if "decode" in parts:
        decode(network)
    if "read" in parts:
        reading(network)
    if "start" in parts:
        after_a_start(network)
    if "generate" in parts:
        generate(network)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if set(parts) & {"stage1", "branch", "gradient"}:
            network.save_pretrained(folder / "model")
            model.tokenizer.save_pretrained(folder / "model")
        sides = Sides(options.before, folder)
        many = tokens_of_a_pass(network)
        a_token = linear_layers(network, many, 8, 1, backward=True) / many if "gradient" in parts else 0.0
        if set(parts) & {"stage1", "branch"}:
            work = draw(model, options.source, options.problems, options.tokens, options.samples)
            step = linear_layers(network, 64)
            del network, model
            found = sides.run("stage1", work)
            floor = found["now"]["tokens"] / 64 * step
            compare(f"stage 1, {options.problems} problems", found, f"{floor:.0f} s")
            if "branch" in parts:
                found = sides.run("branch", work | {"pairs": found["now"]["pairs"]})
                compare(f"branch search, {found['now']['count']} pairs", found)
        if "gradient" in parts:
            for what, count, length, shared, batches in (
                ("100 pivots of 210", 100, 210, 0, (4, 8, 16)),
                ("32 of 700 + 100", 32, 100, 700, (2, 4, 8)),
            ):
                work = gradient_work(count, length, shared, batches)
                tokens = shared + sum(len(p) - shared for p in work["prefixes"])
                compare(f"gradient, {what} tokens", sides.run("gradient", work), f"{tokens * a_token:.0f} s")
    print("\n* of model.generate with transformers' own cache; + where each row keeps its own start")


if __name__ == "__main__":
    main()
