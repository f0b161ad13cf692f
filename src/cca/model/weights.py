"""Every weight that a model needs is in its files, whole and of the right shape, or the model is refused.

transformers fills with random numbers what it does not find, and says so in passing. Here what can be seen without
reading weights (`check_folder`, `check_weights`) is seen first, and a load (`load_network`) is checked again.
"""

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from cca.errors import InputError

INDEX = "model.safetensors.index.json"
_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", INDEX)
"""Files that are one JSON object each."""
_OTHERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_POINTER = b"version https://git-lfs.github.com/spec/"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_SHOWN = 3


# ---- the files of a folder ----


def check_folder(folder: Path) -> None:
    """See that a model's small files are what their names say, and that none of its files is a stand-in for another.

    Raises:
        InputError: one is empty, cut off, no JSON object, a Git LFS pointer or cannot be read, or it is an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} is a PEFT adapter (it has adapter_config.json), not a model; merge it into its base first "
            "(merge_and_unload, then save_pretrained) and name that folder"
        )
    if not (folder / "config.json").exists():
        files = sorted(folder.glob("*.gguf"))
        raise InputError(
            f"no model at {folder}: it has no config.json; set model.path to "
            + (f"the GGUF file itself: {files[0]}" if files else "a folder written by save_pretrained")
        )
    check_files(folder)


def check_files(folder: Path) -> None:
    """See that the small files in `folder`, of a model or a tokenizer, are what their names say.

    Raises:
        InputError: one is empty, cut off, no JSON object, a Git LFS pointer or cannot be read.
    """
    for file in map(folder.joinpath, (*_OBJECTS, *_OTHERS)):
        if file.exists():
            check_start(file)
    for file in map(folder.joinpath, _OBJECTS):
        if file.exists():
            _json_object(file)


def check_start(file: Path) -> None:
    """See that a file can be read, holds something, and is no Git LFS pointer.

    Raises:
        InputError: it cannot, does not, or is one.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}); mend it or fetch it again") from error
    if start == _POINTER:
        raise InputError(f"{file} is a Git LFS pointer, not the file itself; fetch that with: git lfs pull")
    if not start:
        raise InputError(f"{file} is empty; fetch it again")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); mend it or fetch it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is no JSON object but of type {type(found).__name__}; mend it or fetch it again")
    return found


def has_weights(folder: Path) -> bool:
    """Whether there are weights of any kind, or an index of some."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, "pytorch_model*"))


def weight_files(folder: Path) -> list[Path]:
    """The files that a model folder's weights are in.

    Raises:
        InputError: there are none as safetensors, there is more than one checkpoint, or the index names an absent file.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.exists() and index.exists():
        raise InputError(f"{folder} holds two checkpoints, {whole.name} and {INDEX}; remove the one that is not meant")
    if whole.exists():
        return [whole]
    if index.exists():
        found = _json_object(index)
        listed = found.get("weight_map")
        named = isinstance(listed, dict) and bool(listed) and all(isinstance(name, str) for name in listed.values())
        if not named or not isinstance(found.get("metadata"), dict):
            raise InputError(f"{index} has no metadata and weight_map from weights to files; fetch it again")
        files = [folder / name for name in sorted(set(found["weight_map"].values()))]
        if absent := [file.name for file in files if not file.is_file()]:
            raise InputError(
                f"{folder} lacks {len(absent)} of its {len(files)} weight files, {some(absent)}; fetch them"
            )
        return files
    if found := sorted(file.name for file in folder.glob("*.safetensors")):
        raise InputError(f"{folder} has {some(found)}, but no model.safetensors and no {INDEX}; fetch the whole model")
    if found := sorted(file.name for file in folder.glob("pytorch_model*")):
        raise InputError(
            f"{folder} holds its weights as {some(found)} and none as safetensors; load it with transformers and "
            "write it again with save_pretrained"
        )
    raise InputError(f"{folder} holds no weights (*.safetensors); save the model there with save_pretrained")


def weight_types(files: Collection[Path]) -> dict[str, str]:
    """The type of each weight in `files`, of which only the headers are read.

    Raises:
        InputError: one is cut off or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for file in files:
        check_start(file)
        try:
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is cut off or no safetensors file ({error}); fetch it again") from error
    return found


# ---- the weights that a model needs ----


def check_weights(folder: Path, *, trust_remote_code: bool = False) -> None:
    """See, from the headers of its files alone, that a model folder has every weight, each of its shape.

    Raises:
        InputError: it has not; the message names the weights.
    """
    types = weight_types(weight_files(folder))
    network, report = _loaded(str(folder), {"device_map": "meta", "trust_remote_code": trust_remote_code})
    check_report(report, network, str(folder))
    own = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if packed := sorted(name for name, kind in types.items() if name in own and kind not in _FLOATS):
        raise InputError(
            f"the weights of {folder} are quantised ({packed[0]} is {types[packed[0]]}), so its rows cannot be "
            "changed; choose the unquantised model"
        )


def check_report(report: Mapping[str, Any], network: Any, path: str) -> list[str]:
    """Refuse a model of which transformers did not find every weight; returns the weights that it has no use for.

    report: what ``output_loading_info`` gives.

    Raises:
        InputError: a weight is missing or of another shape, or whole layers are left over.
    """
    missing, left = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if differing := sorted(report["mismatched_keys"]):
        name, there, wanted = differing[0]
        raise InputError(
            f"the weights of {path} do not fit its config.json: {name} is {list(there)} where {list(wanted)} is needed"
            f"{_more(differing, 1)}; put the config.json back that belongs to them"
        )
    if missing:
        spare = f", while it has no use for {some(left)}, so they may only be named in another way" if left else ""
        raise InputError(
            f"{path} lacks {len(missing)} of the weights that its config.json asks for, {some(missing)}{spare}; they "
            "would be random. Fetch the whole model, or put the config.json back that belongs to it"
        )
    if report["error_msgs"]:
        raise InputError(f"cannot load the weights of {path}: {first_line(report['error_msgs'][0])}")
    kinds = {_numberless(name) for name, _ in network.named_parameters(remove_duplicate=False)}
    if layers := [name for name in left if _numberless(name) in kinds]:
        raise InputError(
            f"{path} has more layers than its config.json says: it has no use for {some(layers)}; put the config.json "
            "back that belongs to these weights"
        )
    modules = {name.rpartition(".")[0] for name, _ in network.named_parameters(remove_duplicate=False)}
    if parts := [name for name in left if name.rpartition(".")[0] in modules]:
        raise InputError(
            f"{path} is of another architecture than its config.json says: {type(network).__name__} has no use for "
            f"{some(parts)}; put the config.json back that belongs to these weights"
        )
    return left


Loader = Callable[..., tuple[Any, dict[str, Any]]]
"""What takes settings of ``from_pretrained`` and returns a network, and what transformers reports of its load."""


def load_network(
    path: str, settings: Mapping[str, Any], asked: str, loader: Loader | None = None
) -> tuple[Any, list[str]]:
    """The network at `path` with all its weights, and the weights there that it has no use for.

    settings: those of ``from_pretrained``. asked: they in the user's words. loader: by default that of folders.

    Raises:
        InputError: it cannot be loaded, or a weight is missing, of another shape or not finite.
    """
    import torch

    with torch.random.fork_rng(devices=()):  # what is missing would be drawn before it is refused
        network, report = _loaded(path, settings, f" with {asked}", loader)
    unused = check_report(report, network, path)
    for name, weight in network.named_parameters():
        if weight.device.type != "meta" and weight.numel() and not bool(torch.stack(weight.aminmax()).isfinite().all()):
            from cca.model.numerics import REMEDIES

            raise InputError(
                f"{path}: {name} has values that are not finite in {str(weight.dtype).removeprefix('torch.')}; "
                + ("the file is damaged" if weight.dtype == torch.float32 else REMEDIES[weight.dtype])
            )
    return network, unused


def _loaded(
    path: str, settings: Mapping[str, Any], asked: str = "", loader: Loader | None = None
) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = loader or partial(AutoModelForCausalLM.from_pretrained, path, use_safetensors=True)
    try:
        with quiet():
            return load(output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever is wrong with files that we did not write
        said = first_line(error)
        if "above report" in said:  # of the weights that it joins or splits, such as those of experts
            said = "some of its weights are missing or do not fit its config.json; fetch the whole model"
        raise InputError(f"cannot load {path}{asked}: {said}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context transformers shows no bars and says nothing but errors; afterwards as before."""
    from transformers.utils import logging

    of_the_hub = import_module("huggingface_hub.utils.tqdm").progress_bar_states
    level, bars, kept = logging.get_verbosity(), logging.is_progress_bar_enabled(), dict(of_the_hub)

    def switch(does: Callable[[], None]) -> None:
        with warnings.catch_warnings(action="ignore"):  # that an environment variable overrules it
            does()

    try:
        logging.set_verbosity_error()
        switch(logging.disable_progress_bar)
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            switch(logging.enable_progress_bar)
        of_the_hub.clear()
        of_the_hub.update(kept)


def empty_model(config: Any, path: str, *, trust_remote_code: bool = False) -> Any:
    """The model of the configuration at `path` without weights, on the meta device.

    Raises:
        InputError: no model can be built of it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # torch and transformers say in many ways that a value is not what it should be
        raise InputError(
            f"{path} describes no {config.model_type} model that can be built: {first_line(error)}; put back what "
            "belongs to its weights"
        ) from error


# ---- words ----


def first_line(error: object) -> str:
    """What an error says first, or of what type it is."""
    said = (str(error).strip().splitlines() or [""])[0]
    return said if said and not isinstance(error, LookupError) else f"{type(error).__name__} {said}".strip()


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def some(names: Collection[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return ", ".join(list(names)[:_SHOWN]) + _more(names, _SHOWN)


def _more(names: Collection[Any], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""
