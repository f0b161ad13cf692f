"""Open a model: its network, tokenizer and components, and how it is asked."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cca.errors import InputError
from cca.grading.graders import load_grader
from cca.model.bundled import location
from cca.model.checks import (
    Ends,
    attention_for,
    check_device,
    check_model,
    check_network,
    end_tokens,
    load_tokenizer,
)
from cca.model.engine import Engine, Transformers
from cca.model.engines.choice import choose_engine
from cca.model.gguf.header import is_gguf, open_gguf
from cca.model.gguf.tokenizer import check_own, gguf_generation
from cca.model.network import open_network
from cca.model.options import EngineOptions, ModelOptions
from cca.model.state import frozen
from cca.model.weights import first_line
from cca.problems.examples import load_examples
from cca.problems.prompts import Prompter, PromptOptions, check_prompt


@dataclass(frozen=True)
class Model:
    """A causal language model that is ready for every stage.

    Attributes:
        name: where it is from.
        network: the transformers model.
        tokenizer: its tokenizer.
        components: its heads and neurons, and the weight rows that they own.
        prompter: how it is asked, and how its answers are read and graded.
        engine: what writes with it.
        revision: SHA-256 of the bytes of the weight files or the GGUF file, the commit of a hub model, else ``memory``.
    """

    name: str
    network: Any
    tokenizer: Any
    components: Any
    prompter: Prompter
    engine: Engine
    revision: str

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end a text."""
        return self.prompter.end_tokens

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        kind, where = type(self.network).__name__, self.network.device
        return f"Model({self.name}: {kind}, {weights:,} parameters, {self.components.size:,} components, on {where})"


def opened(model: Any) -> Model:
    """`model`, which has been opened.

    Raises:
        InputError: it has not.
    """
    if isinstance(model, Model):
        return model
    raise InputError(f"a {type(model).__name__} is not an opened model; open it first: model = cca.open_model(...)")


def open_model(
    source: str | Path | tuple[Any, Any],
    *,
    prompt: PromptOptions | Literal["plain", "few-shot", "chat"] | None = None,
    grader: str | Callable[[str, str], Any] = "number",
    prompter: Prompter | None = None,
    date: datetime | None = None,
    engine: EngineOptions | Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """Open a model, find its components and prove by a small pass that they are where they should be.

    Args:
        source: ``bundled``, a folder, a GGUF file, a hub name, or a (transformers model, tokenizer) that is already in
            memory and stays as it is.
        prompt: how problems become prompts, or only in which style; by default ``Q: ...`` and ``A:``.
        grader: how answers are judged: ``number``, ``stated``, ``exact``, ``math-verify``, ``module:function``, or a
            function that takes (text, gold answer) and returns whether the text is right.
        prompter: one that is ready, in place of `prompt`, `grader` and `date`.
        date: today, for a chat template that says it in every prompt; by default the time now.
        engine: what writes with it, as the fields of `EngineOptions`; by default transformers, in this process.
        **options: the fields of `ModelOptions`, such as ``dtype="bfloat16"``, for a model that is not in memory.
            What its device_map sends to the disk goes to a temporary folder (TMPDIR).

    Returns:
        The model. A network that was loaded here is in evaluation mode and takes no gradients.

    Raises:
        InputError: there is no such model, or it is not one that the method can work with; the message names what does
            not fit.
        FloatingPointError: its logits are not finite in this dtype.
    """
    prompt = PromptOptions.of({"style": prompt} if isinstance(prompt, str) else prompt, {})
    if isinstance(source, tuple):
        if len(source) != 2 or not hasattr(source[0], "forward") or not hasattr(source[1], "encode"):
            raise InputError("a model in memory is a pair: (transformers model, its tokenizer)")
        if options or engine:
            given = [*options, *(["engine"] if engine else [])]
            raise InputError(f"{', '.join(given)}: only for a model that cca loads; this one is in memory already")
        return _in_memory(*source, prompter, prompt, grader, date)
    if not isinstance(source, str | Path):
        raise InputError(
            f"a {type(source).__name__} is no model to open; give a name, a folder, or (transformers model, tokenizer)"
        )
    chosen = ModelOptions.of(options, {"path": str(source)})
    check_device(chosen.device, chosen.device_map)
    config = check_model(chosen.path, trust_remote_code=chosen.trust_remote_code)
    if prompter is None:
        prompter = open_prompter(chosen, prompt, grader, date)
    network = open_network(chosen, config)
    components = _verified(network, chosen.path)
    writing = choose_engine(EngineOptions.of(engine, {}), chosen, network)
    revision = revision_of(chosen.path, network)
    return Model(chosen.path, network, prompter.tokenizer, components, prompter, writing, revision)


def _in_memory(network: Any, tokenizer: Any, prompter: Prompter | None, *how: Any) -> Model:
    name = getattr(getattr(network, "config", None), "_name_or_path", "") or type(network).__name__
    check_network(network, name)
    if getattr(network.config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder model; cca works with decoder-only causal language models")
    text = network.config.get_text_config()
    attention_for(network.config, text._attn_implementation, name)
    if prompter is None:
        ends = end_tokens(name, getattr(network, "generation_config", None), network.config, tokenizer)
        prompter = _prompter(tokenizer, ends, *how)
    with frozen(network):
        components = _verified(network, name)
    return Model(name, network, tokenizer, components, prompter, Transformers(network), "memory")


def open_prompter(
    model: ModelOptions,
    prompt: PromptOptions,
    grader: str | Callable[[str, str], Any] = "number",
    date: datetime | None = None,
) -> Prompter:
    """How a model is asked. Reads its tokenizer but no weights.

    Raises:
        InputError: no tokenizer, no end token, no examples or no such grader, the options do not go together, or a
            question does not arrive in a prompt.
    """
    trust = model.trust_remote_code
    config = check_model(model.path, trust_remote_code=trust, weights=False)
    tokenizer = load_tokenizer(model.tokenizer or model.path, trust_remote_code=trust)
    if model.tokenizer and is_gguf(model.path):
        check_own(tokenizer, model.tokenizer, open_gguf(model.path))
    ends = end_tokens(model.path, generation_settings(model.path), config, tokenizer)
    return _prompter(tokenizer, ends, prompt, grader, date)


def _prompter(
    tokenizer: Any,
    ends: Ends,
    prompt: PromptOptions,
    grader: str | Callable[[str, str], Any],
    date: datetime | None,
) -> Prompter:
    check_prompt(prompt)
    examples = load_examples(prompt)
    dated = {} if date is None else {"date": date}
    return Prompter.of(
        tokenizer, prompt, examples, end_tokens=ends.all, end_token=ends.own, grader=load_grader(grader), **dated
    )


def generation_settings(path: str) -> Any:
    """What generation_config.json says, or a GGUF file in its place; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    from transformers import GenerationConfig

    if is_gguf(path):
        return gguf_generation(open_gguf(path))
    where = location(path)
    try:
        return GenerationConfig.from_pretrained(where)
    except Exception as error:  # a value of another type than transformers reckons with
        file = Path(where) / "generation_config.json"
        if isinstance(error, OSError) and not file.exists():
            return None
        raise InputError(f"cannot read {file} ({first_line(error)}); mend it or delete it") from error


def _verified(network: Any, path: str) -> Any:
    """The network's components, proved to be where they should be.

    Raises:
        InputError: as `find_components` and `verify_components` do, or its forward pass takes too little.
    """
    from cca.model.components import find_components
    from cca.model.verify import verify_components

    for needed in ("position_ids", "attention_mask", "logits_to_keep"):
        if needed not in inspect.signature(network.forward).parameters:
            raise InputError(
                f"{path} ({type(network).__name__}) takes no {needed}, which cca needs; choose another model"
            )
    if network.get_output_embeddings() is None:
        raise InputError(f"{path} ({type(network).__name__}) has no output embeddings; choose a ...ForCausalLM model")
    components = find_components(network)
    verify_components(network, components)
    return components


def revision_of(path: str, network: Any) -> str:
    """As `Model` has it: what tells the weights at `path` from all others."""
    where = Path(location(path))
    files = [where] if where.is_file() else sorted(where.glob("*.safetensors")) if where.is_dir() else []
    if not files:
        return str(getattr(network.config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return digest.hexdigest()
