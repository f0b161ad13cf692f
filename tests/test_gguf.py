"""A model in a GGUF file is read whole, as its makers meant it, or refused by the word that has no place."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import as_written
from gguf import GGMLQuantizationType, dequantize, quantize
from gguf_made import CHAT, F16, F32, Q8_0, gguf_model, tokenizer_fields, write_gguf
from tokenizers import pre_tokenizers
from tokenizers_made import LINES, made
from transformers import AutoModelForCausalLM, AutoTokenizer

import cca
from cca import cli
from cca.errors import InputError
from cca.io import checksum
from cca.model.bundled import BUNDLED
from cca.model.checks import check_model, load_tokenizer
from cca.model.delta import Delta
from cca.model.gguf.config import FREQUENCIES, TYPES
from cca.model.open import Model, open_model
from cca.model.weights import quiet
from cca.run.run import Run

TEXTS = (
    *LINES,
    "  two spaces, then 1234.50, then\n\n\nthree lines\t\tand tabs   ",
    "naïve café “quotes” 東京 ½ ٣",
    "don't <|im_start|>user\nsay 7<|im_end|>\n",
)
Q4_0, BF16, Q4_K = GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16, GGMLQuantizationType.Q4_K


def opened(path: Path | str, **options: Any) -> Model:
    return open_model(path, device="cpu", **options)


def same_weights(one: Any, other: Any) -> None:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A tiny Llama."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_model())


# ---- the model ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TYPES.values())
def test_every_architecture_is_read_as_it_was_written(family, tied, tmp_path):
    network = gguf_model(family, tie_word_embeddings=tied or family.startswith("gemma"))
    with torch.no_grad():  # as exact with the 1 that Gemma's files add to norms as without
        for weight in network.parameters():
            weight.copy_((weight * 4096).round() / 4096)
    read = opened(write_gguf(tmp_path / "m.gguf", network)).network
    assert type(read) is type(network)
    same_weights(read, network)
    ids = torch.arange(20)[None] % network.config.vocab_size
    assert torch.equal(read(ids).logits, network(ids).logits)


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0, Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", [family for family in TYPES.values() if family != "olmo2"])
def test_the_weights_are_those_that_transformers_reads(family, kind, tmp_path):
    width = {"head_dim": 128} if family == "qwen3" else {}  # whatever its file says, that is what transformers takes
    path = write_gguf(tmp_path / "m.gguf", gguf_model(family, **width), kind=kind)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    same_weights(opened(path).network, theirs)


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_0], ids=lambda kind: kind.name)
def test_what_was_quantised_is_dequantised_block_by_block(kind, tmp_path):
    network = gguf_model("qwen2")
    path = write_gguf(tmp_path / "m.gguf", network, kind=kind)
    wanted = network.model.layers[1].mlp.down_proj.weight.numpy()
    found = opened(path).network.model.layers[1].mlp.down_proj.weight.numpy()
    assert np.array_equal(found, dequantize(quantize(wanted, kind), kind))
    assert 0 < np.abs(found - wanted).max() < 0.2, "which is near, and not the same"


def test_a_model_is_of_the_type_that_is_asked_for(file):
    whole, half = opened(file).network, opened(file, dtype="bfloat16").network
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    same_weights(half, whole.to(torch.bfloat16))
    assert not getattr(half, "is_quantized", False)


@pytest.mark.parametrize("places", [{"": "cpu"}, {"model.embed_tokens": "cpu", "model": "cpu", "lm_head": "cpu"}])
def test_a_model_is_put_where_a_device_map_says(file, places):
    same_weights(opened(file, device_map=places).network, opened(file).network)


def test_numbers_are_those_that_the_file_was_made_of(file):
    config = check_model(str(file))
    assert config.rms_norm_eps == 1e-6, "not 9.999999974752427e-07, as float32 has it"


CONFIGS = {
    "the window of Phi-3": ("phi3", {"phi3.attention.sliding_window": 7}, {"sliding_window": 7}),
    "no window": ("phi3", {"phi3.attention.sliding_window": 0}, {"sliding_window": None}),
    "wide layers alone": (
        "gemma3_text",
        {"gemma3.attention.sliding_window": None},
        {"layer_types": ["full_attention"] * 6, "sliding_window": 4096},
    ),
    "the caps of Gemma 2": ("gemma2", {"gemma2.final_logit_softcapping": 12.0}, {"final_logit_softcapping": 12.0}),
    "a linear scaling": (
        "qwen2",
        {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "a scaling of Gemma 3's wide layers alone": (
        "gemma3_text",
        {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "no scaling": ("qwen2", {"qwen2.rope.scaling.type": "none"}, {}),
    "nothing said": ("qwen2", {"qwen2.expert_count": 0, "qwen2.attention.causal": True}, {}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_a_file_says_is_in_the_configuration(case, tmp_path):
    family, fields, wanted = CONFIGS[case]
    network = gguf_model(family)
    config = check_model(str(write_gguf(tmp_path / "m.gguf", network, fields=fields)))
    plain = {"rope_parameters", "sliding_window", "layer_types", "num_hidden_layers", "rms_norm_eps"} - wanted.keys()
    for name in plain:
        assert getattr(config, name, None) == getattr(network.config, name, None), name
    for name, value in wanted.items():
        assert getattr(config, name) == value


def test_a_padding_token_that_is_none_is_as_good_as_none(tmp_path):
    model = opened(write_gguf(tmp_path / "m.gguf", gguf_model(), tokens={"padding_token_id": 2**32 - 1}))
    assert model.network.config.pad_token_id is None
    assert model.tokenizer.pad_token_id is None


def test_the_scaling_of_llama_3_is_found_in_its_tensor(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    network = gguf_model("llama", rope_parameters=rope, hidden_size=256)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = (plain / network.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 31, "the widest waves are scaled"
    assert factors.min() == pytest.approx(1.0), "and the narrowest are not"
    path = write_gguf(tmp_path / "m.gguf", network, change=lambda t: t | {FREQUENCIES: (factors, F32)})
    read = opened(path).network
    assert read.config.rope_parameters == rope
    ids = torch.arange(300)[None] % network.config.vocab_size
    torch.testing.assert_close(read(ids).logits, network(ids).logits)
    write_gguf(path, network, change=lambda t: t | {FREQUENCIES: (factors[::-1].copy(), F32)})
    with pytest.raises(InputError, match=r"rope_freqs\.weight scales rotations in another way"):
        check_model(str(path))


def test_the_attention_of_the_largest_gemmas_has_a_scale_of_its_own(tmp_path):
    for layers, scale in ((46, 32 // 4), (3, 16)):
        network = gguf_model("gemma2", num_hidden_layers=layers, layer_types=None, query_pre_attn_scalar=scale)
        assert check_model(str(write_gguf(tmp_path / "m.gguf", network))).query_pre_attn_scalar == scale


# ---- the tokenizer ----


@pytest.mark.parametrize("kind", ["byte-level", "llama legacy", "metaspace never"])
def test_a_tokenizer_reads_and_writes_as_the_one_that_the_file_was_made_of(kind, tmp_path):
    before = made(kind)
    tokens = {"add_bos_token": False, "add_space_prefix": kind == "llama legacy"}
    after = load_tokenizer(str(write_gguf(tmp_path / "m.gguf", gguf_model(tokenizer=before), before, tokens=tokens)))
    for text in TEXTS:
        ids = before.encode(text, add_special_tokens=False)
        assert after.encode(text) == ids, text
        assert after.decode(ids) == before.decode(ids)
        if kind == "byte-level":
            assert after.decode(ids) == text
    assert after.chat_template == CHAT
    assert len(after) == len(before)
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(after, f"{role}_token") == getattr(before, f"{role}_token")


def test_digits_are_split_as_the_file_says(tmp_path):
    """transformers reads ``smollm`` as GPT-2's, where a space before a digit is another token."""
    before = made("byte-level")
    before.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found: dict[str, list[int]] = {}
    for pre in ("smollm", "gpt-2", "qwen2", "llama-bpe"):
        path = write_gguf(tmp_path / f"{pre}.gguf", gguf_model(), tokens={"pre": pre, "add_bos_token": False})
        found[pre] = load_tokenizer(str(path)).encode("is 17  12")
    assert found["smollm"] == before.encode("is 17  12")
    assert found["smollm"] != found["gpt-2"]
    for pre, tokens in found.items():
        assert load_tokenizer(str(tmp_path / f"{pre}.gguf")).decode(tokens) == "is 17  12"


@pytest.mark.parametrize(
    ("kind", "tokens", "begins"),
    [
        ("byte-level", {}, False),
        ("byte-level", {"add_bos_token": True}, True),
        ("byte-level", {"pre": "llama-bpe"}, True),
        ("llama legacy", {}, True),
        ("llama legacy", {"add_bos_token": False}, False),
        ("llama legacy", {"bos_token_id": None}, False),
    ],
)
def test_a_text_begins_with_bos_where_the_file_says_so_or_its_kind_does(kind, tokens, begins, tmp_path):
    before = made(kind)
    path = write_gguf(tmp_path / "m.gguf", gguf_model(tokenizer=before), before, tokens=tokens)
    ids = load_tokenizer(str(path)).encode("7")
    assert (ids[0] == before.bos_token_id) is begins
    assert ids[begins:] == before.encode("7", add_special_tokens=False)


def test_tokens_that_users_defined_stay_whole_and_are_written(tmp_path):
    before = made("byte-level", special=("<think>",))
    kinds = tokenizer_fields(before, user_defined=["<think>"])["token_type"]
    path = write_gguf(tmp_path / "m.gguf", gguf_model(tokenizer=before), before, tokens={"token_type": kinds})
    after = load_tokenizer(str(path))
    ids = after.encode("7<think>7</s>")
    assert ids == before.encode("7<think>7</s>")
    assert after.decode(ids, skip_special_tokens=True) == "7<think>7"


def test_all_tokens_that_end_a_text_are_found(tmp_path):
    names = ("<|endoftext|>", "<|end_of_text|>")
    before = made("byte-level", special=names)
    known = before.get_vocab()
    ends = {"eos_token_id": known["<|im_end|>"], "eot_token_id": known["<|turn|>"]}
    path = write_gguf(tmp_path / "m.gguf", gguf_model(tokenizer=before), before, tokens=ends)
    model = opened(path, prompt="chat")
    wanted = {known[t] for t in ("<|im_end|>", "<|turn|>", "</s>", *names)}
    assert model.end_tokens == wanted
    assert model.prompter.end_token == known["<|im_end|>"]
    assert set(model.network.generation_config.eos_token_id) == wanted


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_marks_of_a_turn_are_control_tokens_whatever_the_file_says(kind, tmp_path):
    before = made("byte-level")
    known = before.get_vocab()
    kinds = tokenizer_fields(before)["token_type"]
    for mark in ("<|im_start|>", "<|im_end|>"):
        kinds[known[mark]] = kind
    path = write_gguf(tmp_path / "m.gguf", gguf_model(tokenizer=before), before, tokens={"token_type": kinds})
    model = opened(path, prompt="chat")
    assert known["<|im_end|>"] in model.end_tokens
    text = "<|im_start|>user\n7<|im_end|>\n"
    assert model.tokenizer.encode(text) == before.encode(text, add_special_tokens=False)


def test_phi_3_s_control_tokens_swallow_the_space_after_them(tmp_path):
    before = made("llama legacy", special=("<|user|>", "<|endoftext|>"))
    tokens = {"add_bos_token": False}
    plain, phi = (
        load_tokenizer(str(write_gguf(tmp_path / f"{f}.gguf", gguf_model(f, tokenizer=before), before, tokens=tokens)))
        for f in ("llama", "phi3")
    )
    assert phi.encode("<|user|>\n 7") == phi.encode("<|user|>7") != plain.encode("<|user|>\n 7")
    assert phi.encode("<|endoftext|> 7") == plain.encode("<|endoftext|> 7")


def test_tekken_splits_a_word_where_its_case_changes(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", gguf_model(), tokens={"pre": "tekken", "add_bos_token": False})
    split = load_tokenizer(str(path)).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [word for word, _ in split("theCat's 12 a/b\n")] == ["the", "Cat", "'s", "Ġ", "1", "2", "Ġa", "/b", "Ċ"]


def test_a_tokenizer_may_be_from_another_place(file, tmp_path, bundled):
    alone = tmp_path / "tokenizer"
    made("byte-level", special=("<|more|>",)).save_pretrained(alone)
    assert len(opened(file, tokenizer=str(alone)).tokenizer) == len(opened(file).tokenizer) + 1
    shutil.copytree(BUNDLED, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    model = opened(tmp_path / "m", tokenizer="bundled")
    assert model.tokenizer.encode(LINES[0]) == bundled.tokenizer.encode(LINES[0])
    (alone / "tokenizer.json").write_text("")
    with pytest.raises(InputError, match=r"tokenizer\.json is empty"):
        opened(file, tokenizer=str(alone))
    with pytest.raises(InputError, match=r"there is no folder .*/none to take a tokenizer from"):
        opened(file, tokenizer=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"bundled is not the tokenizer of .*gguf: .* numbers are of the same token"):
        opened(file, tokenizer="bundled")


# ---- runs ----


@pytest.fixture(scope="module")
def as_gguf(tmp_path_factory) -> Path:
    """The bundled model as a GGUF file; how its tokenizer splits digits has no name there."""
    with quiet():
        network = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).requires_grad_(False)
    return write_gguf(tmp_path_factory.mktemp("bundled") / "bundled.gguf", network, load_tokenizer("bundled"))


def test_the_bundled_model_in_a_gguf_file_answers_as_it_does(as_gguf, bundled, problems):
    model = opened(as_gguf, tokenizer="bundled")
    same_weights(model.network, bundled.network)
    assert model.end_tokens == bundled.end_tokens
    assert model.revision == checksum(as_gguf)
    few = problems[:3]
    assert [t.greedy for t in cca.trace(model, few)] == [t.greedy for t in cca.trace(bundled, few)]


def test_a_run_is_planned_from_the_header(as_gguf, capsys, monkeypatch):
    few = ["--set", "problems.templates=[16, 43]", "--set", "evaluation.transfer=[]"]
    monkeypatch.chdir(as_gguf.parent)
    monkeypatch.setattr("cca.model.gguf.weights.gguf_weights", lambda *_: pytest.fail("weights were read"))
    assert cli.main(["run", "--model", "bundled.gguf", "--dry-run", "--json", *few]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == {**found["model"], "path": "bundled.gguf", "type": "qwen2", "layers": 5}


def test_a_path_may_begin_with_the_home_folder(as_gguf, monkeypatch):
    monkeypatch.setenv("HOME", str(as_gguf.parent))
    assert check_model("~/bundled.gguf").model_type == "qwen2"


def moved(mended: Path, folder: Path, model: Path) -> Path:
    """A copy of the run in `mended` whose model is that of a GGUF file."""
    shutil.copytree(mended, folder)
    config, manifest = folder / "config.toml", folder / "manifest.json"
    config.write_text(config.read_text().replace('path = "bundled"', f'path = "{model}"'))
    kept = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(kept | {"revision": checksum(model)}))
    return as_written(folder)


def test_what_a_gguf_file_became_is_merged_as_an_ordinary_folder(mended, as_gguf, tmp_path):
    run = moved(mended, tmp_path / "run", as_gguf)
    assert cli.main(["merge", str(run), str(tmp_path / "merged")]) == 0
    with quiet():
        merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = opened(as_gguf)
    ids = torch.tensor([base.tokenizer.encode("Q: How many plums are 12 + 5?\nA:")])
    before = base.network(ids).logits
    with Delta.load(run / "delta.safetensors", base).active(base.network):
        updated = base.network(ids).logits
    torch.testing.assert_close(merged(ids).logits, updated, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, updated, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for text in TEXTS:
        assert tokenizer.encode(text) == base.tokenizer.encode(text)
    assert tokenizer.chat_template == CHAT
    said = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert said["eos_token_id"] == sorted(base.end_tokens)[0]
    card = (tmp_path / "merged" / "README.md").read_text()
    for part in ("bundled.gguf", "a GGUF file of quantisation F32, dequantised", f"SHA-256 {base.revision}"):
        assert part in card


def test_another_file_in_its_place_is_not_merged(mended, as_gguf, file, tmp_path, capsys):
    run = moved(mended, tmp_path / "run", as_gguf)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace(str(as_gguf), str(file)))
    assert cli.main(["merge", str(run), str(tmp_path / "merged")]) == 2
    assert "is not the one that" in capsys.readouterr().err
    assert Run.load(run).config.model.path == str(file)
