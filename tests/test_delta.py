"""A delta is for one model: it knows which, and whatever else its file holds is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

import cca
from cca.io import header_of, save_tensors
from cca.model.base import TYPES, BaseRows
from cca.model.checks import load_tokenizer
from cca.model.components import find_components
from cca.model.delta import Delta, row_view
from cca.model.open import open_model
from cca.model.rows import Rows

IDS = torch.tensor([[3, 4, 5, 6]])
SHAPE: dict[str, Any] = {"vocab_size": 3072, "max_position_embeddings": 512}


def filled(delta: Delta, seed: int = 0, size: float = 0.1) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    for rows in delta.weights.values():
        rows.values.copy_(torch.randn(rows.values.shape, generator=generator) * size)
    return delta


def some_rows(network: Any, every: int = 7) -> dict[str, torch.Tensor]:
    parts = find_components(network)
    return parts.rows(torch.arange(parts.size) % every == 0)


def made(network: Any, **more: Any) -> Delta:
    return filled(Delta.zeros(network, some_rows(network, **more)))


@pytest.fixture
def file(tmp_path) -> Path:
    made(family_model("llama")).save(tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


# ---- one model ----


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_another_model_of_the_same_shapes_is_refused_and_both_are_named(family, tmp_path):
    delta, other = made(family_model(family)), family_model(family, seed=1)
    delta.save(tmp_path / "d")
    again = Delta.load(tmp_path / "d")
    assert again.base is not None and delta.base is not None
    assert (again.base.name, again.base.revision) == (delta.base.name, delta.base.revision)
    name = type(other).__name__
    for use in (again.active, again.merge, again.check_fits, delta.active, delta.merge):
        with pytest.raises(cca.InputError, match=rf"the delta is for {name}, and rows of .* other numbers in {name}"):
            use(other)
    with pytest.raises(cca.InputError, match="open the one that it is for, or learn a delta on this one"):
        Delta.load(tmp_path / "d", other)
    same = family_model(family)
    with Delta.load(tmp_path / "d", same).active(same), torch.no_grad():
        found = same(input_ids=IDS).logits
    delta.merge(same)
    with torch.no_grad():
        assert torch.equal(same(input_ids=IDS).logits, found)


def test_a_single_number_that_differs_in_a_row_is_another_model_and_one_elsewhere_is_not():
    network = family_model("llama")
    delta = made(network)
    name, rows = next(iter(delta.weights.items()))
    with torch.no_grad():
        other = family_model("llama")
        row_view(other, name)[int(rows.index[-1]), 5] += 1e-6
        with pytest.raises(cca.InputError, match="other numbers"):
            delta.active(other)
        untouched = family_model("llama")
        untouched.lm_head.weight[0] = 0
    with delta.active(untouched):
        pass


def test_a_delta_that_was_merged_is_not_put_on_again(file):
    network = family_model("llama")
    delta = Delta.load(file, network)
    kept = delta.copy()
    delta.merge(network)
    for again in (delta, kept, Delta.load(file)):
        with pytest.raises(cca.InputError, match="merged is in it already"):
            again.active(network)
        with pytest.raises(cca.InputError, match="merged is in it already"):
            again.merge(network)


def test_a_model_is_looked_at_once(file, monkeypatch):
    network = family_model("llama")
    delta = Delta.load(file, network)
    monkeypatch.setattr(BaseRows, "of", lambda *_: pytest.fail("rows were read again"))
    for again in (delta, delta.copy()):
        with again.active(network), again.active(network):
            pass


def test_the_front_door_refuses_it_too(tmp_path):
    tokenizer = load_tokenizer("bundled")
    model, other = (cca.open_model((family_model("llama", seed=seed, **SHAPE), tokenizer)) for seed in range(2))
    delta = made(model.network)
    problems = cca.load_problems([{"question": f"{a}?", "answer": "1"} for a in range(20)])
    with pytest.raises(cca.InputError, match="another model"):
        cca.evaluate(other, problems, delta, max_new_tokens=2, progress=lambda *_: pytest.fail("it was slow to say so"))


# ---- whatever type it is loaded in ----


@pytest.fixture(scope="module", params=TYPES, ids=str)
def folder(request, tmp_path_factory) -> Path:
    """A model folder whose weights are of each type."""
    path = tmp_path_factory.mktemp("model") / "m"
    network = family_model("llama", **SHAPE)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(torch.logspace(-6, 0, weight.shape[-1]))  # float16 has few of the smallest numbers
    network.to(request.param).save_pretrained(path)
    load_tokenizer("bundled").save_pretrained(path)
    return path


NAMES = ("float32", "bfloat16", "float16")


def test_a_delta_fits_its_model_in_every_type_and_no_other_model(folder, tmp_path):
    models = {name: open_model(folder, device="cpu", dtype=name) for name in NAMES}
    of_float32 = next(models["float32"].network.parameters()).dtype  # of the file, see the name of the fixture
    assert of_float32 == torch.float32
    stored = json.loads((folder / "config.json").read_text())["dtype"]
    for learned, model in models.items():
        Delta.zeros(model, some_rows(model.network)).save(tmp_path / learned)
        for used, now in models.items():
            Delta.load(tmp_path / learned, now)
            apart = stored == "float32" and {learned, used} == {"bfloat16", "float16"}
            if apart:
                with pytest.raises(cca.InputError, match=r"load it as torch\..*float16 or as float32"):
                    Delta.load(tmp_path / learned, now.network)
            else:
                Delta.load(tmp_path / learned, now.network)
            other = family_model("llama", seed=1, **SHAPE).to(now.network.dtype)
            with pytest.raises(cca.InputError, match="other numbers"):
                Delta.load(tmp_path / learned, other)


def test_layers_on_the_disk_have_the_checksums_of_those_in_memory(folder, tmp_path):
    places: dict[str, str | int] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    whole, spread = open_model(folder, device="cpu"), open_model(folder, device="cpu", device_map=places)
    ours, theirs = (Delta.zeros(m, some_rows(m.network)).base for m in (whole, spread))
    assert ours and theirs
    assert all(torch.equal(held.sums, theirs.rows[name].sums) for name, held in ours.rows.items())
    Delta.zeros(spread, some_rows(spread.network)).save(tmp_path / "d")
    Delta.load(tmp_path / "d", whole)


# ---- rounds ----

WEIGHTS = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
NETWORKS = {kind: family_model("llama").to(kind) for kind in (torch.float32, torch.bfloat16)}
CHOICES = st.dictionaries(st.sampled_from(WEIGHTS), st.lists(st.integers(0, 23), min_size=1, max_size=5, unique=True))


@settings(max_examples=40)
@given(first=CHOICES, second=CHOICES, kind=st.sampled_from([*NETWORKS]))
def test_the_sum_of_rounds_is_for_the_base_of_the_first(tmp_path_factory, first, second, kind):
    """The second delta is made on the model as the first left it, and knows that; their sum is for the base again."""
    network = NETWORKS[kind]
    one = filled(Delta.zeros(network, {n: torch.tensor(rows) for n, rows in first.items()}))
    with one.active(network):
        two = filled(Delta.zeros(network, {n: torch.tensor(rows) for n, rows in second.items()}), seed=1)
        with two.active(network), torch.no_grad():
            wanted = network(input_ids=IDS).logits
    file = tmp_path_factory.getbasetemp() / "total.safetensors"
    one.plus(two).save(file)
    total = Delta.load(file, network)
    assert {n: set(r.index.tolist()) for n, r in total.weights.items()} == {
        n: {*first.get(n, ()), *second.get(n, ())} for n in {*first, *second}
    }
    with total.active(network), torch.no_grad():
        close = 1e-5 if kind == torch.float32 else 0.1
        torch.testing.assert_close(network(input_ids=IDS).logits, wanted, atol=close, rtol=close)
    shared = any(set(first.get(name, ())) & set(rows) for name, rows in second.items())
    two.save(file)
    if shared and kind == torch.float32:
        with pytest.raises(cca.InputError, match="other numbers"):
            Delta.load(file, network)


# ---- files ----


def rewrite(change: Callable[[dict], dict], **header: str | None) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with safe_open(file, "pt") as opened:
            known = header_of(opened)
        save_tensors(file, change(load_file(file)), {k: v for k, v in (known | header).items() if v is not None})

    return damage


def each(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return rewrite(lambda found: {n: change(t) if n.endswith(ending) else t for n, t in found.items()})


def put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


def without(ending: str) -> Callable[[Path], None]:
    return rewrite(lambda found: {n: t for n, t in found.items() if not n.endswith(ending)})


SAME = lambda found: found
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nan": (each(".values", put(float("nan"))), "values that are not finite .* damaged"),
    "infinity": (each(".values", put(float("-inf"))), "values that are not finite"),
    "a row twice": (each(".rows", lambda t: t[:1].repeat(len(t))), "a row is named twice"),
    "a negative row": (each(".rows", put(-3)), "there is a row -3"),
    "rows beyond the weight": (each(".rows", put(10**6)), "do not fit its"),
    "narrow values": (each(".values", lambda t: t[:, :5].contiguous()), "do not fit its"),
    "few values": (each(".values", lambda t: t[:-1].contiguous()), r"the values are .* not float32"),
    "flat values": (each(".values", torch.flatten), "the values are"),
    "16-bit values": (each(".values", torch.Tensor.bfloat16), r"the values are torch\.bfloat16"),
    "float row numbers": (each(".rows", torch.Tensor.float), r"the row numbers are torch\.float32"),
    "32-bit row numbers": (each(".rows", torch.Tensor.int), r"the row numbers are torch\.int32"),
    "no values": (without(".values"), "holds no row delta"),
    "no rows": (without(".rows"), "holds no row delta"),
    "no checksums": (without(".base"), "does not say which model it is for"),
    "few checksums": (each(".base", lambda t: t[:-1].contiguous()), "does not say which model"),
    "no header": (rewrite(SAME, format=None, base=None, types=None, revision=None), "--redo"),
    "no base": (rewrite(SAME, base=None), "does not say which model"),
    "no types": (rewrite(SAME, types="{}"), "does not say which model"),
    "odd types": (rewrite(SAME, types='{"a":'), "does not say which model"),
    "a later format": (rewrite(SAME, format="2"), "format 2, this is 1"),
    "components that are none": (rewrite(SAME, components='[[0, "expert", 1]]'), "its header is damaged"),
    "a component before the first": (rewrite(SAME, components='[[0, "key", -1]]'), "its header is damaged"),
    "half of the components": (rewrite(SAME, components='[[0, "key"'), "its header is damaged"),
    "components of other rows": (rewrite(SAME, components='[[0, "key", 1]]'), "names other components than own"),
    "figures that are none": (rewrite(SAME, metrics="[1]"), "its header is damaged"),
    "another kind": (rewrite(SAME, kind="lora"), "holds no row delta"),
    "half a file": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "cannot read a delta"),
    "nothing": (lambda f: f.write_bytes(b""), "is empty"),
    "text": (lambda f: f.write_text("What?"), "cannot read a delta"),
    "a pointer": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "cannot read"),
    "no file": (Path.unlink, "cannot read a delta .*No such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_delta_of_this_model_is_named(file, case):
    damage, said = WRONG[case]
    damage(file)
    with pytest.raises(cca.InputError, match=said) as found:
        Delta.load(file, family_model("llama"))
    assert "delta.safetensors" in str(found.value)


def test_the_same_delta_is_the_same_file(file):
    written = file.read_bytes()
    for _ in range(5):
        Delta.load(file).save(file)
        assert file.read_bytes() == written


def test_a_delta_put_together_by_hand_is_used_but_not_saved(tmp_path):
    network = family_model("llama")
    by_hand = Delta({WEIGHTS[0]: Rows(torch.tensor([1]), torch.ones(1, 32))})
    with by_hand.active(network):
        pass
    for unknown in (by_hand, by_hand.plus(made(network)), made(network).plus(by_hand)):
        with pytest.raises(cca.InputError, match=r"begin with cca\.Delta\.zeros"):
            unknown.save(tmp_path / "d")
    assert not (tmp_path / "d").exists()
    for known in (Delta({}).plus(made(network)), made(network).plus(Delta({})), Delta({})):
        known.save(tmp_path / "d")
        Delta.load(tmp_path / "d", network)
