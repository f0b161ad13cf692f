"""How a model is opened."""

from typing import Literal

from cca.options import Options


class ModelOptions(Options):
    """Which model, of what type, and where it computes."""

    path: str = "bundled"
    """``bundled``, a folder, a GGUF file, or a hub name."""
    tokenizer: str | None = None
    """A folder or hub name to take the tokenizer and chat template from; by default the model's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base weights. Gates, deltas and losses are float32 always."""
    device: str = "auto"
    """``auto`` (CUDA where there is one, else ``cpu``), ``cpu``, ``cuda``, ``cuda:1`` ... No others: sampling needs
    float64, which MPS lacks."""
    device_map: Literal["auto"] | dict[str, str | int] | None = None
    """``auto``: spread the layers over all GPUs, then main memory, then disk (accelerate), in place of ``device``."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """Which attention function; by default the one that transformers chooses for the model."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Read it first."""
