"""vLLM in a process of its own. Run by the interpreter of an environment that has vLLM and may lack cca's packages, so
that nothing of cca is imported here:

    python vllm_process.py SOCKET

SOCKET is the number of an open socket. Lines of JSON come and go there: a message, its answer, the next message. The
first says what to start with, and is answered by `version` of vLLM and `context`, tokens that a text may have. What may
stand in others: `abort`, numbers of requests that are not wanted any more; then `load`, to take all weights from the
model's files anew, those of the file that it names (or null) in place of their own; `adapter`, a folder (or null) whose
LoRA adapter later requests have; or `add`, requests, after which a step is done and answered by what it wrote.

One step a message makes it certain which requests are computed together, and with that how they are rounded.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps are done here, where messages say
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked worker would keep the socket open
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_CANDIDATES = 4
"""Tokens that are looked at for the argmax after a token of a text: in 16 bits several logits may be equal."""
_SECONDS = 10
"""How long it may take to end when nobody listens any more."""


class Server:
    """vLLM with one model."""

    def __init__(self, spec: dict[str, Any]):
        from vllm import LLM  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        self.files, self.adapter, self.adapters = [Path(file) for file in spec["files"]], None, 0
        self.read_from: dict[str, int] = {}
        rank = spec["rank"]
        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 2} if rank else {}
        self.engine = LLM(
            model=spec["model"], dtype=spec["dtype"], trust_remote_code=spec["trust_remote_code"],
            tensor_parallel_size=spec["tensor_parallel"], gpu_memory_utilization=spec["memory_share"],
            max_model_len=-1, max_num_seqs=spec["seats"], max_num_batched_tokens=max(2048, spec["seats"]),
            enable_prefix_caching=True, async_scheduling=False, enforce_eager=current_platform.is_cpu(),
            skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="raw_logits", **lora,
        ).llm_engine  # fmt: skip

    def started(self) -> dict[str, Any]:
        import vllm  # pyright: ignore[reportMissingImports]

        return {"version": vllm.__version__, "context": self.engine.model_config.max_model_len}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("abort"):
            self.engine.abort_request(message["abort"])
        if "load" in message:
            self.engine.collective_rpc(_load, args=(list(map(str, self.files)), message["load"]))
            if not self.engine.reset_prefix_cache():
                raise RuntimeError("the prefix cache cannot be emptied, since a request holds part of it")
            return {}
        if "adapter" in message:
            self._adapt(message["adapter"])
            return {}
        for request in message["add"]:
            self._add(request)
        return {"new": [self._written(output) for output in self.engine.step()]}

    def _adapt(self, folder: str | None) -> None:
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        if self.adapter:
            self.engine.remove_lora(self.adapter.lora_int_id)
            self.adapter = None
        if folder:
            self.adapters += 1  # a number of its own, since what is cached of one is kept by its number
            self.adapter = LoRARequest(f"cca-{self.adapters}", self.adapters, folder)
            self.engine.add_lora(self.adapter)  # reads the folder now

    def _add(self, request: dict[str, Any]) -> None:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        reads = request["read_from"] is not None
        how = SamplingParams(
            temperature=request["temperature"], top_k=request["top_k"], seed=request["seed"],
            max_tokens=request["tokens"], stop_token_ids=request["ends"], ignore_eos=True, detokenize=False,
            logprobs=0, prompt_logprobs=_CANDIDATES if reads else None,
            output_kind=RequestOutputKind.FINAL_ONLY if reads else RequestOutputKind.DELTA,
        )  # fmt: skip
        if reads:
            self.read_from[request["id"]] = request["read_from"]
        prompt = {"prompt_token_ids": request["ids"]}
        self.engine.add_request(request["id"], prompt, how, lora_request=self.adapter)

    def _written(self, output: Any) -> dict[str, Any]:
        new = output.outputs[0]
        logits = [step[token].logprob for token, step in zip(new.token_ids, new.logprobs or (), strict=True)]
        found = {"id": output.request_id, "tokens": list(new.token_ids), "logits": logits, "ended": output.finished}
        start = self.read_from.pop(output.request_id, None)
        if start is not None:  # what stands at a position are the logits before it
            found["predictions"] = [_argmax(step) for step in output.prompt_logprobs[start + 1 :]]
        return found


def _argmax(step: dict[int, Any]) -> int:
    """The first of the tokens with the highest logit."""
    return max(step, key=lambda token: (step[token].logprob, -token))


def _load(worker: Any, files: list[str], changed: str | None) -> None:
    """Have a worker of vLLM load `files`, with the tensors in the file `changed` in place of theirs."""
    from safetensors import safe_open  # of workers that have imported this under another name

    def tensors() -> Iterator[tuple[str, Any]]:
        with contextlib.ExitStack() as stack:
            instead = stack.enter_context(safe_open(changed, "pt")) if changed else None
            names = set(instead.keys()) if instead else set()
            for file in files:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        yield name, (instead if instead and name in names else opened).get_tensor(name)

    worker.reload_weights(weights_iterator=tensors())


def _messages(channel: socket.socket) -> "queue.SimpleQueue[dict[str, Any] | None]":
    """What comes from the other end, None at last. The process ends soon after that, whatever it is at."""
    found: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in channel.makefile("rb"):
                found.put(json.loads(line))
        found.put(None)
        time.sleep(_SECONDS)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return found


def _said(error: BaseException) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in "".join(traceback.format_exception_only(error)).splitlines()]
    return [line for line in lines if line and not line.startswith("For further information")][-1]


def main(number: int) -> None:
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; heeded on a CPU alone
    os.set_inheritable(number, False)
    channel = socket.socket(fileno=number)
    incoming, outgoing, server = _messages(channel), channel.makefile("wb"), None
    while (message := incoming.get()) is not None:
        try:
            if server is None:
                server = Server(message)
                answer = server.started()
            else:
                answer = server.answer(message)
        except Exception as error:  # of any kind: vLLM has no common one
            traceback.print_exc()
            answer = {"error": _said(error)}
        with contextlib.suppress(OSError):  # the other end is gone, which `incoming` says as well
            outgoing.write(json.dumps(answer).encode() + b"\n")
            outgoing.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
