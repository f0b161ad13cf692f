"""Chat templates: what they are told, what must arrive in a prompt, and the date that they say."""

import json
import shutil
from datetime import datetime

import pytest
from conftest import refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokens import IDS, LLAMA2, TURNS, problem, prompter
from tokenizers_made import made

from cca.errors import InputError
from cca.model.bundled import location
from cca.problems.chat import PROBES, turn_end
from cca.problems.prompts import Example, Prompter
from cca.run.config import load_config
from cca.run.run import Run

PARTS = TURNS.replace("m.content", "''").replace(
    "+ '<|im_end|>", "}}{% for p in m.content %}{{ p.text }}{% endfor %}{{ '<|im_end|>"
)
EITHER = TURNS.replace("m.content", "(m.content if m.content is string else m.content[0].text)")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
ONLY_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('System message is required') }}{% endif %}" + TURNS
)
FIRST_LOST = ONLY_SYSTEM.replace("for m in messages", "for m in messages[1:]")
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y, 100%%') + '\n' }}" + TURNS
THINKING = TURNS.replace(
    "assistant\n'", "assistant\n' + ('' if enable_thinking | default(true) else '<think></think>')"
)
SHOWN = (Example("1 + 1?", "It is 2."), Example("2 + 2?", "It is 4."))


def chat(template: str, **changes) -> Prompter:
    return prompter(made("byte-level", chat=template), style="chat", **changes)


def said(asked: Prompter, question: str = PROBES[0]) -> str:
    return asked.tokenizer.decode(asked.prompt(problem(question)))


def turns(*contents: str) -> str:
    """What `TURNS` writes: user and assistant by turns."""
    roles = ("user", "assistant") * len(contents)
    return "".join(f"<|im_start|>{role}\n{c}<|im_end|>\n" for role, c in zip(roles, contents, strict=False))


@pytest.mark.parametrize("template", [TURNS, PARTS, EITHER, NO_SYSTEM, "{% generation %}{% endgeneration %}" + TURNS])
def test_preamble_examples_and_question_arrive_whatever_form_of_content_a_template_reads(template):
    asked = chat(template, preamble="Be brief.", examples=SHOWN)
    expected = turns("Be brief.\n\n1 + 1?", "It is 2.", "2 + 2?", "It is 4.", "How many?")
    assert said(asked, "How many?") == expected + "<|im_start|>assistant\n"
    assert said(asked, "How much?") != said(asked, "How many?")


def test_the_preamble_is_a_system_turn_where_the_template_wants_one():
    asked = chat(ONLY_SYSTEM, preamble="Be brief.", examples=SHOWN[:1])
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert said(asked, "How many?") == f"{system}{turns('1 + 1?', 'It is 2.', 'How many?')}<|im_start|>assistant\n"


LOSES = {
    "the question": TURNS.replace("m.content", "'Hello'"),
    "all but the first turn": TURNS.replace("for m in messages", "for m in messages[:1]"),
    "all but the last turn": TURNS.replace("for m in messages", "for m in messages[-1:]"),
    "the assistant": TURNS.replace("for m in messages", "for m in messages if m.role != 'assistant'"),
    "the user": TURNS.replace("for m in messages", "for m in messages if m.role != 'user'"),
    "the system turn that it wants": FIRST_LOST,
    "the end of a turn": TURNS.replace("m.content", "m.content[:5]"),
    "the order": TURNS.replace("for m in messages", "for m in messages | reverse"),
    "everything": "",
}


@pytest.mark.parametrize("lost", LOSES)
def test_a_template_that_loses_a_turn_is_refused_before_any_question(lost):
    with pytest.raises(InputError, match="template"):
        said(chat(LOSES[lost], preamble="Be brief and kind.", examples=SHOWN))


def test_a_turn_that_is_lost_for_what_it_says_is_named():
    asked = chat(TURNS.replace("m.content", "m.content.split('</think>')[-1]"))
    said(asked, "How many?")
    with pytest.raises(InputError, match=r"what the user says \('So </think> what"):
        said(asked, "So </think> what?")


RAISES = {
    "{{ raise_exception('Roles must alternate; mind that') }}": "Roles must alternate; mind that",
    "{% if messages %}": "Unexpected end of template",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ messages[7].role }}": "no element 7",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages + 1 }}": "can only concatenate",
    "{{ messages | nofilter }}": "No filter named 'nofilter'",
}


@pytest.mark.parametrize("before", ["", "{# strftime_now #}"])
@pytest.mark.parametrize("template", RAISES)
def test_what_a_template_raises_is_said_with_the_remedy(template, before):
    with pytest.raises(InputError, match=r'use prompt\.style "few-shot" or "plain"') as refused:
        said(chat(before + template + TURNS))
    assert RAISES[template] in str(refused.value)


def test_a_template_that_wants_a_system_turn_asks_for_the_preamble():
    with pytest.raises(InputError, match=r"System message is required; set prompt\.preamble"):
        said(chat(ONLY_SYSTEM))
    with pytest.raises(InputError, match=r"System message is required; use prompt\.style"):
        said(chat(FIRST_LOST))


def test_a_template_that_says_something_else_each_time_is_refused():
    with pytest.raises(InputError, match="in two ways"):
        said(chat("{{ range(10000) | random }}" + TURNS))


def test_several_templates_need_a_default_one():
    named = made("byte-level")
    named.chat_template = {"default": TURNS, "tool_use": LLAMA2}
    assert said(prompter(named, style="chat")).startswith("<|im_start|>")
    named.chat_template = {"tool_use": LLAMA2}
    with pytest.raises(InputError, match="no chat template"):
        said(prompter(named, style="chat"))


def test_the_end_of_a_turn_is_the_templates_whatever_it_needs():
    for template in (TURNS, PARTS, EITHER, ONLY_SYSTEM, DATED, THINKING):
        assert turn_end(made("byte-level", chat=template)) == IDS["<|im_end|>"]
    assert turn_end(made("byte-level", chat=LLAMA2)) == IDS["</s>"], "after a space"
    assert turn_end(made("byte-level", chat="{{ nothing.at.all }}")) is None


# ---- the date ----


@pytest.mark.parametrize(
    "before",
    ["", "\n", "  {% if true %}x{% endif %}\n", "{% macro f() %}{{ strftime_now('%Y') }}{% endmacro %}{{ f() }}"],
)
def test_the_date_of_a_prompt_is_the_prompters_and_nothing_else_of_the_template_changes(before):
    asked = chat(before + DATED, date=datetime(2024, 7, 26))
    plain = chat(
        (before + DATED)
        .replace("strftime_now('%Y')", "2024")
        .replace("strftime_now('%d %b %Y, 100%%')", "'26 Jul 2024, 100%'")
    )
    assert said(asked) == said(plain)
    assert "Today: 26 Jul 2024, 100%\n" in said(asked)
    form = "{{ strftime_now('%-d.%m %H:%M %j %A %%d') }}" + TURNS
    assert said(chat(form, date=datetime(2024, 7, 6, 5, 4))).startswith("6.07 05:04 188 Saturday %d<|im_start|>")


@pytest.fixture
def dated_model(tmp_path):
    """The bundled model with a chat template that says the date."""
    folder = tmp_path / "model"
    shutil.copytree(location("bundled"), folder)
    (folder / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    return folder


def test_a_resumed_run_asks_with_the_date_of_its_start(dated_model, tmp_path, bundled):
    config = load_config(None, (f'model.path="{dated_model}"', 'prompt.style="chat"'))
    begun = Run.start(tmp_path / "run", config)
    begun.use(bundled)
    begun.folder.write("problems.jsonl", [])
    assert begun.folder.manifest["date"] == begun.prompter.date.isoformat()
    begun.folder.manifest["date"] = "2001-02-03T04:05:06"
    begun.folder.save_manifest()
    begun.close()
    for open_again in (Run.resume, lambda path: Run.start(path, config), Run.load):
        with open_again(tmp_path / "run") as again:
            assert bundled.tokenizer.decode(again.prompter.prompt(problem("How many?"))) == "2001How many?"
    resumed = Run.resume(tmp_path / "run")
    resumed.use(bundled)
    assert resumed.folder.manifest["date"] == "2001-02-03T04:05:06"
    beside = Run.start(tmp_path / "beside", config)
    beside.share(resumed, ())
    beside.use(bundled)
    assert beside.folder.manifest["date"] == "2001-02-03T04:05:06", "answers are shared, so prompts have to be the same"


# ---- arguments ----


def test_a_chat_template_is_told_the_arguments():
    assert said(chat(THINKING, chat_arguments={"enable_thinking": False})).endswith("assistant\n<think></think>")
    assert said(chat(THINKING)).endswith("assistant\n")
    early = "{% if not date_string is defined %}{% set date_string = '26 Jul' %}{% endif %}{{ date_string }}" + TURNS
    assert said(chat(early, chat_arguments={"date_string": "1 May"})).startswith("1 May<")


def test_a_date_is_fixed_whatever_its_format_comes_from():
    told = "{{ strftime_now(format) }}|{{ strftime_now('%' + 'Y') }}" + TURNS
    dated = chat(told, chat_arguments={"format": "%d %B"}, date=datetime(2001, 2, 3))
    assert said(dated).startswith("03 February|2001<")


@pytest.mark.parametrize("cut", ["{{ m.content | truncate(30) }}", "{{ m.content[:10] }}"])
def test_a_template_that_cuts_texts_is_refused_and_not_given_lists_instead(cut):
    with pytest.raises(InputError, match="chat template"):
        said(chat("{% for m in messages %}" + cut + "{% endfor %}"))


def test_an_argument_that_the_template_never_reads_is_refused_with_those_that_it_reads():
    with pytest.raises(
        InputError, match=r"prompt\.chat_arguments\.thinking: .* reads enable_thinking; leave thinking out"
    ):
        said(chat(THINKING, chat_arguments={"thinking": False}))
    with pytest.raises(InputError, match=r"assistant: .* takes none"):
        said(chat("{# assistant #}" + TURNS, chat_arguments={"assistant": 1}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("prompt.chat_arguments.enable_thinking=false",), "prompt.style is plain"),
        (
            ('prompt.style="chat"', "prompt.chat_arguments.messages=1"),
            "prompt.chat_arguments.messages is for cca to say",
        ),
        (('prompt.style="chat"', "prompt.chat_arguments.tokenize=true"), "prompt.chat_arguments.tokenize"),
        (('prompt.style="chat"', "prompt.chat_arguments.a=[1]"), "is no text, finite number, true or false (got [1])"),
        (('prompt.style="chat"', "prompt.chat_arguments.a=inf"), "is no text, finite number"),
        (('prompt.style="chat"', "prompt.chat_arguments=3"), "prompt.chat_arguments: Input should be a valid dict"),
        (('prompt.stop=[""]',), "prompt.stop has ''"),
        (('prompt.stop=["\\n", " "]',), "prompt.stop has ' '"),
    ],
)
def test_arguments_and_stop_strings_that_cannot_be_meant_are_refused(overrides, message, tmp_path, capsys):
    settings = [word for override in overrides for word in ("--set", override)]
    refuse(["run", *settings, "--out", str(tmp_path / "run")], capsys, message)


def test_arguments_are_set_one_by_one_or_together():
    one = load_config(None, ('prompt.style="chat"', "prompt.chat_arguments.enable_thinking=false"))
    both = load_config(None, ('prompt.style="chat"', 'prompt.chat_arguments={enable_thinking=false, level="high"}'))
    assert one.prompt.chat_arguments == {"enable_thinking": False}
    assert both.prompt.chat_arguments == {"enable_thinking": False, "level": "high"}


def test_a_template_that_fails_ends_the_command_before_any_work(dated_model, tmp_path, capsys):
    (dated_model / "chat_template.jinja").write_text(ONLY_SYSTEM)
    words = ["run", "--model", str(dated_model), "--set", "prompt.style=chat", "--out", str(tmp_path / "run")]
    refuse(words, capsys, "System message is required", "set prompt.preamble")
    refuse([*words, "--set", "prompt.chat_arguments.x=1"], capsys, "chat_arguments.x")
    assert not (tmp_path / "run").exists()


# ---- any text ----

TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.lists(
    st.sampled_from(
        ["{question}", "{", "}", "{}", "{0}", "%s", "%", "\\boxed{}", "{{ x }}", "{% raw %}", "\n", " ", "12"]
    )
).map("".join)


@settings(max_examples=60)
@given(before=TEXT, after=TEXT, preamble=TEXT, question=TEXT, solution=TEXT)
def test_any_text_stands_in_a_prompt_as_it_was_given(before, after, preamble, question, solution):
    template = f"{before}{{question}}{after}"
    pieces = template.split("{question}")
    shown = (Example("one?", solution),)
    tokenizer = made("byte-level", chat=TURNS)
    few = prompter(tokenizer, style="few-shot", template=template, preamble=preamble, examples=shown)
    gap = "" if template[-1].isspace() else " "
    parts = (preamble, f"{'one?'.join(pieces)}{gap}{solution}", question.join(pieces))
    assert said(few, question) == "\n\n".join(part for part in parts if part)
    asked = prompter(tokenizer, style="chat", template=template, preamble=preamble, examples=shown)
    start = f"{preamble}\n\n" if preamble else ""
    expected = turns(f"{start}{'one?'.join(pieces)}", solution, question.join(pieces))
    assert said(asked, question) == f"{expected}<|im_start|>assistant\n"


def test_prompt_settings_of_any_text_are_read_back_as_they_were():
    from cca.run.config import dump_toml, parse_config

    tomllib = pytest.importorskip("tomllib")
    plane = st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=20)
    values = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | plane

    @settings(max_examples=60)
    @given(plane, plane, st.lists(plane), st.dictionaries(plane, values))
    def holds(template, preamble, stop, arguments):
        prompt = {"style": "chat", "template": f"{template}{{question}}", "preamble": preamble}
        data = {"prompt": prompt | {"stop": stop, "chat_arguments": arguments}}
        try:
            config = parse_config(json.loads(json.dumps(data)), "test")
        except InputError:
            return
        again = parse_config(tomllib.loads(dump_toml(config)), "test")
        assert again == config
        assert {k: type(v) for k, v in again.prompt.chat_arguments.items()} == {
            k: type(v) for k, v in arguments.items()
        }

    holds()
