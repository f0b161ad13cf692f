"""What stages 2 and 3 keep to go on from after a kill."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from cca.errors import InputError
from cca.io import Saved, load_tensors
from cca.method.processes import Processes


def load_state(path: Path | None, processes: Processes) -> Saved | None:
    """The state to go on from, which the first process reads for all; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return processes.same(load_tensors(path) if processes.first and path.exists() else None)
    except InputError as error:
        raise InputError(f"{error}; {_way_out(path)}") from error


@contextmanager
def of_a_state(path: Path) -> Iterator[None]:
    """Within the context the state in `path` is put into what is to go on.

    Raises:
        InputError: something is missing, or of another shape than what is to go on.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} is the state of something else ({error}); {_way_out(path)}") from error


def check_shape(tensor: Tensor, shape: Sequence[int]) -> None:
    """See that a tensor has a shape; copying would stretch it."""
    if list(tensor.shape) != list(shape):
        raise ValueError(f"a tensor of shape {list(tensor.shape)} where {list(shape)} is expected")


def _way_out(path: Path) -> str:
    return f"put it back, or delete {path.name}: nothing that is finished is in it, and its work is begun again"
