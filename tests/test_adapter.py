"""A delta is exactly a LoRA: PEFT loads the adapter, and it computes what the merged model does."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, MIXTURES, family_model, tokens
from gguf_made import gguf_model, write_gguf
from peft import AutoPeftModelForCausalLM, PeftModel
from test_delta import filled, made, some_rows
from test_merge import the_code_of_its_readme_answers_as_the_run
from transformers import AutoTokenizer

import cca
from cca import cli
from cca.controls.lora import LowRank
from cca.model.adapter import adapter_of
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.open import open_model
from cca.model.weights import empty_model
from cca.run.run import Run
from cca.run.share.adapter import of_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
DENSE = [case for case in CASES if case[0] not in MIXTURES]


def loaded(network: Any, folder: Path) -> Any:
    """A copy of `network` with the adapter in `folder`."""
    return PeftModel.from_pretrained(copy.deepcopy(network), str(folder)).eval()


def written(delta: Delta, network: Any, folder: Path, rank: int | None = None) -> Path:
    adapter = adapter_of(delta, network)
    folder.mkdir()
    (adapter.lowered(rank) if rank else adapter).save(folder, "base")
    return folder


def merged(delta: Delta, network: Any) -> Any:
    copied = copy.deepcopy(network)
    replaced = Delta(delta.weights)  # which fits any model of its shapes
    replaced.merge(copied)
    return copied


@pytest.mark.parametrize("case", DENSE, ids="-".join)
def test_peft_loads_it_with_the_logits_of_the_merged_model(case, tmp_path):
    network, ids = family_model(*case), tokens(3, 9)
    delta = made(network)
    with_adapter = loaded(network, written(delta, network, tmp_path / "a"))
    wanted = merged(delta, network)(ids).logits
    torch.testing.assert_close(with_adapter(input_ids=ids).logits, wanted, rtol=1e-5, atol=2e-5)
    assert (wanted - network(ids).logits).abs().max() > 0.1
    with with_adapter.disable_adapter():
        assert torch.equal(with_adapter(input_ids=ids).logits, network(ids).logits)


@pytest.mark.parametrize("case", DENSE, ids="-".join)
def test_peft_merges_it_into_the_very_rows_of_the_delta_and_no_others(case, tmp_path):
    network = family_model(*case)
    delta = made(network)
    theirs = loaded(network, written(delta, network, tmp_path / "a")).merge_and_unload()
    mine = dict(merged(delta, network).named_parameters())
    for name, weight in theirs.named_parameters():
        assert torch.equal(weight, mine[name]), name


@pytest.mark.parametrize("family", MIXTURES)
def test_rows_of_experts_are_refused_by_the_name_of_their_weight(family):
    network = family_model(family)
    with pytest.raises(cca.InputError, match=r"changes rows of .*experts\.gate_up_proj.* cca merge RUN FOLDER"):
        adapter_of(made(network), network)
    parts = find_components(network)
    heads = torch.tensor([component.kind != "neuron" for component in parts])
    delta = filled(Delta.zeros(network, parts.rows(heads)))
    assert adapter_of(delta, network).pairs.keys() == {name.rpartition(".")[0] for name in delta.weights}


def test_a_delta_of_nothing_gives_no_adapter():
    with pytest.raises(cca.InputError, match="changes no rows"):
        adapter_of(Delta({}), family_model("llama"))


def test_ranks_are_those_of_the_modules_and_the_scale_is_one_in_each(tmp_path):
    network = family_model("llama")
    delta = made(network)
    config = json.loads((written(delta, network, tmp_path / "a") / "adapter_config.json").read_text())
    counts = {name.rpartition(".")[0]: len(rows.index) for name, rows in delta.weights.items()}
    assert len(set(counts.values())) > 1
    assert counts == {name: config["rank_pattern"].get(name, config["r"]) for name in config["target_modules"]}
    assert config["r"] == config["lora_alpha"] == max(counts.values())
    assert config["alpha_pattern"] == config["rank_pattern"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lowered_rank_is_the_best_there_is_and_its_error_is_that_of_the_weights(family, tmp_path):
    network = family_model(family)
    delta = made(network, every=2)
    adapter = adapter_of(delta, network).lowered(3)
    assert adapter.rank == 3
    left_out = whole = 0.0
    for name, rows in delta.weights.items():
        module = name.rpartition(".")[0]
        pair = adapter.pairs[module]
        change = torch.zeros(len(pair.up), pair.down.shape[1]).index_copy(0, rows.index, rows.values)
        missing = torch.linalg.matrix_norm(change - pair.up @ pair.down).item()
        best = torch.linalg.svdvals(rows.values)[3:].norm().item()
        assert missing == pytest.approx(best, rel=1e-4, abs=1e-5)
        if len(rows.index) > 3:
            assert adapter.lost[module] == pytest.approx(missing / rows.values.norm().item(), rel=1e-4)
        left_out, whole = left_out + missing**2, whole + rows.values.norm().item() ** 2
    assert adapter.error == pytest.approx((left_out / whole) ** 0.5, rel=1e-4)
    assert 0.1 < adapter.error < 1
    theirs = loaded(network, written(delta, network, tmp_path / "a", rank=3)).merge_and_unload()
    for module, pair in adapter.pairs.items():
        base, now = (m.get_submodule(module).weight for m in (network, theirs))
        change = (now - base).T if family == "gpt2" else now - base
        torch.testing.assert_close(change, pair.up @ pair.down, rtol=1e-4, atol=1e-5)


def test_a_rank_that_is_not_above_the_limit_is_left_as_it_is():
    network = family_model("llama")
    adapter = adapter_of(made(network), network)
    same = adapter.lowered(adapter.rank)
    assert same.lost == {} and same.error == 0
    assert all(torch.equal(a, b) for name in same.pairs for a, b in zip(same.pairs[name], adapter.pairs[name]))  # noqa: B905


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_trained_lora_is_exported_as_it_is(family, tmp_path):
    network, ids = family_model(family), tokens(2, 7)
    parts = find_components(network)
    trained = LowRank.fresh(network, parts.rows(torch.ones(parts.size, dtype=torch.bool)), 3, 2.0, seed=1)
    for up in trained.up.values():
        up.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    (tmp_path / "a").mkdir()
    of_lora(trained, network).save(tmp_path / "a", "base")
    with trained.active(network):
        wanted = network(ids).logits
    torch.testing.assert_close(loaded(network, tmp_path / "a")(input_ids=ids).logits, wanted, rtol=1e-5, atol=2e-5)
    assert (wanted - network(ids).logits).abs().max() > 0.1


# ---- of a run ----


@pytest.fixture(scope="module")
def adapter(mended, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    assert cli.main(["export", str(mended), str(folder), "--format", "peft"]) == 0
    return folder


def test_the_adapter_of_a_run_finds_its_base_and_answers_as_the_updated_model(mended, adapter):
    base = open_model("bundled", device="cpu")
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32).eval()
    problem = next(p for p in Run.load(mended).problems if p.split == "test")
    ids = torch.tensor([base.prompter.prompt(problem)])
    with Delta.load(mended / "delta.safetensors", base).active(base):
        wanted = base.network(ids).logits  # of up to 20
    torch.testing.assert_close(theirs(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-4)


def test_its_tokenizer_reads_texts_as_the_run_did(mended, adapter):
    run, tokenizer = Run.load(mended), AutoTokenizer.from_pretrained(adapter)
    for problem in run.problems:
        assert tuple(tokenizer.encode(f"Q: {problem.question}\nA:")) == run.prompter.prompt(problem)


def test_the_code_of_its_readme_answers_as_the_updated_model_did_in_the_run(mended, adapter, monkeypatch):
    monkeypatch.chdir(adapter)
    the_code_of_its_readme_answers_as_the_run(adapter, mended)


def test_its_readme_has_figures_with_intervals_as_metadata_and_says_how_it_is_served(mended, adapter):
    from huggingface_hub import ModelCard

    run, card = Run.load(mended), ModelCard.load(adapter / "README.md")
    data: Any = card.data
    results = {result.metric_name: result for result in data.eval_results}
    found = results["target, updated"]
    assert found.metric_value == pytest.approx(run.summary.target.updated)
    assert found.metric_args["ci95"] == pytest.approx(list(run.summary.target.ci95), abs=1e-6)
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    (served,) = re.findall(r"--max-lora-rank (\d+)", card.text)
    assert int(served) >= rank


def test_a_lowered_rank_is_said_with_what_it_leaves_out(mended, tmp_path, capsys):
    assert cli.main(["export", str(mended), str(tmp_path / "a"), "--format", "peft", "--max-rank", "8"]) == 0
    said = capsys.readouterr().err
    (lost,) = re.findall(r"rank lowered in \d+ modules: ([\d.]+)% of the change's size is left out", said)
    assert 0 < float(lost) < 100
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 8
    assert f"leaves out {float(lost):.1f}% of the change's size" in (tmp_path / "a" / "README.md").read_text()
    assert "that is left out here: the adapter may answer otherwise" in (tmp_path / "a" / "README.md").read_text()


def test_a_base_that_others_know_is_named_with_no_path_of_this_machine(mended, tmp_path, capsys):
    options = ["--format", "peft", "--base", "someone/organism"]
    assert cli.main(["export", str(mended), str(tmp_path / "a"), *options]) == 0
    assert "note:" not in capsys.readouterr().err
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/organism" and config["revision"] is None
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "base_model: someone/organism" in readme
    assert str(Path(cca.__file__).parent) not in readme
    assert cli.main(["export", str(mended), str(tmp_path / "b"), "--format", "peft"]) == 0
    assert "note: it names its base as bundled, which others do not have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "delta", "--max-rank", "4"], "--max-rank is for --format peft, not for delta"),
        (["--format", "peft", "--max-rank", "0"], "--max-rank 0 is no rank; give at least 1"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(mended, tmp_path, capsys, options, said):
    assert cli.main(["export", str(mended), str(tmp_path / "a"), *options]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_adapter_of_a_gguf_model_is_for_its_dequantised_base(tmp_path):
    network = gguf_model("llama")
    path = write_gguf(tmp_path / "tiny.gguf", network)
    base = open_model(path, device="cpu")
    delta = filled(Delta.zeros(base, some_rows(base.network)))
    empty = empty_model(base.network.config, str(path))  # as an export has it, which reads no weights
    folder = written(delta, empty, tmp_path / "a")
    ids = torch.arange(4, 20)[None]
    with delta.applied(base):
        wanted = base.network(ids).logits
    torch.testing.assert_close(loaded(base.network, folder)(input_ids=ids).logits, wanted, rtol=1e-5, atol=2e-5)
