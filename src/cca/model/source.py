"""Where the files of a model lie."""

from pathlib import Path

from cca.errors import InputError
from cca.model.bundled import location
from cca.model.weights import first_line, quiet

WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite",
    ".index.json",
)  # fmt: skip
"""How the names of files end that hold weights."""


def source_folder(path: str) -> Path:
    """Where the files of a model lie, fetched where they are on the hub. There the folder's name is the commit.

    Raises:
        InputError: it cannot be fetched.
    """
    where = Path(location(path))
    if where.is_dir() or path.startswith((".", "/", "~")):
        return where
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(path, ignore_patterns=[f"*{w}" for w in WEIGHTS[1:-1]]))
    except (OSError, ValueError) as error:
        said = first_line(error)
        raise InputError(
            f"cannot fetch {path} from the hub ({said}); name a folder, or a model that is there"
        ) from error
