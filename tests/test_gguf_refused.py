"""A GGUF file that cannot be read whole is refused by the word or tensor that has no place, before weights are read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_made import F32, gguf_model, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from cca import cli
from cca.errors import InputError
from cca.model.checks import check_model, load_tokenizer
from cca.model.open import open_model


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A tiny Llama."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_model())


def drop(name: str) -> dict[str, Any]:
    return {"change": lambda tensors: {n: t for n, t in tensors.items() if n != name}}


def add(name: str, array: np.ndarray) -> dict[str, Any]:
    return {"change": lambda tensors: tensors | {name: (array, F32)}}


ONES = np.ones((32, 32), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an architecture": (
        {"fields": {"general.architecture": "mamba"}},
        ["architecture mamba", "known are llama, qwen2"],
    ),
    "an adapter": ({"fields": {"general.type": "adapter"}}, ["holds no model but of type adapter"]),
    "one of several": ({"fields": {"split.count": 3}}, ["one of 3 parts", "llama-gguf-split --merge"]),
    "a missing tensor": (drop("blk.1.ffn_up.weight"), ["lacks 1 of the 30 tensors of Llama", "blk.1.ffn_up.weight"]),
    "no embeddings": (drop("token_embd.weight"), ["lacks the tensor token_embd.weight"]),
    "another shape": (
        add("blk.1.ffn_up.weight", ONES),
        ["blk.1.ffn_up.weight", "is [32, 32] where [64, 32] is needed"],
    ),
    "a bias": (add("blk.0.attn_q.bias", ONES[0]), ["has tensors for which Llama", "no place, blk.0.attn_q.bias"]),
    "layers beyond number": ({"fields": {"llama.block_count": 2**31}}, ["block_count = 2147483648", "fewer tensors"]),
    "no key heads": (
        {"fields": {"llama.attention.head_count_kv": 0}},
        ["no llama model: it has no key heads"],
    ),
    "more layers": ({"fields": {"llama.block_count": 2}}, ["has tensors", "blk.2.attn_k.weight", "more"]),
    "no count of layers": ({"fields": {"llama.block_count": None}}, ["does not say llama.block_count"]),
    "layers that differ": (
        {"fields": {"llama.feed_forward_length": [64, 64, 32]}},
        ["another intermediate_size in each"],
    ),
    "a window": ({"fields": {"llama.attention.sliding_window": 8}}, ["llama.attention.sliding_window = 8", "no place"]),
    "yarn": ({"fields": {"llama.rope.scaling.type": "yarn"}}, ["llama.rope.scaling.type = 'yarn'", "no place"]),
    "half a rotation": ({"fields": {"llama.rope.dimension_count": 4}}, ["llama.rope.dimension_count = 4"]),
    "a scale": ({"fields": {"llama.attention.scale": 0.5}}, ["llama.attention.scale = 0.5", "no place"]),
    "no mask": ({"fields": {"llama.attention.causal": False}}, ["llama.attention.causal = False"]),
    "two widths of heads": ({"fields": {"llama.attention.value_length": 4}}, ["llama.attention.value_length = 4"]),
    "no whole heads": ({"fields": {"llama.attention.head_count": 0}}, ["describes no llama model"]),
    "a split": ({"tokens": {"pre": "made-up"}}, ["called 'made-up'", "known are gpt-2", "model.tokenizer"]),
    "a list as a kind of tokenizer": ({"tokens": {"model": ["gpt2"]}}, ["tokenizer of kind ['gpt2']"]),
    "a kind of tokenizer": (
        {"tokens": {"model": "bert"}},
        ["tokenizer of kind 'bert'", "gpt2, llama", "model.tokenizer"],
    ),
    "no tokens": ({"tokens": {"tokens": None}}, ["tokenizer of kind 'gpt2'", "model.tokenizer"]),
    "no merges": ({"tokens": {"merges": None}}, ["the tokenizer in", "is damaged", "model.tokenizer"]),
    "a merge of one": ({"tokens": {"merges": ["a"]}}, ["the tokenizer in", "is damaged"]),
    "a token twice": ({"tokens": {"tokens": ["a", "a"]}}, ["some token stands there twice"]),
    "fewer kinds than tokens": ({"tokens": {"token_type": [1]}}, ["the tokenizer in", "is damaged"]),
    "an end outside": ({"tokens": {"eos_token_id": 9999}}, ["the tokenizer in", "is damaged"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_whole_is_named_before_a_weight_is_read(case, tmp_path, monkeypatch):
    changes, parts = REFUSED[case]
    path = write_gguf(tmp_path / "m.gguf", gguf_model(), **changes)
    monkeypatch.setattr("cca.model.gguf.weights.gguf_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InputError) as found:
        open_model(path, device="cpu")
    said = str(found.value)
    assert "\n" not in said
    for part in (str(path), *parts):
        assert part in said


def patched(place: bytes, *, after: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite bytes `after` the end of the first occurrence of `place`."""

    def change(whole: bytes) -> bytes:
        at = whole.index(place) + len(place) + after
        return whole[:at] + value + whole[at + len(value) :]

    return change


OF_A_TYPE = b"blk.2.ffn_up.weight"
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "empty": (lambda _: b"", ["is empty", "fetch it again"]),
    "a pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        ["Git LFS pointer", "git lfs"],
    ),
    "text": (lambda _: b"What is this?", ["is no GGUF file"]),
    "a zip": (lambda whole: b"PK\x03\x04" + whole, ["is no GGUF file"]),
    "a header cut off": (lambda whole: whole[:900], ["is cut off in its header"]),
    "four bytes": (lambda whole: whole[:4], ["is cut off in its header"]),
    "tensors cut off": (
        lambda whole: whole[:-40000],
        ["is cut off: it has", "header tells of", "output.weight is not whole"],
    ),
    "a byte short": (lambda whole: whole[:-1], ["is cut off: it has", "is not whole"]),
    "version 1": (lambda whole: whole[:4] + b"\1\0\0\0" + whole[8:], ["no header that can be read (version 1"]),
    "another order of bytes": (
        lambda whole: whole[:4] + b"\0\0\0\3" + whole[8:],
        ["version 50331648, or another order"],
    ),
    "a type that nobody knows": (
        patched(OF_A_TYPE, after=20, value=b"\x63\0\0\0"),
        ["blk.2.ffn_up.weight", "is of type 99", "known are F32, F16, Q4_0"],
    ),
    "a type that cannot be dequantised": (
        patched(OF_A_TYPE, after=20, value=bytes([GGMLQuantizationType.Q8_K, 0, 0, 0])),
        ["blk.2.ffn_up.weight", "is of type Q8_K", "known are F32, F16, Q4_0"],
    ),
    "half blocks": (
        patched(OF_A_TYPE, after=20, value=bytes([GGMLQuantizationType.Q4_K, 0, 0, 0])),
        ["blk.2.ffn_up.weight", "no whole blocks"],
    ),
    "a tensor upon another": (
        patched(OF_A_TYPE, after=24, value=bytes(8)),
        ["blk.2.ffn_up.weight", "lie upon one another", "fetch the file again"],
    ),
    "a tensor between two places": (
        patched(OF_A_TYPE, after=24, value=bytes([8, 0, 0, 0])),
        ["blk.2.ffn_up.weight", "begins at no multiple of 32 bytes"],
    ),
    "a tensor twice": (
        lambda whole: whole.replace(OF_A_TYPE, b"blk.1.ffn_up.weight"),
        ["has two tensors blk.1.ffn_up.weight"],
    ),
    "a tensor of no dimensions": (
        patched(OF_A_TYPE, after=0, value=bytes(4)),
        ["no header that can be read (blk.2.ffn_up.weight has 0 dimensions)"],
    ),
    "nothing but zeros, and a count without end": (
        lambda whole: whole[:8] + b"\xff" * 7 + b"\0" + whole[16 : whole.index(OF_A_TYPE) - 8] + bytes(9999),
        ["no header that can be read (a tensor without a name"],
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("command", [["--dry-run"], ["--out", "run", "--quiet"]])
def test_a_damaged_file_ends_a_run_before_it_begins(case, command, file, tmp_path, capsys, monkeypatch):
    damage, parts = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(damage(file.read_bytes()))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--model", "m.gguf", *command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cca: ")
    assert error.count("\n") == 1
    for part in ("m.gguf", *parts):
        assert part in error
    assert not Path("run").exists()


def test_a_file_that_is_not_there_and_a_folder_of_files_are_named(file, tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*none\.gguf; set model\.path"):
        check_model(str(tmp_path / "none.gguf"))
    with pytest.raises(InputError, match=rf"no config\.json; set model\.path to the GGUF file itself: {file}"):
        check_model(str(file.parent))
    with pytest.raises(InputError, match=r"no model at xx+ \(File name too long\); name a folder"):
        check_model("x" * 300)
    shutil.copy(file, tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(InputError, match=r"one of 3 parts"):
        check_model(str(tmp_path / "m-00001-of-00003.gguf"))


def test_a_value_that_is_not_finite_is_named(tmp_path):
    network = gguf_model()
    network.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
        open_model(write_gguf(tmp_path / "m.gguf", network), device="cpu")


@settings(max_examples=40)
@given(data=st.data())
def test_a_header_with_a_byte_changed_or_cut_off_is_a_model_or_an_input_error(file, data):
    whole = file.read_bytes()
    ends = whole.index(b"tokenizer.ggml.tokens"), len(whole)
    place = data.draw(st.integers(0, ends[data.draw(st.integers(0, 1))] - 1))
    changed = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    other = file.with_name("changed.gguf")
    other.write_bytes(changed[: data.draw(st.sampled_from([len(whole), place, len(whole) - 1]))])
    try:
        check_model(str(other))
        load_tokenizer(str(other))
    except InputError as error:
        assert str(other) in str(error)
