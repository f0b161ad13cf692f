"""The tokenizer of a GGUF file, its chat template, and the tokens that end a text."""

from collections.abc import Mapping
from typing import Any

from cca.errors import InputError
from cca.model.gguf.header import GgufFile

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = r"\p{N}"
SPLITS = {
    **dict.fromkeys(("gpt-2", "olmo", "phi-2", "mpt"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (_DIGITS, _GPT2)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), (_LLAMA3,)),
    "tekken": (_TEKKEN,),
}
"""``tokenizer.ggml.pre`` of byte-level tokenizers -> how text is split before tokens are merged, as in llama.cpp."""
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
"""What takes a word that is a token as that, whatever its merges say; and begins a text with BOS unless told."""
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"
_ENDS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
)
"""Control tokens that end a text or a turn wherever they are, of which a file names only some."""
_MARKERS = {"<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", *_ENDS} - {"</s>", "<eos>"}
"""What is a control token whatever a file says: some files have the marks of a turn as ordinary tokens."""
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")
"""Of Phi-3's control tokens those that do not swallow the space after them, which no file says."""
_REMEDY = "set model.tokenizer to the folder of the model's own tokenizer"


def gguf_tokenizer(file: GgufFile) -> Any:
    """The tokenizer that a file describes.

    Raises:
        InputError: it describes none, or one of a kind that is not known.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    said = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): value
        for key, value in file.fields.items()
        if key.startswith("tokenizer.")
    }
    tokens = said.get("tokens")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(tokens, list) or not tokens or said.get("model") not in list(builders):
        raise InputError(
            f"{file.path} has a tokenizer of kind {said.get('model')!r}; known are {', '.join(builders)}; {_REMEDY}"
        )
    try:
        core = builders[said["model"]](file, said)
        kinds = list(zip(tokens, said.get("token_type", ()), strict="token_type" in said))
        special = {token: None for token, kind in kinds if _is_control(token, kind)}
        users = [token for token, kind in kinds if kind == _USER_DEFINED and token not in special]
        whole = [token for token in users if core.token_to_id(token) is not None]
        strips = file.architecture == "phi3" and said["model"] == "llama"
        core.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False, rstrip=strips and token not in _NOT_STRIPPED)
                for token in special
            ]
        )
        core.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
        ids = {role: file.token_id(role, len(tokens)) for role in ("bos", "eos", "unk", "pad")}
        for role in ("bos", "eos", "unk"):
            if ids[role] is None and file.names_token(role):
                raise ValueError(f"its {role} token is none of {len(tokens)}")
        named = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
        begins = said["model"] == "llama" or said.get("pre") in _WHOLE_WORDS
        if said.get("add_bos_token", begins) and (bos := named.get("bos_token")) is not None:
            core.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, ids["bos"])]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            clean_up_tokenization_spaces=False,
            chat_template=said.get("chat_template"),
            **{"bos_token": None, "eos_token": None, **named},
        )
    except InputError:
        raise
    except Exception as error:  # the tokenizers library has no error of its own
        raise InputError(f"the tokenizer in {file.path} is damaged ({error!r}); {_REMEDY}") from error


def check_own(tokenizer: Any, called: str, file: GgufFile) -> None:
    """See that a tokenizer of another place, `called` so, numbers its tokens as the file does.

    Raises:
        InputError: most of its numbers are of other tokens.
    """
    own = _listed(file, "tokens")[: len(tokenizer)]
    theirs = tokenizer.convert_ids_to_tokens(list(range(len(own))))
    alike = sum(one == other for one, other in zip(own, theirs, strict=True))
    if 2 * alike < len(own):
        raise InputError(
            f"{called} is not the tokenizer of {file.path}: {alike:,} of {len(own):,} numbers are of the same token; "
            f"leave model.tokenizer out, or {_REMEDY}"
        )


def gguf_generation(file: GgufFile) -> Any:
    """Settings of generation, of which a file has only the tokens that end a text."""
    from transformers import GenerationConfig

    count = len(_listed(file, "tokens"))
    return GenerationConfig(
        bos_token_id=file.token_id("bos", count),
        pad_token_id=file.token_id("pad", count),
        eos_token_id=_end_ids(file) or None,
    )


def _listed(file: GgufFile, name: str) -> list[Any]:
    """A list that the file has of its tokens; empty where it has none."""
    found = file.fields.get(f"tokenizer.ggml.{name}")
    return found if isinstance(found, list) else []


def _is_control(token: str, kind: int) -> bool:
    return kind == _CONTROL or token in _MARKERS


def _end_ids(file: GgufFile) -> list[int]:
    """All that the file names, and those whose names say it."""
    tokens, kinds = _listed(file, "tokens"), _listed(file, "token_type")
    named = [file.token_id(role, len(tokens)) for role in ("eos", "eot", "eom")]
    marked = [
        i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if token in _ENDS and _is_control(token, kind)
    ]
    return list(dict.fromkeys(i for i in (*named, *marked) if i is not None))


def _byte_level(file: GgufFile, said: Mapping[str, Any]) -> Any:
    """BPE over bytes, each of which is spelled as a letter."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = said.get("pre", "default")
    if kind not in SPLITS:
        raise InputError(
            f"{file.path} splits text in a way called {kind!r} before it merges tokens, which cca does not know; known "
            f"are {', '.join(SPLITS)}; {_REMEDY}"
        )
    vocabulary = _numbered(said["tokens"])
    merges = [tuple(merge.split(" ", 1)) for merge in said["merges"]]
    core: Any = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind in _WHOLE_WORDS))
    if SPLITS[kind] == (_QWEN2,):
        core.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[kind]]
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(_: GgufFile, said: Mapping[str, Any]) -> Any:
    """BPE over characters, with bytes for those that are no tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    # several spaces stand there as they are, and are a token of the model's like any other
    tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in said["tokens"]]
    vocabulary = _numbered(tokens)
    unknown = said.get("unknown_token_id")
    core: Any = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(tokens, vocabulary, said),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = said.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    core.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prefix else [])
    )
    return core


def _numbered(tokens: list[str]) -> dict[str, int]:
    found = {token: i for i, token in enumerate(tokens)}
    if len(found) < len(tokens):
        raise ValueError("some token stands there twice")
    return found


def _merges(tokens: list[str], vocabulary: Mapping[str, int], said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a third, in the order of their scores; what users defined comes first."""
    scores = said["scores"]
    kinds = said.get("token_type", [_NORMAL] * len(tokens))
    ranked = sorted(
        (kind == _NORMAL, -score if kind == _NORMAL else 0.0, i)
        for i, (kind, score) in enumerate(zip(kinds, scores, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    )
    merges: list[tuple[str, str]] = []
    for *_, i in ranked:
        token = tokens[i]
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(found, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
