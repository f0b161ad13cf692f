"""A model is loaded whole or refused: what may be wrong with a folder's files is named before a weight is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, ONLY_MULTI_HEAD, family_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cca import cli
from cca.errors import InputError
from cca.model.bundled import BUNDLED, slip_kinds
from cca.model.checks import check_model, load_tokenizer
from cca.model.open import open_model
from cca.model.weights import INDEX, load_network, quiet

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
VOCABULARY = 3072


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Llama with tied embeddings and the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    family_model("llama", vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=True).save_pretrained(
        folder
    )
    load_tokenizer("bundled").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "m"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reweigh(folder: Path, change: Callable[[dict], dict]) -> None:
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, {"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """Spread the weights over files of 64 KB; which weight is in which."""
    network = open_model(folder, device="cpu").network
    (folder / "model.safetensors").unlink()
    with quiet():
        network.save_pretrained(folder, max_shard_size="64KB")
    return json.loads((folder / INDEX).read_text())["weight_map"]


def lacks_a_layer(folder: Path) -> None:
    reweigh(folder, lambda found: {n: w for n, w in found.items() if ".layers.1." not in n})


def lacks_a_shard(folder: Path) -> None:
    (folder / shard(folder)["model.layers.1.mlp.up_proj.weight"]).unlink()


def names_an_absent_shard(folder: Path) -> None:
    listed = shard(folder)
    edit(folder / INDEX, weight_map={**listed, "model.norm.weight": "other.safetensors"})


def lists_fewer_weights(folder: Path) -> None:
    listed = shard(folder)
    left_out = listed["model.layers.1.mlp.up_proj.weight"]
    edit(folder / INDEX, weight_map={n: f for n, f in listed.items() if f != left_out})


def has_two_checkpoints(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def has_shards_without_an_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def is_of_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def is_an_adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere/base", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def is_packed(folder: Path) -> None:
    reweigh(folder, lambda found: {n: w.to(torch.int8) if "up_proj" in n else w for n, w in found.items()})


def cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        (whole := (folder / name).read_bytes())[: int(len(whole) * share)]
    )


def says(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def config(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", **changes)


def renamed(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: reweigh(folder, lambda found: {change(n): w for n, w in found.items()})


LACKING = {
    "an output embedding": (config(tie_word_embeddings=False), ["lacks 1 of", "lm_head.weight", "would be random"]),
    "a layer": (lacks_a_layer, ["lacks 9 of", "model.layers.1.input_layernorm.weight", "and 6 more"]),
    "a layer that only the config has": (config(num_hidden_layers=4), ["lacks 9 of", "model.layers.3."]),
    "a layer of the config": (config(num_hidden_layers=2), ["more layers than its config.json says", "layers.2."]),
    "all layers of the config": (config(num_hidden_layers=0), ["has no layers", "config.json"]),
    "fitting shapes": (config(intermediate_size=32), ["do not fit its config.json", "is [", "and 8 more"]),
    "a fitting vocabulary": (config(vocab_size=VOCABULARY + 8), ["embed_tokens", "[3072, 32]", "[3080, 32]"]),
    "names that fit": (renamed(lambda name: f"module.{name}"), ["lacks", "no use for module.model.", "another way"]),
    "a shard": (lacks_a_shard, ["lacks 1 of its", "weight files", "fetch them"]),
    "a shard of the index": (names_an_absent_shard, ["lacks 1 of its", "other.safetensors"]),
    "a shard in the index": (lists_fewer_weights, ["lacks", "model.layers.", "random"]),
    "an index": (has_shards_without_an_index, ["model-00001-of", INDEX]),
    "a weight map": (lambda f: (shard(f), says(INDEX, "{}")(f)), [INDEX, "weight_map"]),
    "one meaning": (has_two_checkpoints, ["two checkpoints", "model.safetensors", INDEX, "remove"]),
    "safetensors": (is_of_pickle, ["pytorch_model.bin", "none as safetensors", "save_pretrained"]),
    "all but an adapter": (is_an_adapter, ["PEFT adapter", "merge"]),
    "an adapter's base": (says("adapter_config.json", "{}"), ["PEFT adapter", "merge"]),
    "numbers": (is_packed, ["quantised", "mlp.up_proj.weight is I8"]),
}
DAMAGED = {
    **{f"{share:.0%} of the weights": (cut("model.safetensors", share), ["model.safetensors"]) for share in (0, 0.5)},
    "nearly all": (cut("model.safetensors", 0.999), ["model.safetensors", "cut off"]),
    "half a config": (cut("config.json", 0.5), ["config.json", "is not JSON"]),
    "half a tokenizer": (cut("tokenizer.json", 0.5), ["tokenizer"]),
    "half a tokenizer config": (cut("tokenizer_config.json", 0.5), ["tokenizer_config.json", "is not JSON"]),
    "half the generation settings": (cut("generation_config.json", 0.5), ["generation_config.json", "is not JSON"]),
    "a list as config": (says("config.json", "[1]"), ["config.json", "no JSON object", "list"]),
    "null as config": (says("config.json", "null"), ["config.json", "no JSON object"]),
    "a list as generation settings": (
        says("generation_config.json", "[]"),
        ["generation_config.json", "no JSON object"],
    ),
    "text as tokenizer": (says("tokenizer.json", "What?"), ["no usable tokenizer"]),
    "a list as tokenizer": (says("tokenizer.json", "[]"), ["no usable tokenizer"]),
    "text as weights": (says("model.safetensors", "What?"), ["model.safetensors", "cut off or no safetensors file"]),
    "text as index": (lambda f: (shard(f), says(INDEX, "What?")(f)), [INDEX, "is not JSON"]),
}
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
CASES = {
    **{f"lacks {name}": case for name, case in LACKING.items()},
    **{f"is damaged: {name}": case for name, case in DAMAGED.items()},
    **{f"empty {name}": (says(name, ""), [name, "is empty"]) for name in FILES},
    **{f"pointer {name}": (says(name, POINTER), [name, "Git LFS pointer", "git lfs pull"]) for name in FILES},
    **{f"folder {name}": (lambda f, n=name: ((f / n).unlink(), (f / n).mkdir()), [name, "read"]) for name in FILES},
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_not_whole_is_named_before_a_weight_is_read(folder, case, monkeypatch):
    damage, parts = CASES[case]
    damage(folder)
    monkeypatch.setattr("cca.model.network.load_network", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InputError) as found:
        open_model(folder, device="cpu")
    said = str(found.value)
    assert "\n" not in said, "one line"
    for part in parts:
        assert part in said


@pytest.mark.parametrize("case", ["lacks a layer", "pointer model.safetensors", "is damaged: text as tokenizer"])
@pytest.mark.parametrize("command", [["--dry-run"], ["--out", "run", "--quiet"]])
def test_a_run_and_its_dry_run_end_before_they_begin(folder, case, command, capsys, monkeypatch):
    damage, parts = CASES[case]
    damage(folder)
    monkeypatch.chdir(folder.parent)
    small = ["--set", "problems.templates=[16]", "--set", "evaluation.transfer=[]", "--set", "evaluation.retention=[]"]
    assert cli.main(["run", "--model", str(folder), *command, *small]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cca: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not Path("run").exists()


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    (folder / "tokenizer.json").chmod(0)
    if os.access(folder / "tokenizer.json", os.R_OK):  # root may read anything

        def forbidden(self: Path, *_: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(InputError, match=r"cannot read .* \(Permission denied\)"):
        check_model(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"0": 1}', '{"0": {}}'])
def test_a_list_of_planted_slips_that_is_none_is_named(folder, text):
    assert slip_kinds(str(folder)) == {}
    (folder / "slips.json").write_text(text)
    with pytest.raises(InputError, match=r"slips\.json does not say .* mend it"):
        slip_kinds(str(folder))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_load_is_checked_again_and_moves_no_random_number(folder, share):
    """As for a model of the hub, whose files are first seen as they are loaded."""
    reweigh(folder, lambda found: dict(list(found.items())[: int(len(found) * share)]))
    before = torch.random.get_rng_state()
    for places in (None, {"": "cpu"}, {"model.embed_tokens": "cpu", "model": "cpu", "lm_head": "cpu"}):
        with pytest.raises(InputError, match=r"lacks .* would be random"):
            load_network(str(folder), {"device_map": places, "dtype": torch.float32}, "nothing")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_layers_on_the_disk_are_checked_as_those_in_memory(folder):
    lacks_a_layer(folder)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" for i in range(3)}
    with pytest.raises(InputError, match=r"lacks 9 .* would be random"):
        load_network(str(folder), {"device_map": places, "offload_folder": str(folder / "disk")}, "nothing")


def test_weights_without_a_use_are_named_once_and_do_no_harm(folder, capsys):
    plain = open_model(folder, device="cpu")
    assert capsys.readouterr().err == ""
    more = {"vision.patch.weight": torch.ones(4), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    reweigh(folder, lambda found: found | more)
    again = open_model(folder, device="cpu")
    warned = capsys.readouterr().err
    assert warned.count("warning: ") == 1
    assert "does not use: vision.patch.weight\n" in warned, "old buffers are not worth a word"
    same_weights(plain.network, again.network)


def test_files_that_are_none_of_the_model_s_do_not_matter(folder):
    (folder / "consolidated.safetensors").write_text(POINTER)
    (folder / "chat_template.jinja").write_text("")
    open_model(folder, device="cpu")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_back_as_it_was_saved(family, tied, tmp_path):
    groups = "mha" if family in ONLY_MULTI_HEAD else "gqa"
    network = family_model(family, groups, tie_word_embeddings=tied)
    network.save_pretrained(tmp_path)
    check_model(str(tmp_path))
    loaded, unused = load_network(str(tmp_path), {"dtype": torch.float32}, "nothing")
    assert not unused
    same_weights(network, loaded)
    lost = next(name for name in sorted(load_file(tmp_path / "model.safetensors")) if ".1." in name)
    reweigh(tmp_path, lambda found: {n: w for n, w in found.items() if n != lost})
    with pytest.raises(InputError, match=r"lacks 1 of|experts.* is \[2, .* where \[3, |some of its weights"):
        check_model(str(tmp_path))


def test_the_bundled_model_is_whole_and_two_loads_are_the_same():
    check_model("bundled")
    same_weights(open_model("bundled", device="cpu").network, open_model(str(BUNDLED), device="cpu").network)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@settings(max_examples=25)
@given(data=st.data())
def test_no_value_in_a_config_ends_in_anything_but_a_model_or_an_input_error(model_folder, data):
    config = model_folder / "config.json"
    whole = config.read_text()
    known = json.loads(whole)
    try:
        edit(
            config, **{data.draw(st.sampled_from(sorted({*known, "quantization_config", "auto_map"}))): data.draw(ODD)}
        )
        check_model(str(model_folder))
    except InputError as error:
        assert str(model_folder) in str(error)
    finally:
        config.write_text(whole)


@settings(max_examples=25)
@given(data=st.data())
def test_weights_with_a_byte_changed_or_cut_off_are_a_model_or_an_input_error(model_folder, data):
    weights = model_folder / "model.safetensors"
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(0, header - 1))
    byte = data.draw(st.integers(0, 255))
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    try:
        weights.write_bytes(changed[: data.draw(st.sampled_from([len(whole), place, len(whole) - 1]))])
        check_model(str(model_folder))
    except InputError as error:
        assert str(model_folder) in str(error)
    finally:
        weights.write_bytes(whole)


def test_weights_of_another_architecture_are_refused(folder):
    bias = {f"model.layers.0.self_attn.{name}_proj.bias": torch.ones(32) for name in "qkv"}
    reweigh(folder, lambda weights: weights | bias)
    with pytest.raises(InputError, match=r"another architecture .* LlamaForCausalLM has no use for .*q_proj.bias"):
        open_model(folder, device="cpu")
