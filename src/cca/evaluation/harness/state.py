"""What the harness changes in a model and in the process while it runs, and that all of it is undone."""

import io
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

_LOGGERS = ("lm_eval", "datasets", "transformers", "huggingface_hub", "evaluate")


def seed_all(seed: int) -> None:
    """Seed everything that the harness's tasks draw from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context ``owner.name`` is `value`."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if own else delattr(owner, name)


@contextmanager
def model_as_before(model: Any) -> Iterator[None]:
    """The harness puts a model into evaluation mode and ties weights that its checkpoint may keep apart: undone."""
    training = [module for module in model.modules() if module.training]
    with _replaced(model, "tie_weights", lambda: None):
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def process_as_before(*, offline: bool) -> Iterator[None]:
    """Within the context third parties are silent and, if `offline`, the hub is not asked; all is restored after."""
    with ExitStack() as stack:
        stack.callback(_restore_environment, dict(os.environ))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))

        import datasets.config
        import huggingface_hub.constants
        import lm_eval  # noqa: F401 (it sets environment variables)
        import numpy as np
        import torch
        from tqdm import tqdm

        start = tqdm.__init__

        def hidden(self: Any, *args: Any, **options: Any) -> None:
            start(self, *args, **options | {"disable": True})

        stack.enter_context(torch.random.fork_rng())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.enter_context(_replaced(tqdm, "__init__", hidden))
        if offline:
            for module in (datasets.config, huggingface_hub.constants):
                stack.enter_context(_replaced(module, "HF_HUB_OFFLINE", True))
            os.environ["HF_EVALUATE_OFFLINE"] = "1"
        yield


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
