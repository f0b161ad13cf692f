"""How a model is opened."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cca.options import Count, CountOrNone, Options


class ModelOptions(Options):
    """Which model, of what type, and where it computes."""

    path: str = "bundled"
    """``bundled``, a folder, a GGUF file, or a hub name."""
    tokenizer: str | None = None
    """A folder or hub name to take the tokenizer and chat template from; by default the model's own."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the base weights. Gates, deltas and losses are float32 always. ``auto``: bfloat16 where it is measured to
    be clearly faster on the device, else float32; a run that has begun keeps its type."""
    device: str = "auto"
    """``auto`` (CUDA where there is one, else ``cpu``), ``cpu``, ``cuda``, ``cuda:1`` ... No others: sampling needs
    float64, which MPS lacks."""
    device_map: Literal["auto"] | dict[str, str | int] | None = None
    """``auto``: spread the layers over all GPUs, then main memory, then disk (accelerate), in place of ``device``."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """Which attention function; by default the one that transformers chooses for the model."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Read it first."""

    @field_validator("device_map")
    @classmethod
    def _is_of_something(cls, value: Any) -> Any:
        """A map of nothing is none; a config file has no place for it either."""
        return value or None


HOTTEST_OF_VLLM = 2.0
"""Temperature of samples, at most: vLLM takes no higher one."""


class EngineOptions(Options):
    """What writes traces, completions and answers. Circuit and update are always learned in this process."""

    name: Literal["transformers", "vllm"] = "transformers"
    """``transformers``, or ``vllm`` in a process of its own: far faster on a GPU, and its samples are others than those
    of transformers."""
    workers: CountOrNone = 0
    """Copies of the engine over which Ray spreads the writing, each with a model of its own; their number changes no
    result. 0: one, without Ray."""
    ray_address: str | None = None
    """Of a Ray cluster, such as ``auto`` or ``ray://head:10001``; by default a cluster of this machine alone."""
    tensor_parallel: Count = 1
    """GPUs over which ``vllm`` splits the model."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.45
    """What ``vllm`` may take of a GPU's memory, on which the model of circuit and update lies as well."""
    updates: Literal["weights", "lora"] = "weights"
    """How ``vllm`` gets an update: its rows added to the weights, which in 16 bits rounds them, or as a LoRA
    adapter."""
    python: str | None = None
    """The interpreter of an environment that has ``vllm``; by default the one that runs."""
