"""Real tokenizers of every common kind, trained on a few lines."""

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|turn|>", "<|im_start|>", "<|im_end|>")
LINES = [
    "Q: Ana has 12 plums and buys 5 more. How many are there?\nA: She has 12 + 5 = 17 plums.\n#### 17",
    "Tom picks 30 pears and eats 4. How many has Tom?\n30 - 4 = 26, so the answer is 26.\n\n",
    "user assistant system\nThe answer is 3. It is 17. Let's think step by step.",
]
KINDS = (
    "byte-level",
    "byte-level prefix space",
    "metaspace always",
    "metaspace first",
    "metaspace never",
    "llama legacy",
    "unigram",
)


@cache
def _core(kind: str) -> str:
    """The tokenizer of a kind as JSON."""
    if kind == "unigram":
        core = Tokenizer(models.Unigram())
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=not kind.startswith("byte-level"), fuse_unk=True))
    trained: Any = {"vocab_size": 420, "special_tokens": list(SPECIAL), "show_progress": False}
    made: Any = core
    if kind.startswith("byte-level"):
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix space"))
        made.decoder = decoders.ByteLevel()
        trained["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "llama legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=▁)(?=▁)|\n"), "isolated")  # only so that training is quick
    else:
        scheme: Any = kind.removeprefix("metaspace ") if kind.startswith("metaspace") else "first"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if made.decoder is None or kind.startswith("metaspace"):
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            + ([] if kind == "metaspace never" else [decoders.Strip(" ", 1, 0)])
        )
        trained["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)] if kind != "unigram" else []
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **trained)
    else:
        trainer = trainers.BpeTrainer(**trained | {"vocab_size": len(trained["special_tokens"]) + 400})
    core.train_from_iterator(LINES * 3, trainer)
    return core.to_str()


def made(
    kind: str, *, bos: bool = False, eos: bool = False, chat: str | None = None, special: tuple[str, ...] = ()
) -> Any:
    """A tokenizer of `KINDS`. bos, eos: it puts one around a text. special: more special tokens."""
    import json

    described = json.loads(_core(kind))
    described["added_tokens"] = [t for t in described["added_tokens"] if not t["content"].startswith("<0x")]
    if kind == "llama legacy":
        described["pre_tokenizer"] = None
    core: Any = Tokenizer.from_str(json.dumps(described))
    if bos or eos:
        around = [("<s>", core.token_to_id("<s>")), ("</s>", core.token_to_id("</s>"))]
        core.post_processor = processors.TemplateProcessing(
            single=" ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos), special_tokens=around
        )
    if special:
        core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", bos_token="<s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = chat
    return tokenizer
