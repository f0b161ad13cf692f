"""Where a model computes and what it is made of: what cca works with, and one line for everything else."""

from typing import Any

import pytest
import torch
from families import family_model
from torch import nn

import cca
from cca import cli
from cca.model.checks import check_device, check_network, load_tokenizer

SHAPE: dict[str, Any] = {"vocab_size": 3072, "max_position_embeddings": 512}
REFUSED = {
    **dict.fromkeys(("mps", "mps:0", "xpu", "meta", "xla", "hpu:1"), "cannot compute .*; use auto, cpu or cuda"),
    **dict.fromkeys(("CPU", " cpu", "", "gpu", "cuda:x", "Auto"), "is no torch device; use auto, cpu or cuda"),
    "cpu:1": "there is one cpu",
    "cuda:99": "torch sees (no|only)",
}
SEES_ONE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has other devices")


@pytest.mark.parametrize("device", REFUSED)
def test_a_device_that_cca_cannot_use_is_refused_in_one_line(device, capsys, tmp_path):
    with pytest.raises(cca.InputError, match=REFUSED[device]) as found:
        cca.open_model("bundled", device=device)
    assert "\n" not in str(found.value)
    with pytest.raises(cca.InputError, match=REFUSED[device].split(";")[0]):
        check_device("auto", {"model.embed_tokens": device})
    for command in (["--dry-run"], ["--out", str(tmp_path / "run"), "--quiet"]):
        assert cli.main(["run", "--set", f'model.device="{device}"', *command]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:0"])
def test_the_cpu_is_a_device_everywhere(device):
    check_device(device, {"model": "cpu", "lm_head": "disk"})
    assert cca.open_model("bundled", device="cpu" if device == "auto" else device).network.device.type == "cpu"


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_only_the_cuda_devices_that_there_are_can_be_named(seen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    for number in range(3):
        for ask in (lambda n=number: check_device(f"cuda:{n}"), lambda n=number: check_device("auto", {"": n})):
            if number < seen:
                ask()
            else:
                with pytest.raises(
                    cca.InputError, match=f"torch sees {'only ' + str(seen) if seen else 'no'} CUDA dev"
                ):
                    ask()


@SEES_ONE
@pytest.mark.parametrize("place", ["mps", "meta", 0, "somewhere"])
def test_a_device_map_is_looked_at_before_weights_are_read(place, monkeypatch):
    monkeypatch.setattr("cca.model.network.load_network", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(cca.InputError, match=r"model\.device_map\.model\.layers (is|.* is no) "):
        cca.open_model("bundled", device_map={"model.layers": place})


# ---- a model in memory ----


def on(device: str):
    """A model that says it is on a device that this machine has not."""

    class Elsewhere(nn.Parameter):
        @property
        def device(self) -> torch.device:  # pyright: ignore
            return torch.device(device)

    network = family_model("llama", **SHAPE)
    network.lm_head.weight = Elsewhere(network.lm_head.weight.data)
    return network


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(family_model("llama", **SHAPE), peft.LoraConfig(r=1, target_modules=["o_proj"]))


def with_an_adapter() -> Any:
    """As transformers' own ``load_adapter`` leaves a model."""
    network = family_model("llama", **SHAPE)
    network._hf_peft_config_loaded = True
    return network


def compiled_in_place() -> Any:
    network = family_model("llama", **SHAPE)
    network.compile(backend="eager")
    return network


def quantised() -> Any:
    network = family_model("llama", **SHAPE)
    projection = network.model.layers[1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    return network


MODELS = {
    "float64": (lambda: family_model("llama", **SHAPE).double(), r"is float64; cca works with .*model\.float\(\)"),
    "float8": (lambda: family_model("llama", **SHAPE).to(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "int8": (quantised, r"layers\.1\.mlp\.up_proj\.weight .* is int8"),
    "meta": (lambda: family_model("llama", **SHAPE).to("meta"), "on the meta device, so it has no numbers"),
    "mps": (lambda: on("mps"), r"is on mps, where cca cannot compute .*model\.to\(\"cpu\"\)"),
    "xpu": (lambda: on("xpu:0"), "is on xpu:0, where cca cannot compute"),
    "compiled": (
        lambda: torch.compile(family_model("llama", **SHAPE), backend="eager"),
        r"it is compiled\); give model\._orig_mod",
    ),
    "compiled in place": (compiled_in_place, r"is compiled.* before model\.compile"),
    "parallel": (lambda: nn.DataParallel(family_model("llama", **SHAPE)), r"it is wrapped\); give model\.module"),
    "PEFT around": (adapted, "has a PEFT adapter; merge it first"),
    "PEFT inside": (with_an_adapter, "has a PEFT adapter; merge it first"),
    "a bare module": (lambda: nn.Linear(2, 2), "a Linear is no transformers model"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for a name that is about to go
@pytest.mark.parametrize("case", MODELS)
def test_a_model_in_memory_that_cca_cannot_work_with_is_refused_in_one_line(case):
    make, said = MODELS[case]
    with pytest.raises(cca.InputError, match=said) as found:
        cca.open_model((make(), load_tokenizer("bundled")))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_types_of_the_options_work_in_memory_too(dtype):
    network = family_model("llama", **SHAPE).to(dtype)
    assert cca.open_model((network, load_tokenizer("bundled"))).network is network
    mixed = family_model("llama", **SHAPE).to(torch.bfloat16)
    mixed.model.norm.float()
    check_network(mixed, "mixed")
