"""The front door: the names that a researcher uses, on her own model, her own pivots, her own questions."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from conftest import tiny_qwen2

import cca
from cca.method.traces import Traces
from cca.model.checks import load_tokenizer
from cca.records import Pivot, TracePair
from cca.run.run import Run

ROOT = Path(__file__).parent.parent


def test_the_front_door_has_its_names_and_loads_them_on_first_use():
    code = "import sys, cca; assert not {'torch', 'pydantic'} & sys.modules.keys(); "
    code += "print([getattr(cca, name) for name in cca.__all__] and dir(cca) == cca.__all__)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"
    with pytest.raises(AttributeError, match=r"no attribute 'learn'; it has .*learn_circuit"):
        cca.learn  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_public_name_says_what_it_takes_and_returns():
    for name in cca.__all__:
        thing = getattr(cca, name)
        if name.startswith("__"):
            continue
        assert thing.__doc__, name
        if not isinstance(thing, type):
            assert "Args:" in thing.__doc__ and "Raises:" in thing.__doc__, name


@pytest.fixture(scope="module")
def script() -> str:
    (found,) = re.findall(r"```python\n(import cca\n.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    return found


def test_the_script_of_the_readme_has_ten_lines_and_runs_on_the_bundled_model(script, tmp_path, monkeypatch, capsys):
    assert len([line for line in script.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    few = script.replace("templates=[12, 57, 58, 62]", "templates=[57, 62], n=12")
    assert "n=12" in few
    exec(few, {})
    shown = capsys.readouterr().out
    assert re.search(r"Circuit\(\d+ of 3,260 components, .*Delta\(.*Evaluation\(target: ", shown, flags=re.S)
    assert (tmp_path / "delta.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "many", "few"),
    [("own_pivots", "n=60", "n=20"), ("own_grader", "n=20", "n=10"), ("stage_by_stage", "n=30", "n=8")],
)
def test_the_examples_run_with_fewer_problems(name, many, few, capsys):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert source.count(many) == 1
    exec(compile(source.replace(many, few), name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


# ---- what is passed in stays as it is ----


def tiny(**changes):
    """A model of one's own in memory, in training mode and with gradients, as a notebook may have it."""
    network = tiny_qwen2(**changes).train().requires_grad_()
    network.get_submodule("model.layers.0.mlp").eval()
    network.get_parameter("model.norm.weight").requires_grad_(False)
    return network, load_tokenizer("bundled")


def state(network) -> list:
    return [
        copy.deepcopy(network.config.to_dict()),
        network.config._attn_implementation,
        [
            (name, module.training, len(module._forward_hooks), sorted(vars(module)))
            for name, module in network.named_modules()
        ],
        [(name, p.requires_grad, p.grad is None, p.detach().clone()) for name, p in network.named_parameters()],
    ]


def same(before: list, after: list) -> bool:
    weights = zip(before.pop(), after.pop(), strict=True)
    return before == after and all(a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in weights)


OWN = [cca.Pivot(tuple(range(5, 9 + i)), 20 + i, 40 + i) for i in range(6)]
SHORT = cca.CircuitOptions(epochs=2, learning_rate=0.05)


def test_a_model_in_memory_is_opened_used_and_left_as_it_was():
    network, tokenizer = tiny()
    before = state(network)
    model = cca.open_model((network, tokenizer))
    assert model.network is network
    circuit = cca.learn_circuit(model, OWN, penalty=0.01, epochs=2, learning_rate=0.3)
    delta = cca.update(model, circuit, OWN, steps=2, learning_rate=0.05)
    problems = cca.load_problems([{"question": f"{a} + 1?", "answer": str(a + 1)} for a in range(12)])
    with pytest.warns(UserWarning, match="were cut"):
        traces = cca.trace(model, problems, samples=1, max_new_tokens=4)
    cca.evaluate(model, problems, delta, max_new_tokens=4)
    with delta.active(model):
        assert not torch.equal(network.get_parameter(next(iter(delta.weights))), before[-1][0][3])
    assert len(traces) > 0
    assert same(before, state(network))


def test_what_is_only_for_models_that_cca_loads_is_refused_for_one_in_memory():
    with pytest.raises(cca.InputError, match=r"dtype.*in memory already"):
        cca.open_model(tiny(), dtype="bfloat16")


def test_a_delta_survives_saving_fits_its_model_alone_and_is_merged_for_good(tmp_path):
    model = cca.open_model(tiny())
    circuit = cca.learn_circuit(model, OWN, penalty=0.01, epochs=2, learning_rate=0.3)
    delta = cca.update(model, circuit, OWN, steps=2, learning_rate=0.05)
    delta.save(tmp_path / "delta")
    again = cca.Delta.load(tmp_path / "delta", model)
    ids = torch.tensor([[3, 4, 5]])
    with delta.active(model), torch.no_grad():
        updated = model.network(input_ids=ids).logits
    again.merge(model)
    with torch.no_grad():
        assert torch.equal(model.network(input_ids=ids).logits, updated)
    other = cca.open_model(tiny(hidden_size=32))
    with pytest.raises(cca.InputError, match=r"delta changes rows of .* do not fit"):
        cca.Delta.load(tmp_path / "delta", other)
    shallow = cca.open_model(tiny(num_hidden_layers=1))
    if any(".layers.2." in name for name in delta.weights):
        with pytest.raises(cca.InputError, match="this model has not"):
            cca.Delta.load(tmp_path / "delta", shallow)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(cca.InputError, match="cannot read a delta"):
        cca.Delta.load(tmp_path / "text", model)
    circuit.save(tmp_path / "circuit")
    with pytest.raises(cca.InputError, match="no row delta"):
        cca.Delta.load(tmp_path / "circuit", model)


# ---- bad pivots and options are named ----


@pytest.mark.parametrize(
    ("pivot", "message"),
    [
        (dict(prefix=(1, 2, 3), desired=7, undesired=7), r"after \[1, 2, 3\] has token 7 as desired and undesired"),
        (dict(prefix=(1, 2), desired=-1, undesired=7), "has token -1; token ids are 0 and more"),
        (dict(prefix=(1, -5), desired=1, undesired=7), "has token -5"),
        (dict(prefix=(1,), desired=1, undesired=7), "prefix of 1 tokens"),
        (dict(prefix=(), desired=1, undesired=7), "prefix of 0 tokens"),
        (dict(prefix=(1, 2), desired=7, undesired=7, problem="sum-3"), "the pivot of sum-3 has token 7"),
    ],
)
def test_a_bad_pivot_is_refused_where_it_is_made(pivot, message):
    with pytest.raises(cca.InputError, match=message):
        cca.Pivot(**pivot)


@pytest.fixture(scope="module")
def model():
    return cca.open_model(tiny())


@pytest.mark.parametrize("stage", ["learn_circuit", "update"])
@pytest.mark.parametrize(
    ("pivots", "message"),
    [
        ([], "no pivots to train on: 0 were given"),
        ([cca.Pivot((1, 2), 3, 99_999)], r"after \[1, 2\] has token 99999, but the model has only \d+"),
        ([cca.Pivot((1, 88_888), 3, 4)], "has token 88888"),
        ([cca.Pivot((1, 2), 3, 4, split="validation")], "1 were given, all of validation problems"),
        (
            [cca.Pivot((1, 2), 3, 4, "sum-9", split="test")],
            "pivot of sum-9 is of a test problem",
        ),
    ],
)
def test_pivots_that_cannot_be_trained_on_are_named(model, stage, pivots, message):
    circuit = cca.learn_circuit(model, OWN, SHORT, penalty=0.0)
    with pytest.raises(cca.InputError, match=message):
        cca.learn_circuit(model, pivots) if stage == "learn_circuit" else cca.update(model, circuit, pivots)


def test_an_empty_circuit_and_that_of_another_model_are_refused(model):
    circuit = cca.learn_circuit(model, OWN, SHORT, penalty=0.0)
    empty = cca.Circuit(circuit.gates * 0, circuit.history, circuit.losses, circuit.sizes, "")
    with pytest.raises(cca.InputError, match="the circuit is empty"):
        cca.update(model, empty, OWN)
    with pytest.raises(cca.InputError, match=r"leaves an empty circuit; lower it, for example penalty=50"):
        cca.learn_circuit(model, OWN, penalty=100.0, learning_rate=0.9, epochs=3)
    other = cca.open_model(tiny(num_hidden_layers=1))
    with pytest.raises(cca.InputError, match="learn it on this model"):
        cca.update(other, circuit, OWN)


@pytest.fixture
def unchecked():
    """Without the checks of types that tests add, as it is in use."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


door: Any = cca  # what a type checker would refuse at once


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: door.Pivot("Ann had 3", 1, 2), "encode text with model.tokenizer"),
        (lambda m: door.Pivot((1, 2), " -", " +"), "encode text with model.tokenizer"),
        (lambda m: door.Pivot((1, 2), 1.5, 2), "token ids"),
        (lambda m: door.Pivot(torch.tensor([[1, 2, 3]]), 1, 2), "of a batch take one row"),
        (lambda m: door.learn_circuit(m, [(1, 2, 3)]), r"\(1, 2, 3\) is no pivot"),
        (lambda m: door.learn_circuit(m.network, OWN), "a Qwen2ForCausalLM is not an opened model"),
        (lambda m: door.learn_circuit("bundled", OWN), "a str is not an opened model"),
        (lambda m: door.learn_circuit(m, OWN, door.UpdateOptions()), r"give CircuitOptions\(\.\.\.\)"),
        (lambda m: door.learn_circuit(m, OWN, {"epochs": 0}), "CircuitOptions: epochs"),
        (lambda m: door.CircuitOptions(penality=1), "unknown key penality; known there: penalty"),
        (lambda m: door.PromptOptions(style="chatty"), "PromptOptions: style"),
        (
            lambda m: door.trace(m, ["What is 1 + 1?"]),
            "is no list of problems; make one with cca.load",
        ),
        (lambda m: door.trace(m, "What is 1 + 1?"), "is no list of problems"),
        (lambda m: door.evaluate(m, [{"question": "1?"}], door.Delta({})), "is no list of problems"),
        (lambda m: door.evaluate(m, [], "delta.safetensors"), "load one with cca.Delta.load"),
        (lambda m: door.find_pivots(m, []), "a list is not what cca.trace returned"),
        (lambda m: door.update(m, OWN, OWN), "a list is no circuit"),
        (lambda m: door.load_problems("gsm-symbolic", templates="12"), r"templates='12' is no list"),
        (lambda m: door.load_problems("gsm-symbolic", n="x"), "n='x' asks for no problems"),
        (lambda m: door.open_model("bundled", device="gpu"), "'gpu' is no torch device"),
        (lambda m: door.open_model("bundled", prompt=door.PromptOptions(style="few-shot")), "with no examples"),
        (lambda m: door.open_model("bundled", prompt=door.PromptOptions(template="no")), "has no {question}"),
        (lambda m: door.open_model(m.network), "a Qwen2ForCausalLM is no model to open"),
        (lambda m: door.open_model((m.tokenizer, m.network)), "a model in memory is a pair"),
        (lambda m: door.open_model((m.network, m.tokenizer, 3)), "a model in memory is a pair"),
        (lambda m: door.Circuit.load(__file__), "cannot read a circuit"),
    ],
)
def test_what_a_newcomer_may_try_is_answered_by_what_to_do(model, make, message, unchecked):
    with pytest.raises(cca.InputError, match=message):
        make(model)


def test_token_ids_may_come_as_numpy_or_torch_numbers_and_the_style_of_a_prompt_as_a_word():
    pivot = door.Pivot(torch.tensor([1, 2, 3]), np.int64(4), torch.tensor(5))
    assert (pivot.prefix, pivot.desired, pivot.undesired) == ((1, 2, 3), 4, 5)
    assert type(pivot.prefix[0]) is type(pivot.desired) is int
    network, tokenizer = tiny()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert cca.open_model((network, tokenizer), prompt="chat").prompter.style == "chat"


def test_too_few_steps_for_any_gate_to_fall_are_said(model):
    with pytest.raises(cca.InputError, match=r"no gate could leave the circuit: .* in 2 epochs of 12 steps"):
        cca.learn_circuit(model, OWN, epochs=2)
    with pytest.warns(UserWarning, match="no lambda gave a density within a tenth of 99.00%"):
        cca.learn_circuit(model, OWN, SHORT, target_density=0.99, penalty=0.0)


def test_a_delta_for_another_model_is_refused_wherever_it_is_put_on(model):
    other = cca.open_model(tiny(num_hidden_layers=1))
    rows = model.components.rows(torch.ones(model.components.size, dtype=torch.bool))
    delta = cca.Delta.zeros(model, rows)
    problems = cca.load_problems([{"question": f"{a}?", "answer": "1"} for a in range(20)])
    for use in (lambda: delta.active(other), lambda: delta.merge(other), lambda: cca.evaluate(other, problems, delta)):
        with pytest.raises(cca.InputError, match="this model has not"):
            use()


def test_an_unknown_or_wrong_option_is_named_with_those_that_are_known(model):
    with pytest.raises(cca.InputError, match="CircuitOptions: unknown key penality; known there: penalty, target"):
        cca.learn_circuit(model, OWN, penality=0.1)
    with pytest.raises(cca.InputError, match=r"UpdateOptions: steps: .*greater than or equal to 1"):
        cca.update(model, cca.learn_circuit(model, OWN, SHORT, penalty=0.0), OWN, steps=0)
    with pytest.raises(cca.InputError, match="ModelOptions: dtype"):
        cca.open_model("bundled", dtype="int8")


@pytest.mark.parametrize("seed", ["x", 1.0, None, True, np.int64(1)])
def test_a_seed_that_is_no_int_is_refused_by_every_call_that_takes_one(model, seed, unchecked):
    """Also one of numpy, of which other random numbers would be drawn than of the same int."""
    problems = cca.load_problems([{"question": f"{a}?", "answer": "1"} for a in range(20)])
    traces = Traces((), {p.id: p for p in problems}, cca.TraceOptions())
    for call in (
        lambda: door.load_problems([{"question": "1?", "answer": "1"}], seed=seed),
        lambda: door.trace(model, problems, seed=seed),
        lambda: door.find_pivots(model, traces, seed=seed),
        lambda: door.learn_circuit(model, OWN, SHORT, seed=seed),
        lambda: door.evaluate(model, problems, cca.Delta({}), seed=seed),
    ):
        with pytest.raises(cca.InputError, match=r"seed=.* is of type .*; give an int"):
            call()


def test_training_problems_are_no_test_and_test_problems_are_not_traced(model):
    problems = cca.load_problems([{"question": f"{a}?", "answer": "1", "split": "train"} for a in range(6)])
    training = [p for p in problems if p.split == "train"]
    delta = cca.Delta({})
    with pytest.raises(cca.InputError, match=r"none of the .* problems tests the update"):
        cca.evaluate(model, training, delta)
    tested = cca.load_problems([{"question": f"{a}?", "answer": "1"} for a in range(20)])
    tested = [p for p in tested if p.split == "test"]
    with pytest.raises(cca.InputError, match="nothing is traced"):
        cca.trace(model, tested)
    with pytest.raises(cca.InputError, match="is for validation"):
        cca.update(model, cca.learn_circuit(model, OWN, SHORT, penalty=0.0), OWN, validate=tested)


# ---- the same numbers as the command ----


def test_the_stages_in_memory_give_what_a_run_gives_to_the_last_bit(mended):
    run = Run.load(mended)
    model = cca.open_model("bundled", device="cpu")
    traces = cca.trace(model, run.problems[::2], run.config.traces, seed=run.config.seed)
    written = {pair.problem: pair for pair in run.folder.read("traces.jsonl", TracePair)}
    assert len(traces) == len([p for p in run.problems[::2] if p.id in written])
    assert list(traces) == [written[pair.problem] for pair in traces]
    pivots = cca.find_pivots(model, traces)
    kept = {p.problem: p for p in run.folder.read("pivots.jsonl", Pivot) if p.method == "branching"}
    assert [(p.problem, p.prefix, p.desired, p.undesired) for p in pivots] == [
        (p.problem, p.prefix, p.desired, p.undesired) for p in (kept[p.problem] for p in pivots)
    ]
    circuit = cca.learn_circuit(model, run.pivots(), run.config.circuit, seed=run.config.seed)
    assert torch.equal(circuit.gates, cca.Circuit.load(mended / "circuit.safetensors").gates)
    members = run.frames.components.query("selected")
    assert [tuple(c) for c in circuit.components()] == [
        (row["layer"], row["kind"], row["number"]) for _, row in members.iterrows()
    ]
    delta = cca.update(model, circuit, run.pivots(), run.config.update, validate=run.problems)
    theirs = cca.Delta.load(mended / "delta.safetensors", model)
    assert delta.weights.keys() == theirs.weights.keys()
    for name, rows in delta.weights.items():
        assert torch.equal(rows.index, theirs.weights[name].index)
        assert torch.equal(rows.values, theirs.weights[name].values)
    target = cca.evaluate(model, run.problems, delta, seed=run.config.seed).target
    assert target is not None
    assert replace(target, drift=None) == replace(run.summary.target, drift=None)  # the run measured it on 3 problems
