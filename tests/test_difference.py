"""In what two models differ is told by component, and nothing of it is left out."""

import json

import pytest
import torch
from families import FAMILIES, family_model
from test_apply import model_folder
from test_delta import filled
from transformers import AutoModelForCausalLM

import cca
from cca import cli
from cca.model.checkpoint import open_checkpoint
from cca.model.components import find_components
from cca.model.delta import Delta
from cca.model.difference import difference


@pytest.mark.parametrize("family", FAMILIES)
def test_the_difference_is_the_components_of_the_delta_and_nothing_else(family, tmp_path):
    base = model_folder(tmp_path / "base", family)
    first, second = open_checkpoint(str(base)), open_checkpoint(str(base))
    chosen = torch.arange(find_components(first.network).size) % 5 == 0
    delta = filled(Delta.zeros(second, find_components(first.network).rows(chosen)))
    delta.merge(second)
    found = difference(first, second)
    every = list(find_components(first.network))
    assert [c.component for c in found.components] == [c for c, is_in in zip(every, chosen, strict=True) if is_in]
    assert all(c.rows == c.of and c.change > 0 for c in found.components)
    assert found.rows == delta.row_count and found.others == {} and found.size == len(every)
    same = difference(first, first)
    assert not same.components and not same.others


def test_the_change_of_a_component_is_a_share_of_its_rows(tmp_path):
    first, second = (open_checkpoint(str(model_folder(tmp_path / n))) for n in "ab")
    second.network.get_parameter("model.layers.1.mlp.up_proj.weight").data[3] *= 1.25
    second.network.get_parameter("model.layers.1.self_attn.q_proj.weight").data[9] *= 0.5
    second.network.get_parameter("model.layers.2.mlp.down_proj.weight").data[:, 1] += 1
    second.network.get_parameter("model.norm.weight").data[4] += 1
    neuron, head = sorted(difference(first, second).components, key=lambda c: c.component.kind)
    assert (neuron.component, neuron.rows, neuron.of) == ((1, "neuron", 3), 1, 1)
    assert neuron.change == pytest.approx(0.25)
    assert (head.component, head.rows, head.of) == ((1, "query", 1), 1, 8)
    rows = first.network.get_parameter("model.layers.1.self_attn.q_proj.weight")[9:10]
    assert head.change == pytest.approx(0.5) and rows.shape == (1, 32)
    others = difference(first, second).others
    assert {n: (c.rows, c.of) for n, c in others.items()} == {
        "model.layers.2.mlp.down_proj.weight": (32, 32),
        "model.norm.weight": (1, 32),
    }


def test_models_of_two_types_are_compared_as_the_second_is(tmp_path):
    base = model_folder(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "rounded")
    found = difference(open_checkpoint(str(base)), open_checkpoint(str(tmp_path / "rounded")))
    assert not found.components and not found.others and found.compared_as == "bfloat16"
    back = difference(open_checkpoint(str(tmp_path / "rounded")), open_checkpoint(str(base)))
    assert back.components and back.compared_as == "float32"


def test_the_command_names_components_and_what_else_differs(mended, tmp_path, capsys):
    assert cli.main(["merge", str(mended), str(tmp_path / "m")]) == 0
    assert cli.main(["diff", "bundled", str(tmp_path / "m")]) == 0
    circuit, said = cca.Run.load(mended).summary.circuit, " ".join(capsys.readouterr().out.split())
    assert f"{circuit.selected} of 3,260 components" in said and "Nothing else differs." in said
    assert cli.main(["diff", "bundled", str(tmp_path / "m"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["components"]) == circuit.selected and record["others"] == {}
    assert cli.main(["diff", "bundled", "bundled"]) == 0
    assert "hold the same weights" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "said"), [("gpt2", "two architectures"), ("narrow", "two sizes")])
def test_models_that_have_no_rows_in_common_are_refused(other, said, tmp_path, capsys):
    base = model_folder(tmp_path / "base")
    network = family_model("llama", intermediate_size=16) if other == "narrow" else family_model(other)
    network.save_pretrained(tmp_path / "other")
    assert cli.main(["diff", str(base), str(tmp_path / "other")]) == 2
    assert said in capsys.readouterr().err
