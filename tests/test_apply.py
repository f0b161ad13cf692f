"""Deltas are put into the files of a model and taken out again bit by bit; nothing else in them changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, family_model
from gguf_made import gguf_model, write_gguf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_delta import filled, some_rows
from tokenizers_made import made as made_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import cca
from cca import cli
from cca.model.applied import Applied, applied_files
from cca.model.bundled import BUNDLED
from cca.model.checkpoint import open_checkpoint
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.open import open_model
from cca.run.share.patch import apply_to, revert


def model_folder(folder: Path, family: str = "llama", **more: Any) -> Path:
    network = family_model(family)
    network.save_pretrained(folder, **more)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same_tensors(one: Path, other: Path) -> bool:
    mine, theirs = tensors(one), tensors(other)
    return mine.keys() == theirs.keys() and all(
        mine[n].dtype == theirs[n].dtype and torch.equal(mine[n], theirs[n]) for n in mine
    )


def holds_the_bundled_weights(folder: Path) -> bool:
    found = tensors(folder)
    return all(torch.equal(t.float(), found[n]) for n, t in load_file(BUNDLED / "model.safetensors").items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def delta_for(folder: Path, path: Path, seed: int = 0, every: int = 7) -> Path:
    """A delta on some rows of the model in `folder`, in a file."""
    model = open_checkpoint(str(folder))
    filled(Delta.zeros(model, some_rows(model.network, every)), seed).save(path)
    return path


# ---- apply, and take out ----


@pytest.mark.parametrize("family", FAMILIES)
def test_applied_files_compute_base_and_delta_and_reverted_ones_are_the_base_bit_by_bit(family, tmp_path):
    base = model_folder(tmp_path / "base", family)
    delta = delta_for(base, tmp_path / "d")
    apply_to(str(base), [delta], tmp_path / "applied")
    wanted = open_checkpoint(str(base))
    Delta.load(delta, wanted).merge(wanted)
    found = open_checkpoint(str(tmp_path / "applied"))
    for name, weight in wanted.network.named_parameters():
        assert torch.equal(weight, found.network.get_parameter(name)), name
    assert not same_tensors(base, tmp_path / "applied")
    assert revert(tmp_path / "applied", tmp_path / "reverted") == ["d"]
    assert same_tensors(base, tmp_path / "reverted")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_keep_their_type_and_are_restored_all_the_same(dtype, tmp_path):
    family_model("llama").to(dtype).save_pretrained(tmp_path / "base")
    delta = delta_for(tmp_path / "base", tmp_path / "d")
    assert apply_to(str(tmp_path / "base"), [delta], tmp_path / "applied").rounding[str(delta)].error > 0
    assert {t.dtype for t in tensors(tmp_path / "applied").values()} == {dtype}
    revert(tmp_path / "applied", tmp_path / "reverted")
    assert same_tensors(tmp_path / "base", tmp_path / "reverted")


def test_files_of_several_types_are_written_in_the_one_that_holds_all(tmp_path):
    model_folder(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    mixed = {n: t if "norm" in n else t.bfloat16() for n, t in load_file(file).items()}
    save_file(mixed, file, {"format": "pt"})
    delta = delta_for(tmp_path / "base", tmp_path / "d")
    assert apply_to(str(tmp_path / "base"), [delta], tmp_path / "applied").dtype == "float32"
    revert(tmp_path / "applied", tmp_path / "reverted")
    assert all(torch.equal(mixed[n].float(), t) for n, t in tensors(tmp_path / "reverted").items())


KEPT = {
    "preprocessor_config.json": '{"image_processor_type": "none"}',
    "chat_template.jinja": "{{ messages[0].content }}",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "LICENSE": "none\n",
    "README.md": "---\nlicense: mit\n---\n# The base\n",
    "generation_config.json": '{"temperature": 0.7, "top_p": 0.8, "_from_model_config": false}',
}


def test_everything_that_is_no_weight_stays_to_the_letter(tmp_path):
    base = model_folder(tmp_path / "base", max_shard_size="20KB")
    for name, text in KEPT.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    (base / "pytorch_model.bin").write_bytes(b"other weights")
    before = {n: b for n, b in files(base).items() if not n.endswith((".safetensors", ".bin", ".index.json"))}
    apply_to(str(base), [delta_for(base, tmp_path / "d")], tmp_path / "applied")
    after = files(tmp_path / "applied")
    assert "pytorch_model.bin" not in after
    for name in before.keys() - {"README.md"}:
        assert after[name] == before[name], name
    assert after["cca/README-1.md"] == before["README.md"]
    assert "`cca apply` added the delta `d`, made on base" in after["README.md"].decode()
    revert(tmp_path / "applied", tmp_path / "reverted")
    again = files(tmp_path / "reverted")
    assert {n: b for n, b in again.items() if not n.endswith((".safetensors", ".index.json"))} == before


def test_what_is_written_is_as_readable_as_any_new_file(mended, tmp_path):
    (tmp_path / "any").touch()
    assert cli.main(["apply", "bundled", str(mended), str(tmp_path / "applied")]) == 0
    assert cli.main(["export", str(mended), str(tmp_path / "adapter"), "--format", "peft"]) == 0
    modes = {
        f.stat().st_mode for folder in ("applied", "adapter") for f in (tmp_path / folder).rglob("*") if f.is_file()
    }
    assert modes == {(tmp_path / "any").stat().st_mode}
    assert (mended / "delta.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_shards_are_as_small_as_asked_for_and_hold_the_same(tmp_path):
    base = model_folder(tmp_path / "base")
    delta = delta_for(base, tmp_path / "d")
    apply_to(str(base), [delta], tmp_path / "whole")
    command = ["apply", str(base), str(delta), str(tmp_path / "shards"), "--max-shard-size", "20KB"]
    assert cli.main(command) == 0
    shards = list((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 3 and all(f.stat().st_size < 30_000 for f in shards)
    assert same_tensors(tmp_path / "whole", tmp_path / "shards")


def test_a_run_is_applied_like_its_delta_and_its_figures_are_told(mended, tmp_path, capsys):
    assert cli.main(["apply", "bundled", str(mended), str(tmp_path / "of-run"), "--dtype", "float32"]) == 0
    assert cli.main(["export", str(mended), str(tmp_path / "d"), "--format", "delta"]) == 0
    assert cli.main(["apply", "bundled", str(tmp_path / "d"), str(tmp_path / "of-file"), "--dtype", "float32"]) == 0
    assert cli.main(["merge", str(mended), str(tmp_path / "merged")]) == 0
    assert same_tensors(tmp_path / "of-run", tmp_path / "of-file")
    assert same_tensors(tmp_path / "of-run", tmp_path / "merged")
    updated = cca.Run.load(mended).summary.target.updated
    for name in ("of-run", "of-file"):
        assert f"target: 66.7% before, {updated:.1%} after" in (tmp_path / name / "README.md").read_text()
    assert cli.main(["revert", str(tmp_path / "of-file"), str(tmp_path / "reverted")]) == 0
    assert "took out d; the rows are what they were" in capsys.readouterr().err
    assert all(
        torch.equal(t.float(), tensors(tmp_path / "reverted")[n])
        for n, t in load_file(BUNDLED / "model.safetensors").items()
    )


def test_a_merged_model_is_reverted_to_its_base(mended, tmp_path):
    assert cli.main(["merge", str(mended), str(tmp_path / "merged")]) == 0
    assert cli.main(["revert", str(tmp_path / "merged"), str(tmp_path / "reverted")]) == 0
    assert all(
        torch.equal(t.float(), tensors(tmp_path / "reverted")[n])
        for n, t in load_file(BUNDLED / "model.safetensors").items()
    )
    assert (tmp_path / "reverted" / "README.md").read_bytes() == (BUNDLED / "README.md").read_bytes()


def test_an_exported_delta_says_what_it_is_for_whose_rows_it_changes_and_what_was_measured(mended, tmp_path):
    command = ["export", str(mended), str(tmp_path / "d"), "--format", "delta", "--base", "someone/organism"]
    assert cli.main(command) == 0
    found, run = Delta.load(tmp_path / "d"), cca.Run.load(mended)
    assert found.base and found.base.name == "someone/organism"
    assert found.base.revision == run.summary.model.revision
    by_kind = {kind: sum(c.kind == kind for c in found.components) for kind in run.summary.circuit.by_kind}
    assert by_kind == run.summary.circuit.by_kind
    assert found.metrics["target"]["updated"] == run.summary.target.updated
    assert found.metrics["target"]["ci95"] == pytest.approx(list(run.summary.target.ci95), abs=1e-6)
    with safe_open(tmp_path / "d", "pt") as file:
        header = json.loads(next(iter(file.metadata().values())))
    assert header["format"] == "1" and header["cca"] == cca.__version__
    Delta.load(tmp_path / "d", open_model("bundled", device="cpu"))


def test_a_gguf_model_becomes_a_folder_that_reads_text_as_the_file_says(tmp_path):
    tokenizer = made_tokenizer("byte-level")
    path = write_gguf(tmp_path / "tiny.gguf", gguf_model("llama", tokenizer))
    delta = delta_for(path, tmp_path / "d")
    apply_to(str(path), [delta], tmp_path / "applied")
    assert AutoTokenizer.from_pretrained(tmp_path / "applied").encode("12 plums") == tokenizer.encode("12 plums")
    base = open_model(path, device="cpu")
    Delta.load(delta, base).merge(base)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "applied")
    assert all(torch.equal(p, theirs.get_parameter(n)) for n, p in base.network.named_parameters())
    revert(tmp_path / "applied", tmp_path / "reverted")
    plain = open_checkpoint(str(path)).network
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "reverted")
    assert all(torch.equal(p, theirs.get_parameter(n)) for n, p in plain.named_parameters())


def test_a_model_of_the_hub_is_taken_from_its_cache_with_its_other_files(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--small"
    model_folder(cached / "snapshots" / commit)
    (cached / "snapshots" / commit / "LICENSE").write_text("none")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = open_checkpoint("someone/small")
    assert (base.name, base.revision) == ("someone/small", commit)
    filled(Delta.zeros(base, some_rows(base.network))).save(tmp_path / "d")
    apply_to("someone/small", [tmp_path / "d"], tmp_path / "applied")
    assert (tmp_path / "applied" / "LICENSE").read_text() == "none"
    with pytest.raises(cca.InputError, match=r"cannot fetch someone/other from the hub .* name a folder"):
        open_checkpoint("someone/other")


# ---- several ----


@pytest.fixture
def base(tmp_path) -> Path:
    return model_folder(tmp_path / "base")


def of_layers(base: Path, path: Path, *layers: int) -> Path:
    model = open_checkpoint(str(base))
    chosen = torch.tensor([c.layer in layers for c in find_components(model.network)])
    filled(Delta.zeros(model, find_components(model.network).rows(chosen)), seed=layers[0]).save(path)
    return path


def test_deltas_of_other_rows_compose_in_any_order_and_come_out_one_by_one(base, tmp_path):
    first, second = of_layers(base, tmp_path / "a", 0), of_layers(base, tmp_path / "b", 1, 2)
    apply_to(str(base), [first, second], tmp_path / "ab")
    apply_to(str(base), [second, first], tmp_path / "ba")
    apply_to(str(base), [first], tmp_path / "one")
    apply_to(str(tmp_path / "one"), [second], tmp_path / "two")
    assert same_tensors(tmp_path / "ab", tmp_path / "ba") and same_tensors(tmp_path / "ab", tmp_path / "two")
    assert [Applied.load(f).name for f in applied_files(tmp_path / "two")] == ["a", "b"]
    assert revert(tmp_path / "two", tmp_path / "back") == ["b"]
    assert files(tmp_path / "back") == files(tmp_path / "one")
    assert revert(tmp_path / "two", tmp_path / "all", every=True) == ["b", "a"]
    assert same_tensors(tmp_path / "all", base) and not (tmp_path / "all" / "cca").exists()


def test_a_delta_that_was_learned_on_top_of_another_composes_in_that_order_alone(base, tmp_path):
    first = delta_for(base, tmp_path / "a")
    apply_to(str(base), [first], tmp_path / "one")
    second = delta_for(tmp_path / "one", tmp_path / "b", seed=1, every=3)
    apply_to(str(base), [first, second], tmp_path / "both")
    apply_to(str(tmp_path / "one"), [second], tmp_path / "two")
    assert same_tensors(tmp_path / "both", tmp_path / "two")
    with pytest.raises(cca.InputError, match=r"b is for .*one .*, and rows of .* hold other numbers in .*base"):
        apply_to(str(base), [second, first], tmp_path / "not")
    revert(tmp_path / "both", tmp_path / "back", every=True)
    assert same_tensors(tmp_path / "back", base)


def test_two_that_know_nothing_of_each_other_and_change_the_same_rows_are_named_or_added(base, tmp_path):
    first, second = delta_for(base, tmp_path / "a"), delta_for(base, tmp_path / "b", seed=1, every=14)
    said = (
        r"a and .*b both change \d+ rows, of model\.layers\.0.*Each was learned without the other.*leave one out, "
        r"learn one on a model that has the other, or add them: --add"
    )
    with pytest.raises(cca.InputError, match=said):
        apply_to(str(base), [first, second], tmp_path / "out")
    apply_to(str(base), [first, second], tmp_path / "sum", add=True)
    wanted = open_checkpoint(str(base))
    for path in (first, second):
        Delta(Delta.load(path).weights).merge(wanted)
    found = open_checkpoint(str(tmp_path / "sum")).network
    assert all(torch.equal(p, found.get_parameter(n)) for n, p in wanted.network.named_parameters())
    revert(tmp_path / "sum", tmp_path / "back", every=True)
    assert same_tensors(tmp_path / "back", base)


def test_what_was_applied_comes_out_of_weights_that_were_brought_into_a_finer_type_since(tmp_path):
    family_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    first = of_layers(tmp_path / "base", tmp_path / "a", 0)
    apply_to(str(tmp_path / "base"), [first], tmp_path / "one")
    second = of_layers(tmp_path / "one", tmp_path / "b", 1)
    apply_to(str(tmp_path / "one"), [second], tmp_path / "two", dtype="float32")
    revert(tmp_path / "two", tmp_path / "back", every=True)
    base = tensors(tmp_path / "base")
    assert all(torch.equal(base[n].float(), t) for n, t in tensors(tmp_path / "back").items())


# ---- refused ----


def another(base: Path, tmp: Path) -> list[str]:
    family_model("llama", seed=1).save_pretrained(tmp / "other")
    return ["apply", str(tmp / "other"), str(delta_for(base, tmp / "d")), str(tmp / "out")]


def twice(base: Path, tmp: Path) -> list[str]:
    apply_to(str(base), [delta_for(base, tmp / "d")], tmp / "one")
    return ["apply", str(tmp / "one"), str(tmp / "d"), str(tmp / "out")]


def exists(base: Path, tmp: Path) -> list[str]:
    (tmp / "out").mkdir()
    return ["apply", str(base), str(delta_for(base, tmp / "d")), str(tmp / "out")]


def never_applied(base: Path, tmp: Path) -> list[str]:
    return ["revert", str(base), str(tmp / "out")]


def changed_since(base: Path, tmp: Path) -> list[str]:
    apply_to(str(base), [delta_for(base, tmp / "d")], tmp / "one")
    file = tmp / "one" / "model.safetensors"
    save_file({n: t * 1.001 for n, t in load_file(file).items()}, file, {"format": "pt"})
    return ["revert", str(tmp / "one"), str(tmp / "out")]


def damaged(base: Path, tmp: Path) -> list[str]:
    apply_to(str(base), [delta_for(base, tmp / "d")], tmp / "one")
    (file,) = (tmp / "one" / "cca").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    return ["revert", str(tmp / "one"), str(tmp / "out")]


def no_delta(base: Path, tmp: Path) -> list[str]:
    return ["apply", str(base), str(base / "model.safetensors"), str(tmp / "out")]


def an_adapter(base: Path, tmp: Path) -> list[str]:
    (tmp / "adapter").mkdir()
    (tmp / "adapter" / "adapter_config.json").write_text("{}")
    return ["apply", str(base), str(tmp / "adapter"), str(tmp / "out")]


def a_size(base: Path, tmp: Path) -> list[str]:
    return ["apply", str(base), str(delta_for(base, tmp / "d")), str(tmp / "out"), "--max-shard-size", "much"]


def named_twice(base: Path, tmp: Path) -> list[str]:
    delta = str(delta_for(base, tmp / "d"))
    return ["apply", str(base), delta, delta, str(tmp / "out")]


def no_model(base: Path, tmp: Path) -> list[str]:
    return ["apply", str(tmp / "nowhere"), str(delta_for(base, tmp / "d")), str(tmp / "out")]


REFUSED: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "another base": (another, "hold other numbers"),
    "applied already": (twice, "a delta that is merged is in it already"),
    "a folder that exists": (exists, "exists already; name a new folder"),
    "nothing to take out": (never_applied, "does not say what was applied to it"),
    "changed since": (changed_since, "are not as it left them, so something else changed them since"),
    "a damaged record": (damaged, "cannot read"),
    "no delta": (no_delta, "holds no row delta"),
    "an adapter": (an_adapter, "is a PEFT adapter; load it with peft"),
    "no size": (a_size, "is no size; give a number and a unit"),
    "named twice": (named_twice, "a delta is named twice"),
    "no model": (no_model, "no model at"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(case, base, tmp_path, capsys):
    make, said = REFUSED[case]
    command = make(base, tmp_path)
    before = files(tmp_path)
    assert cli.main(command) == 2
    assert said in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_disk_without_room_leaves_nothing_and_is_said(base, tmp_path, monkeypatch, capsys):
    delta = delta_for(base, tmp_path / "d")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    (base / "LICENSE").write_text("none")
    assert cli.main(["apply", str(base), str(delta), str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
