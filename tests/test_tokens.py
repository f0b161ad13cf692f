"""Text as token ids and back with real tokenizers: worked solutions, what is read, and where an answer ends."""

import json
from typing import Any

import pytest
from families import family_config, family_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers_made import KINDS, SPECIAL, made
from transformers import PreTrainedTokenizerFast

from cca import open_model
from cca.errors import InputError
from cca.model.checks import end_tokens, load_tokenizer
from cca.model.open import open_prompter
from cca.model.options import ModelOptions
from cca.problems.prompts import Example, Prompter, PromptOptions
from cca.records import Problem

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SOLUTIONS = ("17", "She has 12 + 5 = 17 plums.\n#### 17", "\n17", "a  b", "日本 é: 17", "#### 17", "")
IDS = {text: made("byte-level").convert_tokens_to_ids(text) for text in SPECIAL}


def problem(question: str) -> Problem:
    return Problem("p", "0", 0, "train", question, "17", "")


def prompter(tokenizer, **changes) -> Prompter:
    style = changes.get("style", "plain")
    template = "{question}" if style == "chat" else "Q: {question}\nA:"
    return Prompter(tokenizer, **{"template": template, "end_tokens": frozenset({IDS["</s>"]}), **changes})


def read(tokenizer, ids) -> str:
    """Ids as text, without the BOS and the space that some kinds put before a text."""
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text.removeprefix("<s>").removeprefix(" ")


# ---- what a worked solution is ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "template", ["Q: {question}\nA:", "{question}", "Q: {question}\nA: ", "{question}\n### Answer:\n"]
)
def test_a_worked_solution_has_the_tokens_that_it_has_after_the_prompt(kind, template):
    asked = prompter(made(kind, bos=True), template=template)
    prompt = asked.prompt(problem("How many plums has Ana?"))
    text = template.replace("{question}", "How many plums has Ana?")
    for solution in SOLUTIONS:
        if kind == "unigram" and "日" in solution:
            continue  # unknown to it
        ids = asked.reference(solution)
        assert ids[-1] == IDS["</s>"]
        gap = "" if template[-1].isspace() else " "
        assert read(asked.tokenizer, (*prompt, *ids[:-1])) == f"{text}{gap}{solution}", solution
        together = asked.tokenizer.encode(f"{text}{gap}{solution}")
        if tuple(together[: len(prompt)]) == prompt:
            assert tuple(together[len(prompt) :]) == ids[:-1], solution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [TURNS, LLAMA2])
def test_a_worked_solution_of_a_chat_is_what_the_template_writes_up_to_the_end_of_its_turn(kind, chat):
    asked = prompter(made(kind, chat=chat), style="chat", end_tokens=frozenset({IDS["</s>"], IDS["<|im_end|>"]}))
    end = IDS["<|im_end|>" if chat == TURNS else "</s>"]
    prompt = asked.prompt(problem("How many?"))
    for solution in SOLUTIONS[:3]:
        ids = asked.reference(solution)
        assert ids[-1] == end
        gap = " " if chat == LLAMA2 else ""
        before, whole = read(asked.tokenizer, prompt), read(asked.tokenizer, (*prompt, *ids[:-1]))
        # some kinds put a space after each special token that has text behind it, together as well
        assert whole.removeprefix(before) in (f"{gap}{solution}{gap}", f" {gap}{solution}{gap}"), solution


@pytest.mark.parametrize("end", ["\\n", "", "###", " \\nUser:"])
def test_a_worked_solution_of_a_chat_without_an_end_of_turn_ends_with_the_tokenizers_own(end):
    for chat in (TURNS.replace("<|im_end|>\n", end), TURNS.replace("m.content", "m.content.split('17')[-1]")):
        asked = prompter(made("byte-level", chat=chat), style="chat")
        assert read(asked.tokenizer, asked.reference("It is 17")) == "It is 17</s>"


def test_a_worked_solution_is_whole_where_ordinary_text_can_end_a_text():
    tokenizer = made("byte-level", chat=TURNS)
    (line,) = tokenizer.encode("\n", add_special_tokens=False)
    for ends, last in (({IDS["</s>"], line}, "</s>"), ({line}, "\n")):
        asked = prompter(tokenizer, end_tokens=frozenset(ends))
        assert read(tokenizer, asked.reference("5\n17")) == f"5\n17{last}"
    asked = prompter(tokenizer, style="chat", end_tokens=frozenset({line, IDS["<|im_end|>"]}))
    assert read(tokenizer, asked.reference("5\n17")) == "5\n17<|im_end|>"


def test_what_a_tokenizer_puts_after_a_text_does_not_end_the_prompt():
    plain = prompter(made("byte-level", bos=True, eos=True)).prompt(problem("How many?"))
    assert plain == prompter(made("byte-level", bos=True)).prompt(problem("How many?"))
    assert plain[0] == IDS["<s>"]


@pytest.mark.parametrize("lost", ["digits", "everything", "the end"])
def test_a_tokenizer_that_loses_numbers_is_refused_when_it_is_opened(lost):
    tokenizer = made("byte-level")
    core: Any = tokenizer._tokenizer
    gone = {"digits": Regex("[0-9]"), "everything": Regex("."), "the end": Regex("(?<=.{20}).*")}[lost]
    core.normalizer = normalizers.Replace(gone, "")
    with pytest.raises(InputError, match="tokenizer loses numbers of the question 'Ana has 12 plums"):
        open_model((family_model("llama", vocab_size=600), tokenizer))


def test_a_tokenizer_may_make_letters_small_and_forget_accents_and_white_space():
    tokenizer = made("byte-level")
    core: Any = tokenizer._tokenizer
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    asked = Prompter.of(tokenizer, PromptOptions(), (), end_tokens=frozenset({IDS["</s>"]}))
    assert asked.prompt(problem("Ánà has １２?")) == asked.prompt(problem("ana\nhas  12?"))


def test_two_questions_that_make_one_prompt_are_refused():
    core: Any = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "12": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    asked = prompter(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>"))
    assert asked.prompt(problem("Ana has 12 plums")) == asked.prompt(problem("Ana has 12 plums"))
    with pytest.raises(InputError, match="one prompt of two questions, 'Ana has 12 plums' and 'Tom has 12 pears'"):
        asked.prompt(problem("Tom has 12 pears"))


# ---- what ends a text ----


def ends(tokenizer, generation=None, **config):
    shape: Any = {"vocab_size": 600} | config
    return end_tokens("m", generation, family_config("llama", **shape), tokenizer)


class Generation:
    def __init__(self, eos_token_id):
        self.eos_token_id = eos_token_id


def test_all_that_name_an_end_token_are_united():
    tokenizer = made("byte-level", chat=TURNS)
    ordinary = tokenizer.encode("Ana")[0]
    found = ends(tokenizer, Generation([IDS["<|turn|>"]]), eos_token_id=IDS["<pad>"])
    assert found.all == {IDS[t] for t in ("<|turn|>", "<pad>", "</s>", "<|im_end|>")}
    assert found.own == IDS["</s>"]
    assert ends(tokenizer, Generation(IDS["<|turn|>"]), eos_token_id=ordinary).all == {
        IDS[t] for t in ("<|turn|>", "</s>", "<|im_end|>")
    }, "a default of the configuration's class that is ordinary text here"
    assert ends(tokenizer, Generation(None), eos_token_id=IDS["<pad>"]).all >= {IDS["<pad>"]}
    assert ends(tokenizer, Generation([600, -1, IDS["<pad>"]]), eos_token_id=None).all == {
        IDS[t] for t in ("<pad>", "</s>", "<|im_end|>")
    }


def test_a_turn_that_ends_in_ordinary_text_or_not_at_all_adds_no_end_token():
    for end in ("\\n", "", "###", "\\nUser:"):
        chat = TURNS.replace("<|im_end|>\n", end).replace("'<|im_start|>' + ", "")
        assert ends(made("byte-level", chat=chat), eos_token_id=None).all == {IDS["</s>"]}


@pytest.mark.parametrize("eos", ["2", "</s>", [[2]], 2.0, True, {"a": 1}, [1, "2"]])
def test_an_end_token_that_is_no_id_is_refused_by_its_name(eos):
    with pytest.raises(InputError, match=r"m: eos_token_id in generation_config\.json is .*make it a token id"):
        ends(made("byte-level"), Generation(eos))


def saved(folder, generation: str | None):
    model = family_model("llama", vocab_size=600, max_position_embeddings=512, eos_token_id=IDS["<pad>"])
    model.generation_config.eos_token_id = [IDS["<|turn|>"], IDS["<pad>"]]
    model.save_pretrained(folder)
    made("byte-level", chat=TURNS).save_pretrained(folder)
    path = folder / "generation_config.json"
    if generation is None:
        path.unlink()
    elif generation:
        path.write_text(generation)
    return folder


@pytest.mark.parametrize("generation", ["", None])
def test_a_model_in_memory_and_its_folder_have_the_same_end_tokens(tmp_path, generation):
    from transformers import AutoModelForCausalLM

    folder = saved(tmp_path / "m", generation)
    network = AutoModelForCausalLM.from_pretrained(folder)
    there = open_model(folder, device="cpu").prompter
    here = open_model((network, load_tokenizer(str(folder)))).prompter
    assert here.end_tokens == there.end_tokens
    assert here.end_token == there.end_token == IDS["</s>"]
    assert there.end_tokens >= {IDS["</s>"], IDS["<pad>"], IDS["<|im_end|>"]}


@pytest.mark.parametrize("generation", ["{", "[]", "version https://git-lfs.github.com/spec/v1"])
def test_generation_settings_that_cannot_be_read_are_named(tmp_path, generation):
    folder = saved(tmp_path / "m", generation)
    with pytest.raises(InputError, match=r"generation_config\.json .*(mend it|Git LFS pointer)"):
        open_prompter(ModelOptions(path=str(folder)), PromptOptions())


@pytest.mark.parametrize("text", ["", "{", "{}", "version https://git-lfs.github.com/spec/v1", '{"model": 3}'])
def test_a_broken_tokenizer_is_named(tmp_path, text):
    made("byte-level").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(family_config("llama").to_dict()))
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"no usable tokenizer|tokenizer\.json is (empty|a Git LFS pointer)"):
        load_tokenizer(str(tmp_path))


# ---- what is read ----


def test_special_tokens_are_not_read_and_keep_apart_what_they_stand_between():
    tokenizer = made("byte-level")
    asked = prompter(tokenizer)
    ids = tokenizer.encode("7<|im_start|>8<pad>", add_special_tokens=False)
    assert asked.text(ids) == "7 8"
    assert asked.text([*ids, IDS["</s>"], 10**6]) == "7 8"


def test_special_tokens_that_are_text_are_read():
    tokenizer = made("byte-level", special=("####", "17", "<answer>", "</answer>", "<sep>", "[EXTRA_12]"))

    def text(written: str, **changes) -> str:
        return prompter(tokenizer, **changes).text(tokenizer.encode(written, add_special_tokens=False))

    assert text("x #### 17") == "x #### 17"
    assert text("<answer>17</answer>") == "<answer>17</answer>"
    assert text("17<sep>[EXTRA_12]") == "17"
    assert text("a<sep>b", examples=(Example("q", "1<sep>2"),)) == "a<sep>b"
    assert text("a<sep>b", stop=("<sep>",)) == "a"


PIECES = ("17", " ", "\n", "Q:", "\nQ:", "日本", "é", "plums", "#### ", "👍🏽", "<pad>", ".")


@pytest.mark.parametrize("kind", ["byte-level", "metaspace first", "llama legacy"])
@settings(max_examples=60)
@given(data=st.data())
def test_an_answer_stops_with_the_first_token_at_which_its_text_has_a_stop_string(kind, data):
    tokenizer = made(kind)
    stops = data.draw(
        st.lists(st.sampled_from(["\nQ:", "日本", "👍🏽", "é", "\n\n", "plums.", "17 17", "7\nQ:\nQ:日本日本👍🏽"]))
    )
    written = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=12)))
    ids = tokenizer.encode(written, add_special_tokens=False)
    if data.draw(st.booleans()):
        ids += data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=12))
    asked = prompter(tokenizer, stop=tuple(stops))
    stopped = [asked.stopped(ids[:n]) for n in range(1, len(ids) + 1)]
    has = [any(s in asked.decode(ids[:n]) for s in stops) for n in range(1, len(ids) + 1)]
    assert stopped == has or stopped.index(True) == has.index(True)
    assert not any(s in asked.text(ids) for s in stops)
