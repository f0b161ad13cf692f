"""Prompts as token ids: special tokens, chat templates, worked examples, stop strings and odd vocabularies."""

import json
import sys

import pytest
import reference
from conftest import few_shot, stand_in_harness
from families import family_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cca.errors import InputError
from cca.model.checks import check_prompts
from cca.model.generate import generate_greedy
from cca.problems.examples import load_examples
from cca.problems.prompts import TEMPLATES, Example, Prompter, PromptOptions, check_prompt
from cca.records import Problem

PROBLEM = Problem("p", "0", 0, "train", "How many?", "3", "1 + 2 = 3\n#### 3")
WORDS = [
    "<end>",
    "<bos>",
    "<turn>",
    *["Q", ":", "A", "How", "many", "?", "user", "model", "1", "2", "3", "+", "=", "#", "one", "two", "\n"],
]
CHAT = (
    "{{ '<bos>' }}{% for m in messages %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)


def tokenizer(bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token a character or word of `WORDS`, with or without a BOS of its own."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Punctuation()]
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="<bos> $A", special_tokens=[("<bos>", WORDS.index("<bos>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", bos_token="<bos>", additional_special_tokens=["<turn>"]
    )
    if chat:
        made.chat_template = CHAT
    return made


def prompter(**changes) -> Prompter:
    bos, chat = changes.pop("bos", False), changes.pop("chat", False)
    style = changes.get("style", "plain")
    return Prompter(tokenizer(bos, chat), **{"template": TEMPLATES[style], "end_tokens": frozenset({0}), **changes})


def words(ids) -> str:
    return " ".join(WORDS[i] for i in ids).replace("\n", "/")


def test_a_plain_prompt_is_the_question_with_the_tokenizers_own_special_tokens():
    assert words(prompter().prompt(PROBLEM)) == "Q : How many ? / A :"
    assert words(prompter(bos=True).prompt(PROBLEM)) == "<bos> Q : How many ? / A :"


def test_a_few_shot_prompt_shows_preamble_and_examples_first_and_one_bos():
    shown = prompter(bos=True, style="few-shot", preamble="one two", examples=(Example("1 + 1 ?", "2"),))
    assert words(shown.prompt(PROBLEM)) == "<bos> one two / / Q : 1 + 1 ? / A : 2 / / Q : How many ? / A :"


def test_a_separator_stands_between_preamble_examples_and_question():
    shown = prompter(style="few-shot", preamble="one", examples=(Example("1 ?", "2"),) * 2, separator="\n")
    assert words(shown.prompt(PROBLEM)) == "one / Q : 1 ? / A : 2 / Q : 1 ? / A : 2 / Q : How many ? / A :"
    assert words(prompter(preamble="one", separator="\n=").prompt(PROBLEM)) == "one / = Q : How many ? / A :"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"separator": ""}, "prompt.separator is empty"),
        ({"separator": "\\n"}, "a backslash and the letter n, and no line break"),
        ({"style": "chat", "separator": "\n"}, "prompt.separator stands between examples that are one text"),
        ({"replace": {"a": "b"}}, r"prompt.replace rewrites worked examples, and prompt.shots shows none"),
        ({"style": "few-shot", "shots": 1, "examples": "x", "replace": {"": "b"}}, "a text of no characters"),
        ({"prefill": "So"}, "prompt.style is plain; put it at the end of prompt.template"),
        ({"style": "few-shot", "shots": 1, "examples": "x", "prefill": "So"}, "put it at the end of prompt.template"),
    ],
)
def test_separator_replacements_and_prefill_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        check_prompt(PromptOptions(**options))


def test_a_chat_prompt_is_the_tokenizers_template_with_each_example_a_turn_and_one_bos():
    chat = prompter(bos=True, chat=True, style="chat", preamble="one", examples=(Example("1 ?", "2"),))
    assert words(chat.prompt(PROBLEM)) == (
        "<bos> <turn> user / one / / 1 ? <turn> model / 2 <turn> user / How many ? <turn> model /"
    )
    assert words(chat.reference("3")) == "3 <end>"


def test_chat_style_without_a_chat_template_is_refused():
    with pytest.raises(InputError, match="no chat template"):
        prompter(style="chat").prompt(PROBLEM)


def test_text_ends_before_the_first_stop_string_and_leaves_out_ids_beyond_the_vocabulary():
    cut = prompter(stop=("Q :", "\n"))
    ids = [WORDS.index(w) for w in ("1", "+", "2", "Q", ":", "3")]
    assert cut.text(ids).split() == ["1", "+", "2"]
    strict = prompter()
    decode = strict.tokenizer.decode
    strict.tokenizer.decode = lambda ids, **_: decode([range(len(WORDS))[i] for i in ids])  # as sentencepiece's do
    assert strict.text([*ids[:3], 999, 0]).split() == ["1", "+", "2"]


def test_an_answer_stops_with_the_token_that_completes_a_stop_string():
    cut = prompter(stop=("Q :",))
    ids = [WORDS.index(w) for w in ("1", "Q", ":")]
    assert [cut.stopped(ids[:n]) for n in (1, 2, 3)] == [False, False, True]
    rule = cut.stop_rule(ids[:2])
    assert rule is not None
    assert rule(ids[2:]), "the string may begin in the head"
    assert prompter().stop_rule() is None


def test_a_stop_string_ends_a_row_without_disturbing_the_others():
    model = family_model("llama")
    prompts = [[5, 9, 3], [7, 2], [4, 4, 4, 4, 9], [11]]
    free = generate_greedy(model, prompts, max_new_tokens=20, end_tokens=frozenset({0}))
    wanted = free[1][4]
    stopped = generate_greedy(
        model, prompts, max_new_tokens=20, end_tokens=frozenset({0}), stop=lambda tokens: tokens[-1] == wanted
    )
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == whole[: whole.index(wanted) + 1 if wanted in whole else None]
    assert free == [reference.greedy(model, p, 20, frozenset({0})) for p in prompts]


def test_a_model_without_a_pad_token_and_with_more_ids_than_the_tokenizer_is_decoded(bundled):
    """The bundled model has 3,072 ids, its tokenizer 2,368."""
    assert bundled.network.config.get_text_config().vocab_size > len(bundled.tokenizer)
    odd = Prompter(bundled.tokenizer, "Q: {question}\nA:", bundled.end_tokens)
    assert odd.text([*odd.reference("7")[:-1], 3071]).strip() == "7"


# ---- worked examples ----


def test_examples_come_from_a_json_lines_file(tmp_path):
    path = tmp_path / "shots.jsonl"
    lines = [json.dumps({"question": f"q{i}", "solution": f"s{i}", "more": 1}) for i in range(3)]
    path.write_text("\n".join(lines) + "\n\n")
    assert load_examples(few_shot(path, 2)) == (Example("q0", "s0"), Example("q1", "s1"))
    with pytest.raises(InputError, match=r"has 3 examples and prompt\.shots is 4"):
        load_examples(few_shot(path, 4))
    path.write_text(lines[0] + '\n{"question": "q"}\n')
    with pytest.raises(InputError, match="line 2"):
        load_examples(few_shot(path, 2))
    with pytest.raises(InputError, match="cannot read"):
        load_examples(few_shot(tmp_path / "none", 1))


def test_what_worked_solutions_say_is_replaced_all_at_once(tmp_path):
    path = tmp_path / "shots.jsonl"
    lines = [{"question": f"The answer is {i}?", "solution": f"So {i}. The answer is {i}."} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, lines)))
    others = {"The answer is": "So the answer is", "So": "Then", "The": "A"}
    for order in (others, dict(reversed(others.items()))):
        with pytest.raises(InputError, match=r"prompt\.replace has 'The', which is in none of the 2 worked"):
            load_examples(few_shot(path, 2, replace=order))
    del others["The"]
    assert load_examples(few_shot(path, 2, replace=others)) == (
        Example("The answer is 0?", "Then 0. So the answer is 0."),
        Example("The answer is 1?", "Then 1. So the answer is 1."),
    )
    with pytest.raises(InputError, match=r"has ' 1\.', which is in none of the 1 worked solutions"):
        load_examples(few_shot(path, 1, replace={" 1.": ""}))
    with pytest.raises(InputError, match="leaves nothing of worked solution 2"):
        load_examples(few_shot(path, 2, replace={"So 1. The answer is 1.": " "}))


TEXT = st.text(st.sampled_from("ab. \\\n$(*"), min_size=1, max_size=4)


@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, TEXT)
def test_any_text_is_replaced_as_it_stands_and_nothing_else_is_changed(tmp_path_factory, solutions, old, new):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    solutions = [f"1{solution}" for solution in solutions]
    path.write_text("\n".join(json.dumps({"question": f"1{old}", "solution": s}) for s in solutions))
    options = few_shot(path, len(solutions), replace={old: new})
    if any(old in solution for solution in solutions):
        assert [e.solution for e in load_examples(options)] == [s.replace(old, new) for s in solutions]
        assert {e.question for e in load_examples(options)} == {f"1{old}"}
    else:
        with pytest.raises(InputError, match="in none of the"):
            load_examples(options)


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """An installed package of the harness's format, with its own tags, that must not be run."""
    folder = stand_in_harness(
        tmp_path, "sums_cot", "process_docs: !function utils.process\n", "raise RuntimeError('imported')"
    )
    (folder / "plain.yaml").write_text("task: plain\nnum_fewshot: 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)  # the real one, where another test needed it
    return tmp_path


def test_examples_come_from_the_evaluation_library_without_running_it(harness):
    found = load_examples(few_shot("lm-eval:sums_cot", 8))
    assert len(found) == 8
    assert found[7] == Example("How many is 7?", "It is 7.")
    with pytest.raises(InputError, match="shows 0 examples"):
        load_examples(few_shot("lm-eval:plain", 1))
    with pytest.raises(InputError, match="no task nothing"):
        load_examples(few_shot("lm-eval:nothing", 1))


def test_a_missing_evaluation_library_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr("cca.problems.examples.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'lm-eval>="):
        load_examples(few_shot("lm-eval:gsm8k_cot", 8))


# ---- what the model can read ----


def test_a_context_shorter_than_the_prompt_or_its_answer_is_refused():
    config = family_model("gpt2").config
    check_prompts([(1,) * 100], 28, config, "m")
    with pytest.raises(InputError, match=r"longest prompt has 129 tokens and m a context of 128; lower prompt\.shots"):
        check_prompts([(1,), (1,) * 129], 10, config, "m")
    with pytest.raises(InputError, match=r"leaves 28 .*traces\.max_new_tokens is 29"):
        check_prompts([(1,) * 100], 29, config, "m")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(InputError, match="token 60, but the model has only 60"):
        check_prompts([(3, 60)], 1, family_model("llama").config, "m")
