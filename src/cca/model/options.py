"""How a model is opened."""

from typing import Any, Literal

from pydantic import field_validator

from cca.options import Options


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
