"""A merged model is asked by anyone as the run asked it: tokenizer, prompt, end tokens and the code that says so."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import as_written
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cca import cli
from cca.model.bundled import BUNDLED
from cca.model.delta import Delta
from cca.model.generate import generate_greedy
from cca.model.open import open_model
from cca.problems.prompts import Example, Prompter, PromptOptions
from cca.records import Problem, Score, TracePair
from cca.run.run import Run
from cca.run.share.asked import asked
from cca.run.share.merge import merge


@pytest.fixture(scope="module")
def merged(mended, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merge") / "a folder" / "merged"
    assert cli.main(["merge", str(mended), str(folder)]) == 0
    return folder


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    return code


def run_code(code: str) -> tuple[str, dict]:
    found: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, found)
    return said.getvalue(), found


def the_code_of_its_readme_answers_as_the_run(folder: Path, mended: Path) -> None:
    said, names = run_code(code_of(folder))
    run = Run.load(mended)
    example = next(p for p in run.problems if p.split == "test")
    scores = {s.problem: s for s in run.folder.read("scores.jsonl", Score) if s.model == "updated"}
    assert names["ids"][0].tolist() == list(run.prompter.prompt(example))
    assert said.rstrip("\n") == scores[example.id].text.rstrip("\n")


@pytest.mark.parametrize("trust", [False, True])
def test_autotokenizer_reads_texts_as_the_run_did(mended, merged, trust):
    run, tokenizer = Run.load(mended), AutoTokenizer.from_pretrained(merged, trust_remote_code=trust)
    assert tokenizer.encode("Q: 25 + 17") == run.prompter.tokenizer.encode("Q: 25 + 17")
    for problem in run.problems:
        assert tuple(tokenizer.encode(f"Q: {problem.question}\nA:")) == run.prompter.prompt(problem)
    for pair in run.folder.read("traces.jsonl", TracePair):
        tokens = [t for t in pair.greedy.tokens if t not in run.prompter.end_tokens]
        assert tokenizer.encode(pair.greedy.text) == tokens


def test_the_code_of_the_readme_answers_as_the_updated_model_did_in_the_run(mended, merged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    the_code_of_its_readme_answers_as_the_run(merged, mended)


def test_the_readme_names_base_prompt_and_figures(mended, merged):
    text, run = (merged / "README.md").read_text(), Run.load(mended)
    delta = Delta.load(mended / "delta.safetensors")
    for part in (
        run.summary.model.revision,
        f"{delta.row_count:,} rows",
        "'Q: {question}\\nA:'",
        f"{run.summary.target.updated:.1%} after",
    ):
        assert part in text


def test_the_merged_folder_keeps_settings_and_is_a_model_like_any_other(mended, merged):
    run = Run.load(mended)
    ends = GenerationConfig.from_pretrained(merged).eos_token_id
    assert {ends} == set(run.prompter.end_tokens)
    again = open_model(merged, device="cpu")
    base = open_model("bundled", device="cpu")
    problem = next(p for p in run.problems if p.split == "test")
    assert again.prompter.prompt(problem) == run.prompter.prompt(problem)
    limits = {"max_new_tokens": 40, "end_tokens": base.end_tokens}
    with Delta.load(mended / "delta.safetensors", base).active(base):
        wanted = generate_greedy(base.network, [base.prompter.prompt(problem)], **limits)
    assert generate_greedy(again.network, [again.prompter.prompt(problem)], **limits) == wanted


def test_a_tokenizer_that_nobody_else_would_build_is_refused_and_nothing_stays(mended, tmp_path, monkeypatch, capsys):
    other = AutoTokenizer.from_pretrained(str(Run.load(mended).prompter.tokenizer.name_or_path))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: other)
    assert cli.main(["merge", str(mended), str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert "AutoTokenizer would read what is saved in another way than the run did (the prompt of" in said
    assert list(tmp_path.iterdir()) == []


def test_a_chat_template_and_all_end_tokens_are_kept(mended, tmp_path):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    run = Run.load(mended)
    run.prompter.tokenizer.chat_template = template
    examples = (Example("1 + 1?", "#### 2"),)
    chat = replace(
        run.prompter, style="chat", template="{question}", examples=examples, stop=("\n\n",),
        end_tokens=frozenset({0, 7}), prefill="12 + 5",
    )  # fmt: skip
    run.__dict__["prompter"] = chat
    merge(run, tmp_path / "m")
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == template
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [0, 7]
    _, names = run_code(code_of(tmp_path / "m"))
    example = next(p for p in run.problems if p.split == "test")
    assert names["ids"][0].tolist() == list(chat.prompt(example))
    assert "\n\n" not in names["answer"]
    assert "whose last words '12 + 5' begin the answer" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    "options",
    [
        PromptOptions(),
        PromptOptions(template="{question}", preamble="Answer 'briefly'."),
        PromptOptions(style="few-shot", shots=2, examples="two"),
    ],
)
def test_what_a_prompter_asks_is_found_whatever_its_style(options, bundled):
    examples = (Example("1 + 1?", "#### 2"), Example("1 + 2?", "#### 3"))[: options.shots]
    prompter = Prompter.of(bundled.tokenizer, options, examples, end_tokens=bundled.end_tokens)
    found = asked(prompter)
    assert found
    problem = Problem("a", "t", 0, "test", "How many are 3 {or} 4?", "7", "")
    text = found.given.replace("{question}", problem.question)
    assert tuple(bundled.tokenizer.encode(text, **found.options)) == prompter.prompt(problem)


def test_one_round_of_several_is_not_merged_without_those_before_it(mended, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(mended, run)
    shutil.copytree(mended, run / "round-2")
    assert cli.main(["merge", str(run / "round-2"), str(tmp_path / "m")]) == 2
    assert f"take all of them: cca merge {run}" in capsys.readouterr().err


def test_the_delta_of_another_base_is_not_merged(mended, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(mended, run)
    delta = Delta.load(run / "delta.safetensors")
    base = open_model("bundled", device="cpu")
    with torch.no_grad():
        base.network.get_parameter(next(iter(delta.weights))).mul_(1.01)
    other = Delta.zeros(base, {name: rows.index for name, rows in delta.weights.items()})
    other.save(run / "delta.safetensors")
    as_written(run)
    assert cli.main(["merge", str(run), str(tmp_path / "m")]) == 2
    assert "hold other numbers" in capsys.readouterr().err


def test_settings_that_transformers_loads_but_does_not_save_are_kept_and_do_not_change_the_answer(mended, tmp_path):
    run = Run.load(mended)
    base = tmp_path / "base"
    shutil.copytree(BUNDLED, base)
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.5, "repetition_penalty": 1.5}))
    run.config = run.config.model_copy(update={"model": run.config.model.changed({"path": str(base)})})
    merge(run, tmp_path / "m")
    kept = GenerationConfig.from_pretrained(tmp_path / "m")
    assert (kept.temperature, kept.repetition_penalty) == (0.5, 1.5)
    assert "repetition_penalty=1.0" in code_of(tmp_path / "m")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_is_merged_in_any_type(mended, tmp_path, dtype):
    assert cli.main(["merge", str(mended), str(tmp_path / "m"), "--dtype", dtype]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").dtype == getattr(torch, dtype)
    card = (tmp_path / "m" / "README.md").read_text()
    said = (
        r"measured in float32 and before the update was rounded, which changed it by \d+\.\d% of its size: this folder"
    )
    assert re.search(said, card)
    assert cli.main(["merge", str(mended), str(tmp_path / "same")]) == 0
    assert "may answer otherwise" not in (tmp_path / "same" / "README.md").read_text()
