"""vLLM for benchmarks/generation.py, run by the interpreter of its own environment: ``python vllm_rows.py SPEC``.

SPEC is JSON: folder, dtype, context. Each line of the standard input is JSON too: prompts (token ids), temperature,
tokens. The new tokens of each prompt come back as a line.
"""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    spec = json.loads(sys.argv[1])
    model = LLM(
        model=spec["folder"], dtype=spec["dtype"], enforce_eager=True, max_model_len=spec["context"],
        enable_prefix_caching=False, skip_tokenizer_init=True,
    )  # fmt: skip
    for line in sys.stdin:
        asked = json.loads(line)
        how = SamplingParams(
            temperature=asked["temperature"], max_tokens=asked["tokens"], ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        written = [list(o.outputs[0].token_ids) for o in model.generate(prompts, how, use_tqdm=False)]
        print(json.dumps(written), flush=True)


if __name__ == "__main__":
    main()
