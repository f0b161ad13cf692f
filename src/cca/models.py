"""Load a model with its tokenizer, and refuse early what the method cannot work with."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cca.errors import InputError

BUNDLED = Path(__file__).parent / "bundled" / "organism"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode without gradients, its tokenizer, and what is known about it."""

    model: Any
    tokenizer: Any
    end_tokens: frozenset[int]
    revision: str
    """SHA-256 of the weight files' bytes for a local model, the commit for a hub model."""
    slip_kinds: dict[str, str]
    """Template -> kind of planted slip; empty for any but a bundled model."""


def _where(path: str) -> str:
    """What to load from: ``bundled`` names the model inside this package."""
    return str(BUNDLED) if path == "bundled" else path


def check_model(path: str) -> None:
    """See, without reading weights, that `path` is a model that the method can work with.

    Raises:
        InputError: nothing is there, it is not a decoder-only causal language model, it is quantised, or a local
            folder has no weights as safetensors.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where = Path(_where(path))
    looks_local = path.startswith((".", "/", "~")) or where.exists()
    if looks_local and not (where / "config.json").exists():
        raise InputError(
            f"no model at {where}: it has no config.json; set model.path to a folder written by save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(str(where) if looks_local else path)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load model {path!r}: {first_line}; set model.path to a local folder") from error
    if getattr(config, "is_encoder_decoder", False) or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{path} is a {config.model_type} model, not a decoder-only causal language model; choose one that "
            "AutoModelForCausalLM loads"
        )
    architectures = config.architectures or []
    if architectures and not any(
        a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures
    ):
        raise InputError(
            f"{path} holds a {architectures[0]}, which has no language-model head; choose a ...ForCausalLM model"
        )
    if getattr(config, "quantization_config", None):
        raise InputError(f"{path} is quantised; its rows cannot be changed. Choose the unquantised model")
    if where.is_dir() and not any(where.glob("*.safetensors")):
        raise InputError(f"{where} holds no weights (*.safetensors); save the model there with save_pretrained")


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = _where(path)
    try:
        # AutoTokenizer overrules a declared generic class by the model type's own (for qwen2 and others), which splits
        # text in another way than tokenizer.json says; a model trained with that file needs that file
        declared = get_tokenizer_config(where).get("tokenizer_class")
        generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
        tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(where)
        # without its files a model type's own class may load with an empty vocabulary
        if "1" not in tokenizer.decode(tokenizer.encode("1 + 1", add_special_tokens=False)):
            raise ValueError("its vocabulary is empty")
        return tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} has no usable tokenizer ({first_line}); add tokenizer.json to that folder") from error


def load_model(path: str, dtype: str, device: str) -> LoadedModel:
    """Load a model for all stages.

    device: ``auto`` or a torch device. Raises InputError as `check_model` and `load_tokenizer` do.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_model(path)
    tokenizer = load_tokenizer(path)
    logging.disable_progress_bar()  # one bar per stage, and loading is not one
    where = _where(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype), use_safetensors=True)
    model.to(device).eval()
    model.requires_grad_(False)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    end_tokens = frozenset(int(t) for t in (*ends, tokenizer.eos_token_id) if t is not None)
    if not end_tokens:
        raise InputError(
            f"{path}: neither model nor tokenizer names an end-of-text token; set eos_token_id in its config"
        )
    truth = Path(where) / "slips.json"
    kinds = {t: p["kind"] for t, p in json.loads(truth.read_text()).items()} if truth.exists() else {}
    return LoadedModel(model, tokenizer, end_tokens, _revision(Path(where), model), kinds)


def _revision(folder: Path, model: Any) -> str:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return str(getattr(model.config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
