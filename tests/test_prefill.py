"""How each answer of a chat begins: the end of the prompt, and the beginning of the worked examples' turns."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from conftest import refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat import FIRST_LOST, ONLY_SYSTEM, PARTS, SHOWN, said, turns
from test_tokens import IDS, LLAMA2, SOLUTIONS, TURNS, problem, read
from test_tokens import prompter as bare
from tokenizers import normalizers
from tokenizers_made import KINDS, made

from cca import cli
from cca.errors import InputError
from cca.model.bundled import location
from cca.model.checks import load_tokenizer
from cca.problems.prompts import Prompter, PromptOptions

STEPS = "Let's think step by step."
OPENED = TURNS.replace("assistant\n'", "assistant\n<think>\n'").replace("m.content", "m.content.split('</think>')[-1]")
"""Its generation prompt begins a thought, which is dropped from the turns before."""


def asked(template: str = TURNS, kind: str = "byte-level", **changes) -> Prompter:
    ends = frozenset({IDS["</s>"], IDS["<|im_end|>"]})
    return bare(made(kind, chat=template), style="chat", **{"prefill": STEPS, "end_tokens": ends, **changes})


def opened(prefill: str, template: str = TURNS, examples=SHOWN, tokenizer=None, **changes) -> Prompter:
    """As a run opens it, with all its checks."""
    options = PromptOptions(style="chat", prefill=prefill, **changes)
    tokenizer = tokenizer or made("byte-level", chat=template)
    return Prompter.of(tokenizer, options, examples, end_tokens=frozenset({IDS["<|im_end|>"]}))


@pytest.mark.parametrize("template", [TURNS, PARTS, ONLY_SYSTEM])
def test_the_prompt_ends_with_the_prefill_and_the_examples_turns_begin_with_it(template):
    preamble = "Be brief."
    found = said(asked(template, preamble=preamble, examples=SHOWN), "How many?")
    shown = ("1 + 1?", f"{STEPS} It is 2.", "2 + 2?", f"{STEPS} It is 4.", "How many?")
    if template == ONLY_SYSTEM:
        expected = f"<|im_start|>system\n{preamble}<|im_end|>\n" + turns(*shown)
    else:
        expected = turns(f"{preamble}\n\n{shown[0]}", *shown[1:])
    assert found == f"{expected}<|im_start|>assistant\n{STEPS}"


@pytest.mark.parametrize("end", ["", ".", " ", "\n", "\n\n"])
def test_the_gap_after_a_prefill_is_a_space_or_the_users_own(end):
    prefill = f"So{end}"
    gap = "" if end.isspace() else " "
    found = asked(prefill=prefill, examples=SHOWN[:1])
    assert said(found, "How many?") == (
        turns("1 + 1?", f"{prefill}{gap}It is 2.", "How many?") + f"<|im_start|>assistant\n{prefill}"
    )
    assert found.tokenizer.decode(found.reference("17")) == f"{gap}17<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [TURNS, LLAMA2])
def test_prompt_and_reference_are_what_the_template_writes_for_a_conversation(kind, template):
    if (kind, template) == ("unigram", LLAMA2):
        return  # whose brackets are unknown to it
    found = asked(template, kind)
    prompt = found.prompt(problem("How many?"))
    messages = [{"role": "user", "content": "How many?"}]
    for solution in SOLUTIONS[:3]:
        content = f"{STEPS} {solution}"
        whole = found.tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": content}], tokenize=False
        )
        expected = whole[: whole.rfind(content) + len(content)]
        assert read(found.tokenizer, prompt).replace(" ", "") in expected.replace(" ", "")
        ids = (*prompt, *found.reference(solution)[:-1])
        assert read(found.tokenizer, ids).split() == read(found.tokenizer, found.tokenizer.encode(expected)).split()


def test_what_the_template_writes_before_an_answer_stands_before_a_prefill():
    assert said(asked(LLAMA2), "How many?") == f"<s>[INST] How many? [/INST] {STEPS}"
    assert said(asked(LLAMA2, prefill=""), "How many?") == "<s>[INST] How many? [/INST]"


def test_a_prefill_may_follow_an_opened_thought():
    found = opened("I", OPENED)
    assert said(found, "How many?").endswith("<|im_start|>assistant\n<think>\nI")
    assert found.tokenizer.decode(found.reference("17")) == " 17<|im_end|>"


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.sampled_from([TURNS, PARTS, LLAMA2]))
@settings(max_examples=60)
def test_any_prefill_is_the_end_of_the_prompt_and_no_part_of_a_trace(prefill, template):
    found = opened(prefill, template)
    assert said(found, "How many?").endswith(prefill)
    without = replace(found, prefill="")
    shared = found.tokenizer.decode(without.prompt(problem("How many?")))
    assert said(replace(found, examples=()), "How many?").startswith(said(replace(without, examples=()), "How many?"))
    assert shared.endswith("assistant\n" if template != LLAMA2 else "[/INST]")
    ids = found.reference("It is 17.")
    trace = found.trace(problem("How many?"), ids)
    assert trace.text.strip() == "It is 17." and trace.correct and not trace.cut


def test_stop_strings_are_looked_for_after_the_prefill():
    found = opened("So:\n\n", stop=["\n\n", "So:"])
    tokens = found.tokenizer.encode("17\n\n9", add_special_tokens=False)
    assert found.text(tokens) == "17"
    assert not found.stopped(tokens[:1])


REFUSED = {
    "by the chat template": ({"prefill": "<think></think>", "template": OPENED}, "is lost: what the assistant says"),
    "by its end token": ({"prefill": "So.<|im_end|>"}, "ends the answer that it begins"),
    "by a template that fails": ({"prefill": "So", "template": FIRST_LOST}, r"System message is required; use prompt"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_prefill_that_does_not_begin_the_answer_is_refused(how):
    options, message = REFUSED[how]
    with pytest.raises(InputError, match=message):
        opened(**options)


@pytest.mark.parametrize("prefill", ["So now", "\n", "  ", "ÄÖ"])
def test_a_prefill_that_the_tokenizer_loses_is_refused(prefill):
    tokenizer = made("byte-level", chat=TURNS)
    lost = [normalizers.Replace(text, "") for text in ("So now", "ÄÖ")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*lost, normalizers.Strip()])
    with pytest.raises(InputError, match=re.escape(f"prompt.prefill {prefill!r} is lost: the tokenizer reads")):
        opened(prefill, tokenizer=tokenizer)
    assert opened("So", tokenizer=tokenizer)


def test_a_prefill_reaches_the_dry_run_and_is_refused_there_too(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(location("bundled"), folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}")
    settings = ["--model", str(folder), "--set", "problems.templates=[16]", "--set", "prompt.style=chat"]

    def longest(*more: str) -> int:
        assert cli.main(["run", *settings, *more, "--dry-run", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["work"]["prompt_tokens"]["longest"]

    more = len(load_tokenizer("bundled").encode("10 + 2 = 12\n", add_special_tokens=False))
    assert longest("--set", "prompt.prefill=10 + 2 = 12\n") == longest() + more > longest()
    few = ["run", "--set", "prompt.prefill=So", "--out", str(tmp_path / "run")]
    refuse(few, capsys, "prompt.style is plain; put it at the end of prompt.template")
