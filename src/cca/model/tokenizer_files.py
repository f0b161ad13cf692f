"""Write a tokenizer so that AutoTokenizer reads text as it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.io import write_text
from cca.model.weights import first_line, quiet

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
_OWN_CLASS = '''"""The tokenizer is what tokenizer.json says, whatever class a model of this type has otherwise."""

from transformers import PreTrainedTokenizerFast


class Tokenizer(PreTrainedTokenizerFast):
    pass
'''
_PROBES = (
    "Q: Ann has 12 apples and 3.5 kg of plums. How many are left?\nA: 12 - 5 = 7\n\n#### 7",
    "  two  spaces,\ttab\r\n1,234 + 5678 = ½ \\frac{1}{2}",
    "Größe naïve 数学 🙂 — “quoted”",
)


def save_tokenizer(
    tokenizer: Any, folder: Path, differs: Callable[[Any], str | None] | None = None, *, trust_remote_code: bool = False
) -> None:
    """Write `tokenizer` to `folder`, which holds a model's configuration already.

    Args:
        differs: where another tokenizer reads text in another way, in words; by default seen on a few texts.

    Raises:
        InputError: AutoTokenizer would read text in another way.
        OSError: it cannot be written.
    """
    from transformers import AutoTokenizer

    def otherwise() -> str | None:
        try:
            with quiet():
                found = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever its files make of it
            return f"it cannot load it: {first_line(error)}"
        return (differs or (lambda other: _differs(tokenizer, other)))(found)

    with quiet():
        tokenizer.save_pretrained(folder)
    said = otherwise()
    if said and type(tokenizer).__name__ in _GENERIC:
        _name_its_class(folder)
        said = otherwise()
    if said:
        raise InputError(
            f"AutoTokenizer would read what is saved in another way than the run did ({said}), so the merged model "
            "would be asked in words that it does not know; use the update with cca.Delta.load and its base instead"
        )


def _differs(mine: Any, other: Any) -> str | None:
    for text in _PROBES:
        tokens = mine.encode(text)
        if tokens != other.encode(text) or mine.decode(tokens) != other.decode(tokens):
            return f"the text {text[:40]!r}"
    return None


def _name_its_class(folder: Path) -> None:
    """Let AutoTokenizer build what tokenizer.json says.

    For some model types it overrules a generic class by the type's own, but not where a folder has a class of its own,
    which it takes with trust_remote_code; without, it takes the generic class.
    """
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": _GENERIC[0], "auto_map": {"AutoTokenizer": [None, "tokenization.Tokenizer"]}}
    write_text(config, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "tokenization.py", _OWN_CLASS)
