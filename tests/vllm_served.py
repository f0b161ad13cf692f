"""What vLLM answers with and without an adapter. Run by the interpreter of an environment that has vLLM, which cannot
be that of the tests: it wants an older transformers.

    python vllm_served.py SPEC OUT

SPEC is JSON: base, adapter (folders), rank (of the server), prompts (token ids), tokens (how many to write), context,
ends (token ids). OUT becomes JSON: base and adapted, for each prompt its new token ids and the log-probability of each.
Batches are of base or of adapter alone: on a CPU vLLM 0.32 answers base requests beside adapted ones with the adapter
where no slot of it is free.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(spec: dict[str, Any], out: Path) -> None:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    model = LLM(
        model=spec["base"], dtype="float32", enforce_eager=True, max_model_len=spec["context"], max_num_seqs=4,
        enable_lora=True, max_lora_rank=spec["rank"], max_loras=2, enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )  # fmt: skip
    sampling = SamplingParams(
        temperature=0.0, max_tokens=spec["tokens"], stop_token_ids=spec["ends"], ignore_eos=not spec["ends"],
        logprobs=1, detokenize=False,
    )  # fmt: skip

    def answers(adapter: Any) -> list[dict[str, Any]]:
        prompts = [{"prompt_token_ids": ids} for ids in spec["prompts"]]
        written = [o.outputs[0] for o in model.generate(prompts, sampling, lora_request=adapter, use_tqdm=False)]
        return [
            {
                "tokens": list(w.token_ids),
                "logprobs": [step[token].logprob for token, step in zip(w.token_ids, w.logprobs, strict=True)],
            }
            for w in written
        ]

    found = {"base": answers(None), "adapted": answers(LoRARequest("cca", 1, spec["adapter"]))}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
