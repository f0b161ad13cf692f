"""Writing answers: the library's writer against `model.generate` and, where it is built, vLLM.

Rows of the same prompts write the same number of tokens, greedily and by samples; an end token does not end them.
vLLM (`make vllm`, or CCA_VLLM_PYTHON) runs in a process of its own, without CUDA graphs and compilation, and takes
its turn when it is told to. A real model is of bfloat16, as one would serve it.
"""

import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import work
from lines import Line, Setting, part, skipped
from timing import Kept, Times, compared, environment, floor_of, in_turns

from cca.model.bundled import location
from cca.model.generate import Row, write
from cca.model.gguf.header import is_gguf
from cca.model.open import Model
from cca.model.read import texts
from cca.model.sampling import stream

VLLM = Path(os.environ.get("CCA_VLLM_PYTHON", Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"))
SERVER = Path(__file__).with_name("vllm_rows.py")
KINDS = {"greedy": 0.0, "sampled": 1.2}
"""Temperatures."""


def prompts_of(model: Model, count: int) -> list[list[int]]:
    """Prompts of problems, which differ in length."""
    asked = work.problems(8, count // 8 + 1)[:count]
    return [list(model.prompter.prompt(problem)) for problem in asked]


def ours(network: Any, prompts: Sequence[Sequence[int]], temperature: float, tokens: int) -> list[list[int]]:
    rows = [
        Row(text, tokens, (number,), temperature=temperature, uniforms=stream(0, number).random(tokens))
        for number, text in enumerate(texts(prompts))
    ]
    write(network, rows, slots=len(rows), end_tokens=frozenset())
    return [row.tokens for row in rows]


def by_generate(network: Any, prompts: Sequence[Sequence[int]], temperature: float, tokens: int) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    how = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "repetition_penalty": 1.0} | how
    out = network.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **how
    )
    return out[:, width:].tolist()


class Served:
    """vLLM in a process of its own, which writes when it is told to."""

    def __init__(self, folder: str, dtype: str, context: int):
        spec = json.dumps({"folder": folder, "dtype": dtype, "context": context})
        known = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [str(VLLM), str(SERVER), spec], env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, prompts: Sequence[Sequence[int]], temperature: float, tokens: int) -> list[list[int]]:
        assert self.process.stdin and self.process.stdout
        asked = {"prompts": prompts, "temperature": temperature, "tokens": tokens}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("[["):
                return json.loads(answer)
        raise RuntimeError(f"vLLM has ended with {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def equal(one: list[list[int]], other: list[list[int]]) -> float:
    """The share of rows that are the same."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def served(model: Model, dtype: str, context: int, stack: ExitStack) -> Served | str:
    """vLLM with the model, or why there is none."""
    if not VLLM.exists():
        return "skipped: vLLM is not built (make vllm)"
    folder = location(model.name)
    if is_gguf(model.name):
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        model.network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    found = Served(folder, dtype, context)
    stack.callback(found.close)
    return found


def written(model: Model, name: str, dtype: str, sizes: Mapping[int, int], tokens: int) -> Iterator[Line]:
    """sizes: the repeats by the number of rows."""
    with ExitStack() as stack:
        vllm = served(model, dtype, 1024, stack)
        for (rows, repeats), (kind, temperature) in itertools.product(sizes.items(), KINDS.items()):
            asked = prompts_of(model, rows), temperature, tokens
            write_ours = partial(ours, model.network, *asked)
            methods = {"cca": Kept(write_ours), "generate": Kept(partial(by_generate, model.network, *asked))}
            if isinstance(vllm, Served):
                methods["vLLM"] = Kept(partial(vllm, *asked))
            for method in (partial(ours, model.network), partial(by_generate, model.network), vllm):
                if callable(method):
                    method(asked[0][:2], temperature, 2)  # a warm-up
            times, cca = in_turns(methods, repeats, warm=False), methods.pop("cca")
            floor = floor_of(model.network, write_ours)
            for method, plain in methods.items():
                note = per_second(rows * tokens, times[method], times["cca"])
                if not temperature:
                    note += f"; {equal(cca.found, plain.found):.0%} of the rows the same"
                what = f"{name}, {rows} rows x {tokens}, {kind}, {method}"
                yield compared(what, times[method], times["cca"], floor=floor, note=note)
        if isinstance(vllm, str):
            yield Line(f"{name}, vLLM", note=vllm)


def per_second(tokens: int, plain: Times, cca: Times) -> str:
    return f"{tokens / plain.least:,.0f} and {tokens / cca.least:,.0f} tokens/s"


def lines(setting: Setting) -> Iterator[Line]:
    yield from written(
        work.bundled(), "bundled", "float32", {2: 1} if setting.quick else {16: 3, 64: 3}, setting.of(64, 4)
    )
    if setting.model is None:
        yield skipped("generation, a real model")
        return
    model = work.given(setting.model, "bfloat16")
    sizes = {2: 1} if setting.quick else {16: 2, 64: 1}
    yield from written(model, work.name_of(setting.model), "bfloat16", sizes, setting.of(32, 4))


if __name__ == "__main__":
    part(__doc__, lines)
