"""The files of a model: opened in the type that they have, and written again with all that is not weights kept."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cca.errors import InputError
from cca.io import readable
from cca.model.bundled import location
from cca.model.checks import check_model, load_tokenizer
from cca.model.components import Components, find_components
from cca.model.gguf.header import is_gguf
from cca.model.network import open_network
from cca.model.open import revision_of
from cca.model.options import ModelOptions
from cca.model.source import WEIGHTS, source_folder
from cca.model.tokenizer_files import save_tokenizer
from cca.model.weights import quiet, weight_files, weight_types

APPLIED = "cca"
"""The folder, inside a model's, of what was applied to it (`cca.model.applied`)."""
SHARD = "5GB"
README = "README.md"
_FOLDERS = (APPLIED, "additional_chat_templates")
_SETTINGS = ("config.json", "generation_config.json")
_TYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB|TB|KiB|MiB|GiB|TiB)")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's network on the CPU, without a tokenizer.

    name: where it is from. revision: as of `cca.model.open.Model`. folder: where its files are; None for a GGUF file.
    own_type: that of its files; float32 where they are of several, or dequantised.
    """

    name: str
    network: Any
    revision: str
    folder: Path | None
    own_type: str

    @property
    def type(self) -> str:
        """The type that its weights have here."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def components(self) -> Components:
        return find_components(self.network)


def open_checkpoint(path: str, dtype: str | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read a model's weights.

    Args:
        path: ``bundled``, a folder, a GGUF file or a hub name.
        dtype: of the weights; by default the own type of its files, so that none is rounded.

    Raises:
        InputError: there is no such model, or it lacks weights.
    """
    folder = None if is_gguf(path) else source_folder(path)
    where = path if folder is None else str(folder)
    config = check_model(where, trust_remote_code=trust_remote_code)
    own = "float32"
    if folder:
        kinds = {_TYPES[kind] for kind in weight_types(weight_files(folder)).values() if kind in _TYPES}
        own = kinds.pop() if len(kinds) == 1 else own
    options = {"dtype": dtype or own, "device": "cpu", "trust_remote_code": trust_remote_code}
    network = open_network(ModelOptions.of(options, {"path": where}), config)
    revision = folder.name if folder and not Path(location(path)).is_dir() else revision_of(where, network)
    return Checkpoint(path, network, revision, folder, own)


# ---- written again ----


def check_shard(size: str) -> str:
    """`size`, seen to be one that transformers understands.

    Raises:
        InputError: it is not.
    """
    if not _SIZE.fullmatch(size):
        raise InputError(f"--max-shard-size {size!r} is no size; give a number and a unit, such as 5GB or 500MB")
    return size


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, shard: str = SHARD, trust_remote_code: bool = False
) -> None:
    """Write the network of `checkpoint` to `folder`, which is made, with every other file that its own folder has.

    Raises:
        InputError: what is written is not whole, or AutoTokenizer cannot read the tokenizer of a GGUF file.
        OSError: it cannot be written.
    """
    source = checkpoint.folder
    save_network(checkpoint.network, folder, shard)
    if source is None:
        save_tokenizer(load_tokenizer(checkpoint.name), folder)
    else:
        keep_files(source, folder)
        for name in _SETTINGS if checkpoint.type == checkpoint.own_type else ():
            if (source / name).exists():  # as they were, to the letter
                shutil.copyfile(source / name, folder / name)
    check_model(str(folder), trust_remote_code=trust_remote_code)


def save_network(network: Any, folder: Path, shard: str = SHARD) -> None:
    """Write weights and settings with transformers, in files of at most `shard`.

    Raises:
        OSError: they cannot be written.
    """
    with quiet():
        try:
            try:
                network.save_pretrained(folder, max_shard_size=shard)
            except ValueError:  # transformers loads settings for sampling without sampling, but does not save them
                network.generation_config.do_sample = True
                network.save_pretrained(folder, max_shard_size=shard)
        except SafetensorError as error:  # which hides that the disk is full
            raise OSError(f"cannot write {folder} ({error})") from error
    for file in folder.glob("*.safetensors"):
        readable(file)


def keep_files(source: Path, folder: Path) -> None:
    """Copy to `folder` what it lacks of the files in `source`: processors, chat templates, code, licences.

    Not of its weights.
    """
    for file in _others(source):
        there = folder / file.relative_to(source)
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, there)


def _others(source: Path) -> Iterator[Path]:
    for file in sorted(source.iterdir()):
        if file.name in _FOLDERS and file.is_dir():
            yield from (inner for inner in sorted(file.iterdir()) if inner.is_file())
        elif file.is_file() and not file.name.endswith(WEIGHTS) and not file.name.startswith("."):
            yield file


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end of the context; after an error nothing stays.

    Raises:
        InputError: `folder` exists or cannot be written.
    """
    check_new(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error}); name a folder where there is room") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """See, before anything slow, that `folder` does not exist yet.

    Raises:
        InputError: it does.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
