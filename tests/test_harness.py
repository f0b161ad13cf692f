"""Benchmarks of lm-evaluation-harness against plain computations, on made-up rows in the hub datasets' own layout."""

import logging
import os
import random
import re
import socket
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
import yaml
from harness_made import SUBJECTS, TRUTHS, choice, datasets, trivia, write

from cca.errors import InputError
from cca.evaluation.harness.run import check_tasks, run_tasks
from cca.model.components import find_components
from cca.model.delta import Delta

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed; pip install -e '.[eval]'"
)
TASKS = ("mmlu", "triviaqa", "truthfulqa_mc2", "gsm8k", "hendrycks_math")
STRICT = "exact_match,strict-match"


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return datasets(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def updated(bundled):
    """A delta that changes answers of the bundled model."""
    parts = find_components(bundled.network)
    delta = Delta.zeros(bundled.network, parts.rows(torch.ones(parts.size, dtype=torch.bool)))
    for changed in delta.weights.values():
        changed.values.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return delta


def writes(model, tokenizer, text: str):
    """A stand-in for the model's `generate` that writes `text` after every prompt."""
    written = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    return lambda input_ids, **_: torch.cat([input_ids, written.expand(len(input_ids), -1)], dim=1)


def log_likelihood(loaded, prompt: str, continuation: str) -> float:
    ids = loaded.tokenizer.encode(prompt + continuation)
    start = len(loaded.tokenizer.encode(prompt))
    with torch.no_grad():
        logits = loaded.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))


def mmlu_prompt(row: dict) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


@pytest.mark.parametrize("shots", [None, 2])
def test_mmlu_outcomes_are_those_of_plain_forward_passes(bundled, data, shots):
    scores = run_tasks(bundled.network, bundled.tokenizer, ["mmlu"], data=data, shots=shots)
    found = {(s.subtask, s.document): s.value for s in scores}
    expected = {}
    for i, subject in enumerate(SUBJECTS):
        topic = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        for example in [choice(a, i + 3, subject) for a in range(shots or 0)]:
            head += f"{mmlu_prompt(example)} {'ABCD'[example['answer']]}\n\n"
        rows = [choice(a, i + b, subject) for b in (2, 5) for a in range(2)]
        for number, row in enumerate(rows):
            likely = [log_likelihood(bundled, head + mmlu_prompt(row), f" {letter}") for letter in "ABCD"]
            expected[f"mmlu_{subject}", number] = float(likely.index(max(likely)) == row["answer"])
    assert found == expected
    assert set(found.values()) == {0.0, 1.0}
    assert {(s.task, s.metric) for s in scores} == {("mmlu", "acc")}


def test_truthfulqa_gives_the_share_of_probability_on_true_answers(bundled, data):
    scores = run_tasks(bundled.network, bundled.tokenizer, ["truthfulqa_mc2"], data=data, shots=5)
    spec = find_spec("lm_eval")
    assert spec and spec.submodule_search_locations
    stock = Path(spec.submodule_search_locations[0]) / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    template = jinja2.Template(yaml.safe_load(stock.read_text())["doc_to_text"])
    shares = []
    for row in TRUTHS:
        prompt, labels = template.render(**row), np.array(row["mc2_targets"]["labels"])
        likely = np.exp([log_likelihood(bundled, prompt, f" {text}") for text in row["mc2_targets"]["choices"]])
        shares.append(float((likely * labels).sum() / likely.sum()))
    assert [s.value for s in scores] == pytest.approx(shares, rel=1e-4)
    assert [s.metric for s in scores] == ["acc", "acc"]


def written(loaded, number: int) -> str:
    """The model's plain greedy answer to a question of TriviaQA's form, up to the first stop."""
    ids = torch.tensor([loaded.tokenizer.encode(f"Question: Which number follows {number}?\nAnswer:")])
    out = loaded.network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=99, do_sample=False
    )
    answer = re.split(r"[\n.,]", loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))[0].strip()
    assert answer
    return answer


def test_generated_answers_are_scored_as_the_stock_tasks_score_them(bundled, data, tmp_path, monkeypatch):
    model, tokenizer = bundled.network, bundled.tokenizer
    rows = [trivia(f"Which number follows {n}", "unknown", "The " * (n % 2) + written(bundled, n)) for n in range(4)]
    rows.append(trivia("Which number follows 4", "unknown"))
    write(tmp_path / "triviaqa" / "rc.nocontext" / "validation.jsonl", rows)
    scores = run_tasks(model, tokenizer, ["triviaqa"], data=tmp_path)
    assert [s.value for s in scores] == [1, 0, 1, 0, 0]
    assert {s.metric for s in scores} == {"exact_match,remove_whitespace"}
    monkeypatch.setattr(model, "generate", writes(model, tokenizer, " It is $7$.\n#### 7"))
    scores = run_tasks(model, tokenizer, ["gsm8k", "hendrycks_math"], data=data, shots=1)
    assert [(s.subtask, s.document, s.metric, s.value) for s in scores] == [
        ("gsm8k", 0, STRICT, 1.0),
        ("gsm8k", 1, STRICT, 0.0),
        ("hendrycks_math_algebra", 0, "exact_match", 0.0),
        ("hendrycks_math_algebra", 1, "exact_match", 1.0),
    ]


def test_the_updated_model_is_scored_on_the_same_documents_and_the_base_is_the_same_before_and_after(
    bundled, data, updated
):
    def scores():
        return run_tasks(bundled.network, bundled.tokenizer, ["mmlu", "truthfulqa_mc2"], data=data)

    before = scores()
    with updated.active(bundled.network):
        between = scores()
    with updated.attached(bundled.network):
        hooked = scores()
    assert scores() == before
    values = [[s.value for s in scores] for scores in (before, between, hooked)]
    assert values[1] == pytest.approx(values[2], rel=1e-3)
    assert values[0] != values[1]
    assert [(s.subtask, s.document) for s in before] == [(s.subtask, s.document) for s in between]
    assert len(before) == 3 * 4 + 2


def test_a_limit_takes_the_first_documents_of_each_subtask(bundled, data):
    every = run_tasks(bundled.network, bundled.tokenizer, ["mmlu"], data=data)
    first = run_tasks(bundled.network, bundled.tokenizer, ["mmlu"], data=data, limit=3)
    assert first == [s for s in every if s.document < 3]


def test_every_pass_tells_its_tokens_and_the_requests_that_are_answered(bundled, data):
    told: list[tuple[int, int, int]] = []
    report = lambda *figures: told.append(figures)
    run_tasks(bundled.network, bundled.tokenizer, ["mmlu", "gsm8k"], data=data, limit=2, batch_size=4, progress=report)
    assert all(tokens > 0 for tokens, _, _ in told)
    by_kind = {of: [done for _, done, total in told if total == of] for _, _, of in told}
    assert set(by_kind) == {2 * len(SUBJECTS) * 4, 2}  # a request for each choice, and one for each answer to write
    for of, done in by_kind.items():
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] < of
    assert not bundled.network._forward_hooks


def test_a_tokenizer_without_padding_that_the_model_knows_works_and_batches_change_no_outcome(
    bundled, data, tiny, tmp_path
):
    bare = deepcopy(bundled.tokenizer)
    bare.pad_token = bare.eos_token = None
    rows = [trivia(f"Which number follows {n}", "unknown", written(bundled, n)) for n in (1, 22, 333)]
    write(tmp_path / "triviaqa" / "rc.nocontext" / "validation.jsonl", rows)
    scores = run_tasks(bundled.network, bare, ["triviaqa"], data=tmp_path, batch_size=3)
    assert [s.value for s in scores] == [1, 1, 1]
    tasks = ["mmlu", "truthfulqa_mc2"]
    alone = [s.value for s in run_tasks(bundled.network, bundled.tokenizer, tasks, data=data, batch_size=1)]
    assert [s.value for s in run_tasks(bundled.network, bare, tasks, data=data)] == pytest.approx(alone, rel=1e-4)
    assert bare.pad_token is None
    bare.add_special_tokens({"pad_token": "<added>"})
    assert bare.pad_token_id == tiny.config.vocab_size
    run_tasks(tiny, bare, ["triviaqa"], data=tmp_path, limit=2)


@pytest.fixture
def noisy_process(monkeypatch):
    """A process whose settings differ from what any library would choose."""
    monkeypatch.setenv("HF_HOME", "/somewhere")
    for name in ("HF_XET_HIGH_PERFORMANCE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.DEBUG)
    random.seed(11)
    np.random.seed(12)  # noqa: NPY002
    torch.manual_seed(13)


def _process() -> dict:
    import datasets.config
    import huggingface_hub.constants
    from tqdm import tqdm

    loggers = ("lm_eval", "datasets", "transformers", "huggingface_hub")
    return {
        "environment": dict(os.environ),
        "logging": [logging.getLogger(name).level for name in loggers] + [logging.root.handlers[:]],
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "hub": (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE),
        "bars": (tqdm.__init__, datasets.are_progress_bars_disabled()),
        "streams": (sys.stdout, sys.stderr),
        "folder": Path.cwd(),
    }


def _model(model, tokenizer) -> dict:
    return {
        "weights": {name: (id(p), p.clone(), p.requires_grad) for name, p in model.state_dict(keep_vars=True).items()},
        "config": (model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation),
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "tokenizer": (tokenizer.special_tokens_map, len(tokenizer), tokenizer.padding_side),
        "truncation": (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation),
    }


def _same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def test_model_tokenizer_and_process_are_afterwards_as_before(bundled, data, tiny, noisy_process, capfd, caplog):
    tiny.model.layers[1].train()
    tiny.generation_config.do_sample, tiny.generation_config.temperature = True, 0.7
    process, model = _process(), _model(tiny, bundled.tokenizer)
    check_tasks(TASKS, data)
    run_tasks(tiny, bundled.tokenizer, TASKS, data=data, limit=1, seed=3)
    with pytest.raises(InputError):
        run_tasks(tiny, bundled.tokenizer, ["no_such_task"], data=data)
    for before, after in ((process, _process()), (model, _model(tiny, bundled.tokenizer))):
        for key in before:
            assert _same(before[key], after[key]), key
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_an_output_embedding_that_its_checkpoint_keeps_apart_stays_apart(bundled, data, tiny):
    apart = torch.nn.Parameter(tiny.lm_head.weight.detach().clone().flip(0), requires_grad=False)
    tiny.lm_head.weight = apart
    run_tasks(tiny, bundled.tokenizer, ["truthfulqa_mc2"], data=data)
    assert tiny.lm_head.weight is apart


def test_no_network_is_tried_with_local_files(bundled, data, monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    tried = []

    def refused(*address, **_):
        tried.append(address)
        raise OSError("no network in this test")

    for module in (datasets.config, huggingface_hub.constants):  # as where the process is online
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    check_tasks(TASKS, data)
    run_tasks(bundled.network, bundled.tokenizer, TASKS, data=data, limit=1, shots=0)
    assert not tried
    assert not datasets.config.HF_HUB_OFFLINE


def test_subtasks_of_a_group_without_files_are_left_out_by_name(data, tmp_path):
    checked = check_tasks(["mmlu", "triviaqa"], data)
    assert [s.name for s in checked.subtasks] == [*(f"mmlu_{subject}" for subject in SUBJECTS), "triviaqa"]
    assert len(checked.left_out) == 57 - len(SUBJECTS)
    assert "mmlu_virology" in checked.left_out
    own = check_tasks(["mmlu", "triviaqa"], {"mmlu": data / "cais" / "mmlu", "trivia_qa": data / "trivia_qa"})
    assert [s.changes for s in own.subtasks] == [s.changes for s in checked.subtasks]
    with pytest.raises(InputError, match=r"mmlu_virology.*no folder .*mmlu/virology; .*hf download cais/mmlu"):
        check_tasks(["mmlu_virology"], data)
    (tmp_path / "mmlu").mkdir()
    with pytest.raises(InputError, match=r"no folder .*mmlu/"):
        check_tasks(["mmlu"], tmp_path)


def test_groups_stand_for_the_tasks_and_settings_that_the_harness_gives_them(data):
    from cca.evaluation.harness.tasks import leaves, manager, resolve

    assert len({s.name for s in resolve(["mmlu"], None, None).subtasks}) == 57
    assert [s.name for s in resolve(["ai2_arc"], None, None).subtasks] == ["arc_challenge", "arc_easy"]
    changed = dict(leaves(manager().task_index, "openllm", {}))  # a group of groups that changes its tasks
    assert changed["hellaswag"] == {"fewshot_split": "train", "num_fewshot": 10}
    assert changed["mmlu_anatomy"] == {"num_fewshot": 5}
    assert len(changed) == 1 + 1 + 3 + 57 + 1 + 1
    (several,) = resolve(["afrimmlu_direct_amh_prompt_1"], None, None).subtasks  # its f1 wants a download
    assert [m["metric"] for m in several.changes["metric_list"]] == ["acc"]
    shots = {s.name: s.changes["num_fewshot"] for s in resolve(["mmlu_anatomy", "truthfulqa_mc2"], None, 5).subtasks}
    assert shots == {"mmlu_anatomy": 5, "truthfulqa_mc2": 0}  # its own prompt shows six


def test_the_seed_chooses_the_worked_examples_and_nothing_else_does(bundled, data, monkeypatch):
    prompts = []

    def generate(input_ids, **_):
        prompts.append(input_ids.tolist())
        return input_ids

    monkeypatch.setattr(bundled.network, "generate", generate)
    for seed in (0, 0, 1):
        random.seed()
        run_tasks(bundled.network, bundled.tokenizer, ["gsm8k"], data=data, shots=3, seed=seed)
    assert prompts[0] == prompts[1]
    assert prompts[0] != prompts[2]


def test_no_aggregate_is_computed_that_could_fail_after_the_work_is_done(bundled, data, monkeypatch):
    import lm_eval.api.task

    def fails(_):
        raise AssertionError("an aggregate was computed")

    monkeypatch.setattr(lm_eval.api.task, "get_aggregation", lambda _: fails)
    assert run_tasks(bundled.network, bundled.tokenizer, ["truthfulqa_mc2"], data=data)
