"""Benchmarks that cannot run are refused by name, with what to do, before any slow work."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import tiny_qwen2
from harness_made import datasets, solved, write

from cca.errors import InputError
from cca.evaluation.harness.run import check_tasks, run_tasks

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed; pip install -e '.[eval]'"
)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return datasets(tmp_path_factory.mktemp("datasets"))


def test_without_local_files_an_unreachable_hub_is_refused_with_the_remedy(bundled):
    with pytest.raises(InputError, match=r"dataset of mmlu_\w+ .*Offline.*give local files.*hf download cais/mmlu"):
        check_tasks(["mmlu"])
    with pytest.raises(InputError, match=r"documents of triviaqa .*Offline.*hf download mandarjoshi/trivia_qa"):
        run_tasks(bundled.network, bundled.tokenizer, ["triviaqa"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mmlu_anatomi"], r"no task mmlu_anatomi; did you mean mmlu_anatomy"),
        (["truthfulqa_gen"], r"measured by bleu_acc"),
        (["truthfulqa"], r"truthfulqa_gen of truthfulqa is measured.*name truthfulqa_mc1, truthfulqa_mc2"),
        (["humaneval"], r"humaneval runs the code that the model writes"),
        (["wikitext"], r"measured by bits_per_byte"),
        (["squadv2"], r"program of its own"),
        (["mmlu", "mmlu_anatomy"], r"mmlu_anatomy is named twice, by mmlu and mmlu_anatomy"),
    ],
)
def test_a_task_that_would_not_run_is_refused_by_name(data, names, message):
    with pytest.raises(InputError, match=message):
        check_tasks(names, data)


def test_a_missing_harness_is_refused_with_how_to_install_it(bundled, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for ask in (lambda: check_tasks(["mmlu"]), lambda: run_tasks(bundled.network, bundled.tokenizer, ["mmlu"])):
        with pytest.raises(InputError, match=r"pip install 'lm-eval>="):
            ask()


def test_local_files_that_cannot_serve_are_refused_by_name(tmp_path):
    place = tmp_path / "gsm8k" / "main"

    def refused(message: str, **options):
        with pytest.raises(InputError, match=message):
            check_tasks(["gsm8k"], tmp_path, **options)

    with pytest.raises(InputError, match=r"no folder \S*nowhere of local files"):
        check_tasks(["gsm8k"], tmp_path / "nowhere")
    refused(r"no local files of gsm8k.*no folder .*gsm8k/main")
    write(place / "tests.jsonl", [solved(7)])
    refused(r"gsm8k/main has no test.parquet.*but tests.jsonl; name the file after the split", shots=0)
    write(place / "test-00001-of-00002.parquet", [solved(7)])
    refused(r"holds 1 of 2 files of the split test of gsm8k", shots=0)
    write(place / "test-00000-of-00002.parquet", [solved(8)])
    refused(
        r"no local files of the worked examples of gsm8k.*has no train.parquet"
    )  # the stock task shows five worked examples
    check_tasks(["gsm8k"], tmp_path, shots=0)
    write(place / "train.jsonl", [solved(7)] * 9)
    refused(r"as json, parquet; keep one format")
    write(place / "train.parquet", [solved(7)] * 9)
    check_tasks(["gsm8k"], tmp_path)
    (place / "test-00000-of-00002.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    refused(r"cannot read the documents of gsm8k \(.*\); look at its files")
    write(place / "test-00000-of-00002.parquet", [{"other": 1}])
    write(place / "test-00001-of-00002.parquet", [{"other": 1}])
    refused(r"cannot read the documents of gsm8k \(.*\); look at its files", shots=0)
    with pytest.raises(InputError, match="given for gsm9k"):
        check_tasks(["gsm8k"], {"gsm8k": tmp_path / "gsm8k", "gsm9k": tmp_path / "gsm8k"})


def test_a_model_that_gives_no_numbers_or_has_no_room_is_refused(bundled, data, tiny):
    with pytest.raises(InputError, match=r"gsm8k lets the model write 256 tokens.*\(200\)"):
        run_tasks(tiny_qwen2(max_position_embeddings=200), bundled.tokenizer, ["gsm8k"], data=data)
    tiny.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="mmlu_anatomy"):
        run_tasks(tiny, bundled.tokenizer, ["mmlu"], data=data)
