"""Refuse early, without reading weights, what the method cannot work with."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cca.errors import InputError
from cca.model.bundled import location
from cca.model.gguf.header import is_gguf, open_gguf
from cca.model.gguf.tokenizer import gguf_tokenizer
from cca.model.gguf.weights import check_gguf_weights, read_config
from cca.model.weights import check_files, check_folder, check_weights, empty_model, first_line
from cca.problems.chat import turn_end
from cca.problems.tokens import is_marker

_MOST = 2**16
"""Layers, heads or experts that no model exceeds."""


def check_model(path: str, *, trust_remote_code: bool = False, weights: bool = True) -> Any:
    """See, without reading weights, that `path` is a model that the method can work with; returns its configuration.

    weights: also see that a folder or GGUF file has them all, each of its shape.

    Raises:
        InputError: nothing is there, a file is damaged, it is not a decoder-only causal language model, it is
            quantised, it comes with code that is not trusted, or a folder or GGUF file lacks weights.
    """
    if is_gguf(path):
        file = open_gguf(path)
        config = read_config(file)
        _check_kind(path, config)
        if weights:
            check_gguf_weights(file, empty_model(config, path))
        return config
    where = Path(location(path))
    looks_local = path.startswith((".", "/", "~")) or where.exists()
    if looks_local:
        check_folder(where)
    config = _config(path, str(where) if looks_local else path, trust_remote_code)
    _check_kind(path, config)
    if weights and where.is_dir():
        check_weights(where, trust_remote_code=trust_remote_code)
    return config


def _config(path: str, where: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    try:
        _check_counts(path, PretrainedConfig.get_config_dict(where)[0])
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
        config.get_text_config()
        return config
    except InputError:
        raise
    except Exception as error:  # transformers says in many ways that a value is not what it should be
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path} comes with Python code of its own; read it, and if you trust it: "
                "--set model.trust_remote_code=true"
            ) from error
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise InputError(
            f"cannot load model {path!r}: {said or type(error).__name__}; set model.path to a local folder whose "
            "config.json is whole"
        ) from error


def _check_counts(path: str, said: Any) -> None:
    """See that no count in what config.json says is beyond all models: something of each would be made to look at.

    Raises:
        InputError: one is.
    """
    inside = [said]
    while inside:
        for key, value in inside.pop().items():
            if isinstance(value, dict):
                inside.append(value)
            elif isinstance(value, int) and value > _MOST and re.search("layer|expert|heads", str(key)):
                raise InputError(
                    f"{path}: {key} in its config.json is {value:,}, more than any model has; put the config.json back "
                    "that belongs to its weights"
                )


def _check_kind(path: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if getattr(config, "is_encoder_decoder", False) or not known:
        raise InputError(
            f"{path} is a {config.model_type} model, not a decoder-only causal language model; choose one that "
            "AutoModelForCausalLM loads"
        )
    if getattr(config.get_text_config(), "num_hidden_layers", 1) < 1:
        raise InputError(f"{path} has no layers, says its config.json; put the one back that belongs to its weights")
    architectures = config.architectures or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise InputError(f"{path}: architectures in its config.json is {architectures!r}, no list of names; mend it")
    if architectures and not any(
        a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures
    ):
        raise InputError(
            f"{path} holds a {architectures[0]}, which has no language-model head; choose a ...ForCausalLM model"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise InputError(
            f"{path} is quantised{f' ({method})' if method else ''}; its rows cannot be changed. "
            "Choose the unquantised model"
        )


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, or one that is alone in a folder.

    Raises:
        InputError: there is none, or one of its files is damaged.
    """
    if is_gguf(path):
        return gguf_tokenizer(open_gguf(path))
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = location(path)
    if path.startswith((".", "/", "~")) and not Path(where).is_dir():
        raise InputError(f"there is no folder {where} to take a tokenizer from; name one that has a tokenizer.json")
    if Path(where).is_dir():
        check_files(Path(where))
    try:
        # AutoTokenizer overrules a declared generic class by the model type's own (for qwen2 and others), which splits
        # text in another way than tokenizer.json says; a model trained with that file needs that file
        declared = get_tokenizer_config(where).get("tokenizer_class")
        if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(where)
        else:
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
        # without its files a model type's own class may load with an empty vocabulary
        if "1" not in tokenizer.decode(tokenizer.encode("1 + 1", add_special_tokens=False)):
            raise ValueError("its vocabulary is empty")
        return tokenizer
    except Exception as error:  # the tokenizers library has no error of its own
        raise InputError(
            f"{path} has no usable tokenizer ({first_line(error)}); put its own tokenizer.json into that folder"
        ) from error


class Ends(NamedTuple):
    """The ids that end a text, and the one with which the tokenizer, or else the model, ends its own."""

    all: frozenset[int]
    own: int


def end_tokens(path: str, generation: Any, config: Any, tokenizer: Any) -> Ends:
    """The ids that end a text, of all that name one and inside the vocabulary.

    Those are the tokenizer, the generation settings (None: there are none) or, where they name none, the model's
    configuration. What else the configuration names (of which some classes have a default that fits no other
    tokenizer), and what ends a turn in the chat template, counts where it is a special token and no ordinary text.

    Raises:
        InputError: none is named, or something is named that is no token id.
    """
    text = config.get_text_config()
    stated = _ids(path, generation, "generation_config.json")
    configured = _ids(path, text, "config.json") + _ids(path, config, "config.json")
    turn = turn_end(tokenizer)
    others = [t for t in (*configured, *([] if turn is None else [turn])) if is_marker(tokenizer, t)]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    named = [t for t in (*own, *(stated or configured), *others) if 0 <= t < text.vocab_size]
    if not named:
        raise InputError(
            f"{path}: neither model nor tokenizer names an end-of-text token of the vocabulary; set eos_token_id in its"
            " config"
        )
    return Ends(frozenset(named), named[0])


def _ids(path: str, settings: Any, file: str) -> list[int]:
    """The end tokens that a configuration names."""
    found = getattr(settings, "eos_token_id", None)
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    ids = [t for t in ids if t is not None]
    if any(type(t) is not int for t in ids):
        raise InputError(f"{path}: eos_token_id in {file} is {found!r}; make it a token id or a list of them")
    return ids


def check_prompts(
    prompts: list[tuple[int, ...]],
    max_new_tokens: int,
    config: Any,
    path: str,
    setting: str = "traces.max_new_tokens",
) -> None:
    """See that the model can read `prompts` and write an answer of `max_new_tokens`, which `setting` says, after each.

    Raises:
        InputError: its context is too short, or a prompt has a token that the model does not know.
    """
    text = config.get_text_config()
    longest = max(len(p) for p in prompts)
    context = getattr(text, "max_position_embeddings", None)
    if context and longest > context:
        raise InputError(
            f"the longest prompt has {longest} tokens and {path} a context of {context}; lower prompt.shots or choose "
            "another model"
        )
    if context and longest + max_new_tokens > context:
        raise InputError(
            f"the longest prompt has {longest} tokens, which leaves {context - longest} of the context of {path} "
            f"({context}), and {setting} is {max_new_tokens}; lower that, or prompt.shots"
        )
    _check_rotation(text, longest + max_new_tokens, path, setting)
    largest = max(max(p) for p in prompts)
    if largest >= text.vocab_size:
        raise InputError(
            f"the tokenizer of {path} gives token {largest}, but the model has only {text.vocab_size}; use the "
            "tokenizer that belongs to the model, or resize the model's embeddings"
        )


def _check_rotation(text: Any, longest: int, path: str, setting: str) -> None:
    """See that positions are rotated alike whatever stands beside them in a pass.

    Raises:
        InputError: from some length on, transformers rotates all sequences of a pass by the longest of them.
    """
    said = getattr(text, "rope_parameters", None) or {}
    for rope in (r for r in (said, *said.values()) if isinstance(r, dict)):
        before = rope.get("original_max_position_embeddings") or getattr(text, "max_position_embeddings", None)
        if rope.get("rope_type") in ("longrope", "dynamic") and before and longest > before:
            raise InputError(
                f"a prompt and its answer may have {longest} tokens, and after {before} {path} rotates positions by "
                f"the longest sequence of a pass ({rope['rope_type']}), so that answers would depend on those beside "
                f"them; lower {setting} or prompt.shots, or choose another model"
            )


def attention_for(config: Any, asked: str | None, path: str) -> str | None:
    """The attention function to ask transformers for; None leaves it the choice.

    Raises:
        InputError: sdpa was asked for a model that soft-caps its attention, which some releases then silently omit.
    """
    if not getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return asked
    if asked == "sdpa":
        raise InputError(
            f"{path} soft-caps its attention, which sdpa cannot; set model.attention to eager, or leave it out"
        )
    return asked or "eager"


def check_device(device: str, device_map: str | Mapping[str, str | int] | None = None) -> None:
    """See that torch has the device, or those of `device_map`, and that cca computes there.

    Raises:
        InputError: it has not, or it is neither a CPU nor a CUDA device.
    """
    if device != "auto":
        _check_place("model.device", device, ("auto", "cpu", "cuda"))
    if device_map is not None and not isinstance(device_map, str):
        for part, place in device_map.items():
            if place != "disk":
                known = ("cpu", "cuda", "disk")
                _check_place(f"model.device_map.{part}", f"cuda:{place}" if isinstance(place, int) else place, known)


def _check_place(key: str, device: str, known: Sequence[str]) -> None:
    import torch

    choices = f"{', '.join(known[:-1])} or {known[-1]}"
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{key} {device!r} is no torch device; use {choices}") from error
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"{key} is {device!r}, where cca cannot compute (it needs float64); use {choices}")
    if place.type == "cpu" and place.index:
        raise InputError(f"{key} is {device!r}, but there is one cpu; use {choices}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key} is {device!r} but torch sees no CUDA device; set it to cpu or auto")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(
            f"{key} is {device!r} but torch sees only {count} CUDA device{'s' * (count > 1)}; use {choices}"
        )


_WRAPPED = {"_orig_mod": "it is compiled", "module": "it is wrapped"}
"""What a module that stands for another keeps it as."""


def check_network(network: Any, name: str) -> None:
    """See that a model in memory is a plain transformers model with weights where and as cca computes.

    Raises:
        InputError: it is wrapped, compiled, adapted or quantised, or its weights are of another type or elsewhere.
    """
    import torch
    from transformers import PreTrainedModel

    kind = type(network).__name__
    if hasattr(network, "peft_config") or getattr(network, "_hf_peft_config_loaded", False):
        raise InputError(f"{name} has a PEFT adapter; merge it first: model = model.merge_and_unload()")
    for inside, why in _WRAPPED.items():
        if isinstance(getattr(network, inside, None), PreTrainedModel):
            raise InputError(f"{kind} is not the transformers model itself ({why}); give model.{inside}")
    if not isinstance(network, PreTrainedModel):
        raise InputError(f"a {kind} is no transformers model; give one that AutoModelForCausalLM loads")
    if any(module._compiled_call_impl is not None for module in network.modules()):
        raise InputError(f"{name} is compiled, which hides its heads and neurons; give it before model.compile()")
    if getattr(network, "is_quantized", False):
        raise InputError(
            f"{name} is quantised; its rows cannot be changed. Load it unquantised (of a GGUF file: "
            "quantization_config=GgufConfig(dequantize=True))"
        )
    for weight, values in network.named_parameters():
        dtype = str(values.dtype).removeprefix("torch.")
        if values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(
                f"{weight} of {name} is {dtype}; cca works with float32, bfloat16 and float16: model = model.float()"
            )
        if values.device.type == "meta" and not _is_offloaded(network, weight):
            raise InputError(f"{weight} of {name} is on the meta device, so it has no numbers; load the weights")
        if values.device.type not in ("cpu", "cuda", "meta"):
            raise InputError(
                f"{name} is on {values.device}, where cca cannot compute (it needs float64); move it: "
                'model = model.to("cpu")'
            )


def _is_offloaded(network: Any, weight: str) -> bool:
    """Whether accelerate fetches the weight from elsewhere for a pass."""
    hook = getattr(network.get_submodule(weight.rpartition(".")[0]), "_hf_hook", None)
    return bool(
        getattr(hook, "offload", False) or any(getattr(h, "offload", False) for h in getattr(hook, "hooks", ()))
    )
