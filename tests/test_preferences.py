"""Traces and pivots leave a run as data sets that datasets reads and trl's trainers learn from."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import as_written, tiny_qwen2
from datasets import load_dataset
from huggingface_hub import DatasetCard

from cca import cli
from cca.model.checks import load_tokenizer
from cca.records import TracePair
from cca.run.run import Run
from cca.run.share import datasets as share
from cca.run.share.datasets import TABLES, export_datasets

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def exported(mended, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    assert cli.main(["export", str(mended), str(folder), "--format", "dataset"]) == 0
    return folder


def table(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by split."""
    found: Any = load_dataset(str(folder), name, cache_dir=str(folder.parent / "cache"))
    return {split: list(rows) for split, rows in found.items()}


def test_every_trace_and_every_pivot_is_in_its_table_with_its_tokens(mended, exported):
    run = Run.load(mended)
    traces = table(exported, "traces")
    pairs = {p.problem: p for p in run.folder.read("traces.jsonl", TracePair)}
    rows = [(split, row) for split, of in traces.items() for row in of]
    assert len(rows) == sum(len(pair.by_kind()) for pair in pairs.values())
    for split, row in rows:
        trace = pairs[row["problem"]].by_kind()[row["kind"]]
        assert (row["tokens"], row["text"], row["correct"]) == (list(trace.tokens), trace.text, trace.correct)
        assert row["prompt"] == f"Q: {row['question']}\nA:" and split == pairs[row["problem"]].split
    found = {p.problem: p for p in run.found_pivots()}
    rows = [row for of in table(exported, "pivots").values() for row in of]
    assert {row["problem"] for row in rows} == found.keys() and all(row["counts"] for row in rows)
    for row in rows:
        pivot = found[row["problem"]]
        assert (tuple(row["prefix_tokens"]), row["desired_token"]) == (pivot.prefix, pivot.desired)
        assert row["prefix"].startswith(f"Q: {row['question']}\nA:")


def test_problems_that_test_the_update_are_in_no_table(mended, exported):
    tested = {p.id for p in Run.load(mended).problems if p.split not in ("train", "validation")}
    assert tested
    for name in TABLES:
        assert not tested & {row["problem"] for of in table(exported, name).values() for row in of}


def test_preferences_are_what_the_tokenizer_makes_into_the_tokens_of_the_pivots(mended, exported):
    run, tokenizer = Run.load(mended), load_tokenizer("bundled")
    pivots = {p.problem: p for p in run.pivots()}
    pairs = {p.problem: p for p in run.folder.read("traces.jsonl", TracePair)}
    for name in ("preferences_at_pivot", "preferences_whole"):
        rows = [row for of in table(exported, name).values() for row in of]
        assert len(rows) == len(pivots)
        for row in rows:
            pivot, pair = pivots[row["problem"]], pairs[row["problem"]]
            chosen, rejected = (tokenizer.encode(row["prompt"] + row[side]) for side in ("chosen", "rejected"))
            right, wrong = sorted(pair.by_kind().values(), key=lambda trace: not trace.correct)
            assert row["same_tokens"]
            if name == "preferences_whole":
                assert chosen == [*pair.prompt, *right.tokens] and rejected == [*pair.prompt, *wrong.tokens]
            else:
                assert chosen == [*pivot.prefix, *pivot.after_desired]
                assert rejected == [*pivot.prefix, *pivot.after_undesired]


@pytest.mark.parametrize("name", ["preferences_at_pivot", "preferences_whole"])
@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_trl_trains_on_the_very_tokens(kind, name, exported, tmp_path):
    import trl

    tokenizer = load_tokenizer("bundled")
    data = load_dataset(str(exported), name, split="train", cache_dir=str(tmp_path / "cache"))
    rows: list[Any] = list(data)
    settings = {
        "output_dir": str(tmp_path / "out"), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": [],
        "use_cpu": True, "max_length": 512, "save_strategy": "no", "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    learning = trainer(
        model=tiny_qwen2().requires_grad_(True).train(),
        ref_model=tiny_qwen2(),
        args=config(**settings),
        processing_class=tokenizer,
        train_dataset=data,
    )
    first = learning.train_dataset[0]
    row = rows[0]
    wanted = tokenizer.encode(row["prompt"] + row["chosen"])
    side = "chosen_ids" if kind == "DPO" else "completion_ids"
    assert [*first["prompt_ids"], *first[side]] == wanted
    assert first["prompt_ids"] == tokenizer.encode(row["prompt"])
    learning.train()
    losses = [entry["train_loss"] for entry in learning.state.log_history if "train_loss" in entry]
    assert losses and all(0 < loss < 10 for loss in losses)


def test_what_a_limit_cut_is_no_preference_and_counted(mended, tmp_path, capsys):
    run = tmp_path / "run"
    import shutil

    shutil.copytree(mended, run)
    lines = [json.loads(line) for line in (run / "pivots.jsonl").read_text().splitlines()]
    for line in lines[:2]:
        line["after_undesired"] = line["after_undesired"][:-1]
    (run / "pivots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    as_written(run)
    mine = [line for line in lines[:2] if line["method"] == "branching"]
    found = export_datasets(Run.load(run), tmp_path / "set")
    assert found.cut == len(mine) > 0
    assert f"{found.cut} pairs are in no preferences" in (tmp_path / "set" / "README.md").read_text()
    assert found.rows["preferences_at_pivot"] == found.rows["preferences_whole"] - found.cut


def test_a_token_that_the_tokenizer_begins_each_text_with_is_not_said_twice():
    from dataclasses import replace

    tokenizer = load_tokenizer("bundled")

    class WithBos:
        bos = 7

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode(self, text: str, **options: Any) -> list[int]:
            return [self.bos, *tokenizer.encode(text, **options)]

    from cca.model.open import open_prompter
    from cca.model.options import ModelOptions
    from cca.problems.prompts import PromptOptions

    prompter = replace(open_prompter(ModelOptions(), PromptOptions()), tokenizer=WithBos())
    tokens = [7, *tokenizer.encode("Q: 2 + 3?\nA:")]
    assert share._spelled(prompter, tokens) == "Q: 2 + 3?\nA:"
    assert WithBos().encode(share._spelled(prompter, tokens)) == tokens


def test_the_card_lists_the_tables_where_the_hub_looks_for_them(mended, exported):
    card = DatasetCard.load(exported / "README.md")
    configs = {c["config_name"]: [f["path"] for f in c["data_files"]] for c in card.data.to_dict()["configs"]}
    assert configs.keys() == TABLES.keys()
    assert all((exported / path).is_file() for paths in configs.values() for path in paths)
    assert str(mended) not in card.content


def test_a_run_without_pivots_is_refused(mended, tmp_path, capsys):
    run = Run.load(mended)
    run.folder.forget(("pivots",))
    with pytest.raises(Exception, match="has no pivots yet; find them with: cca pivots"):
        export_datasets(run, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_command_that_installs_it_is_named(mended, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Exception, match=r"Parquet needs pyarrow; install it with: .*pip install 'pyarrow"):
        export_datasets(Run.load(mended), tmp_path / "set")
