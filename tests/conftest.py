"""Models and problems that many tests share. Everything is float32 on the CPU and offline."""

import ast
import json
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("CCA_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:  # processes with as many threads as cores block each other
    os.environ["OMP_NUM_THREADS"] = "1"

from cca.cli import ROUNDING, WAITING  # which loads nothing of what is hooked below

# before torch is loaded; without the first a test of two threads beside another process takes 40 times as long
os.environ |= WAITING | ROUNDING

import jaxtyping._import_hook
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# the same examples each time, however busy the machine is
settings.register_profile(
    "cca", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cca")

CPU = Path("/proc/cpuinfo")
KEEPS_THE_ORDER = not CPU.exists() or "GenuineIntel" in CPU.read_text()
"""MKL's promise of one order of adding is for Intel's CPUs. On one of AMD's it kept it from four rows on, and not in
float16."""


# under test, the shapes and types of all arguments and results are checked, but of functions within functions: their
# checks would be compiled again at each call of what is around them, half of the time of the whole suite
def _outer_alone(self: ast.NodeVisitor, node: ast.AST) -> None:
    if not isinstance(node, ast.FunctionDef):
        ast.NodeVisitor.generic_visit(self, node)


jaxtyping._import_hook.JaxtypingTransformer.generic_visit = _outer_alone
_OF_TENSORS = {
    "model": ("components", "delta", "gates", "generate", "read", "rows"),
    "method": ("objective", "prefixes", "circuit", "update"),
}
install_import_hook(
    [f"cca.{room}.{name}" for room, names in _OF_TENSORS.items() for name in names], "beartype.beartype"
)

from families import CASES, DEVICE, family_model

from cca.io import checksum
from cca.method.options import CircuitOptions, UpdateOptions
from cca.method.update import Validation, train
from cca.model.checks import load_tokenizer
from cca.model.components import Components, find_components
from cca.model.delta import Delta
from cca.model.open import Model, open_model
from cca.problems.prompts import Prompter, PromptOptions
from cca.problems.sources import open_source
from cca.problems.splits import ProblemOptions, build_problems
from cca.records import Pivot, Problem

TEMPLATES = (16, 43, 6, 72, 31, 58, 20, 48)
# with short solutions, since the plain methods are slow


def tiny_qwen2(seed: int = 0, **changes):
    """A random Qwen2 with the bundled tokenizer's vocabulary."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": len(load_tokenizer("bundled")),
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**(shape | changes))).eval()  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES], scope="module")
def case(request):
    """A family, and one of its kinds of attention; files with a `model` of their own are not of these."""
    return request.param


@pytest.fixture(scope="module")
def model(case):
    return family_model(*case).to(DEVICE)


@pytest.fixture(scope="module")
def parts(model) -> Components:
    return find_components(model)


@pytest.fixture
def tiny():
    return tiny_qwen2()


@pytest.fixture(scope="session")
def bundled() -> Model:
    return open_model("bundled", device="cpu")


@pytest.fixture(scope="session")
def prompter(bundled) -> Prompter:
    return Prompter(bundled.tokenizer, "Q: {question}\nA:", bundled.end_tokens)


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return build_problems(
        open_source("gsm-symbolic", TEMPLATES, 60),
        ProblemOptions(train=12, validation=1, test=1, held_out=0.0),
        transfer=("chain_sum",),
        per_skill=2,
        seed=7,
    )


CIRCUIT = CircuitOptions(penalty=0.02, learning_rate=0.05, batch=4, epochs=3, min_steps=0, patience=50.0, cache_gib=1.0)


SMALL_BUT_WHOLE = """
seed = 1
[problems]
templates = [12, 62, 0, 46, 58]
train = 5
validation = 3
test = 3
[traces]
skip_solved = 0
[circuit]
lambda = 0.1
target_density = 0.05
learning_rate = 0.1
epochs = 10
min_steps = 0
[update]
steps = 2
validate_every = 1
[evaluation]
transfer = ["chain_sum"]
retention = ["leg_counting"]
per_skill = 3
drift_problems = 3
"""


@pytest.fixture(scope="session")
def mended(tmp_path_factory) -> Path:
    """A finished run of the bundled model whose update keeps a step, and whose lambda was searched for."""
    from filelock import FileLock

    from cca import cli

    # processes of pytest-xdist share the parent of their folders: the first makes the run, the others find it finished
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = tmp_path_factory.mktemp("mended") if alone else tmp_path_factory.getbasetemp().parent
    with FileLock(folder / "mended.lock"):
        (folder / "mended.toml").write_text(SMALL_BUT_WHOLE)
        assert cli.main(["run", str(folder / "mended.toml"), "--out", str(folder / "mended-run"), "--quiet"]) == 0
    return folder / "mended-run"


def as_written(folder: Path) -> Path:
    """A finished run whose files a test changed, with a manifest by which that is how they were written."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest.pop("checksum", None)
    for files in manifest["stages"].values():
        files |= {name: checksum(folder / name) for name in files if (folder / name).is_file()}
    file.write_text(json.dumps(manifest))
    return folder


def last_delta(model, rows, pivots, recompute=(), **changes) -> Delta:
    """The delta of the last of a few training steps: every validation is better than the one before."""
    rising = iter(range(100))
    options = UpdateOptions(loss="linear", learning_rate=0.02, steps=3, validate_every=3, patience=9, batch=4)
    return train(
        model,
        Delta.zeros(model, rows),
        pivots,
        [],
        lambda _: Validation(next(rising) / 100, 1),
        options.changed(changes),
        recompute=recompute,
    ).intervention


def stand_in_harness(folder: Path, task: str, more: str = "", package: str = "") -> Path:
    """A package of lm-evaluation-harness's format with eight worked examples for `task`; returns its tasks' folder."""
    tasks = folder / "lm_eval" / "tasks" / "sums"
    tasks.mkdir(parents=True)
    (folder / "lm_eval" / "__init__.py").write_text(package)
    samples = "\n".join(f"  - question: How many is {i}?\n    target: It is {i}." for i in range(8))
    text = f"task: {task}\n{more}fewshot_config:\n  samples:\n{samples}\n"
    (tasks / f"{task.replace('_', '-')}.yaml").write_text(text)
    return tasks


def few_shot(examples: str | Path, shots: int, **more) -> PromptOptions:
    return PromptOptions(style="few-shot", shots=shots, examples=str(examples), **more)


def random_pivots(count: int, vocabulary: int, seed: int = 0, longest: int = 20) -> list[Pivot]:
    """Pivots with random token ids and prefixes of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    pivots = []
    for i in range(count):
        length = int(torch.randint(3, longest, (1,), generator=generator))
        prefix = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        desired, undesired = torch.randperm(vocabulary, generator=generator)[:2].tolist()
        pivots.append(Pivot(tuple(prefix), desired, undesired, f"p-{i}", method="branching"))
    return pivots


def refuse(arguments: list[str], capsys, *parts: str) -> None:
    """The command says in one line that holds `parts` what is wrong, soon, with exit code 2."""
    from cca import cli

    began = time.monotonic()
    capsys.readouterr()  # what the test's own preparations said
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cca: ")
    assert "\n" not in error
    for part in parts:
        assert part in error
    assert time.monotonic() - began < 20
