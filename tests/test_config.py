"""Configs: what is read, what is written back, and what is refused by its name."""

import builtins
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from conftest import refuse
from hypothesis import given, reject
from hypothesis import strategies as st

from cca import cli
from cca.errors import InputError
from cca.folder import differences
from cca.io import write_text
from cca.model.bundled import BUNDLED
from cca.options import Options
from cca.run.config import Config, dump_toml, load_config, parse_config, parse_override, toml_value


def test_a_dumped_config_reads_back_the_same():
    config = load_config(None, ("seed=5", "circuit.lambda=0.02", 'prompt.template="{question}\\n"'))
    assert parse_config(tomllib.loads(dump_toml(config)), "test") == config
    assert config.circuit.penalty == 0.02


def test_every_config_in_the_repository_parses():
    configs = list((Path(__file__).parent.parent / "configs").glob("*.toml"))
    assert configs
    for path in configs:
        assert isinstance(load_config(path), Config)


def test_the_config_for_the_bundled_run_says_what_the_defaults_are():
    path = Path(__file__).parent.parent / "configs" / "bundled.toml"
    assert load_config(path) == load_config(None)


def test_cca_config_explains_every_key_and_is_itself_the_config_of_the_defaults(tmp_path, capsys):
    assert cli.main(["config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "printed.toml"
    path.write_text(printed)
    assert load_config(path) == load_config(None)
    lines = printed.splitlines()
    for name, section in Config.model_fields.items():
        kind = type(section.default)
        fields = kind.model_fields if issubclass(kind, Options) else {name: section}
        for key, field in fields.items():
            (number,) = (i for i, line in enumerate(lines) if _is_key(lines, i, line, field.alias or key, name, kind))
            assert lines[number - 1].startswith("# "), f"{name}.{key} has no explanation"


def _is_key(lines: list[str], number: int, line: str, key: str, section: str, kind: type) -> bool:
    above = [found for found in lines[: number + 1] if found.startswith("[")]
    inside = above[-1].startswith(f"[{section}]") if issubclass(kind, Options) and above else not above
    return inside and line.removeprefix("# ").startswith(f"{key} =")


@pytest.mark.parametrize(("written", "share"), [("0.8", 0.8), ("0", 0.0), ("1", 1.0), ("false", 0.0), ("true", 1.0)])
def test_skip_solved_is_a_share_of_which_false_is_none_and_true_is_all(written, share):
    found = load_config(None, (f"traces.skip_solved={written}",)).traces.skip_solved
    assert (type(found), found) == (float, share)


def test_the_limit_of_answers_is_that_of_traces_until_it_is_set():
    assert load_config(None, ("traces.max_new_tokens=7",)).answer_limit == (7, "traces.max_new_tokens")
    own = load_config(None, ("traces.max_new_tokens=7", "evaluation.max_new_tokens=5"))
    assert own.answer_limit == (5, "evaluation.max_new_tokens")
    assert parse_config(tomllib.loads(dump_toml(own)), "test") == own
    with pytest.raises(InputError, match=r"evaluation\.max_new_tokens"):
        load_config(None, ("evaluation.max_new_tokens=0",))


@pytest.mark.parametrize("written", ["1", "1.0", "-0.1", "nan", "true"])
def test_a_dropout_that_would_leave_nothing_is_refused(written):
    assert load_config(None, ("update.lora_dropout=0.05",)).update.lora_dropout == 0.05
    with pytest.raises(InputError, match=r"update\.lora_dropout: "):
        load_config(None, (f"update.lora_dropout={written}",))


@pytest.mark.parametrize("name", ["pivots.temperature", "traces.temperature_if_wrong", "update.learning_rate"])
def test_what_is_positive_is_finite(name):
    with pytest.raises(InputError, match=rf"{name}: .*finite"):
        load_config(None, (f"{name}=inf",))


@pytest.mark.parametrize(
    ("settings", "rate"),
    {
        (): 0.2,
        (f"model.path={BUNDLED}",): 0.2,
        ("update.arm=random",): 0.2,
        ("model.path=gpt2",): "auto",
        ("model.path=gpt2", "update.arm=steering"): "auto",
        ("model.path=gpt2", "update.learning_rate=0.2"): 0.2,
        ("update.learning_rate=auto",): "auto",
        ("update.arm=lora",): 0.0001,
        ("model.path=gpt2", "update.arm=lora-pivots"): 0.003,
    }.items(),
)
def test_only_the_bundled_model_has_a_learning_rate_that_was_chosen_for_it(settings, rate):
    config = load_config(None, settings)
    assert config.update.learning_rate == rate
    assert parse_config(tomllib.loads(dump_toml(config)), "test") == config


@pytest.mark.parametrize(("method", "rate"), [("lora", 0.03), ("finetune", 0.03), ("lora-pivots", 0.4)])
def test_a_rate_of_gradient_descent_is_refused_for_adam_before_it_ruins_a_model(method, rate, tmp_path):
    """A config that gives the circuit its rate, and ``--set update.arm=lora`` on top."""
    (tmp_path / "own.toml").write_text(f"[update]\nlearning_rate = {rate}\n")
    with pytest.raises(InputError, match=rf"learning_rate {rate} is one of gradient descent.* is a start"):
        load_config(tmp_path / "own.toml", (f"update.arm={method}",))
    assert load_config(tmp_path / "own.toml", (f"update.arm={method}", "update.learning_rate=0.0005"))


@pytest.mark.parametrize("written", ["1.5", "-0.1", "80", "nan", "yes"])
def test_a_skip_solved_that_is_no_share_is_refused(written):
    with pytest.raises(InputError, match=r"traces\.skip_solved: "):
        load_config(None, (f"traces.skip_solved={written}",))


def test_a_prompt_without_the_question_is_refused():
    with pytest.raises(InputError, match="question"):
        load_config(None, ('prompt.template="hello"',))


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text("[circuit]\nlamda = 1.0\n")
    refuse(["run", str(path), "--out", str(tmp_path / "r")], capsys, "unknown key circuit.lamda", "lambda")
    refuse(["run", "--set", "circuit.x=1", "--out", str(tmp_path / "r")], capsys, "circuit.x")
    refuse(["run", "--set", "seed", "--out", str(tmp_path / "r")], capsys, "section.key=value")
    assert not (tmp_path / "r").exists()


def test_a_value_out_of_range_is_named(tmp_path, capsys):
    refuse(["run", "--set", "update.steps=0", "--out", str(tmp_path / "r")], capsys, "update.steps", "0")


@pytest.mark.parametrize("command", [["run"], ["compare"], ["trace", "new-run", "--config"]])
def test_a_folder_in_place_of_a_config_is_answered_by_how_its_run_goes_on(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    assert cli.main([*command, "one"]) == 2
    assert "one is a folder, and a config is a TOML file; name a file" in capsys.readouterr().err
    (tmp_path / "one" / "manifest.json").write_text("{}")
    assert cli.main([*command, "one"]) == 2
    assert "to go on with that run: cca run --out one" in capsys.readouterr().err


def test_a_missing_or_broken_config_is_named(tmp_path, capsys):
    refuse(["run", str(tmp_path / "none.toml")], capsys, "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    refuse(["run", str(tmp_path / "bad.toml")], capsys, "not valid TOML")


# ---- any text, any value ----

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("\0\t\n\r\x0b\x7f\x85\u2028\ufeff\"'\\[]{}#=,😀")
    )
)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, within its bounds where those are not inside a union."""
    if get_origin(kind) is Annotated:
        bounds = [bound for meta in kind.__metadata__ for bound in getattr(meta, "metadata", [meta])]
        kind = kind.__origin__
        if kind in (int, float) and bounds:
            limits = {
                name: getattr(bound, name)
                for bound in bounds
                for name in ("ge", "gt", "le", "lt")
                if hasattr(bound, name)
            }
            low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt"))
            if kind is int:
                return st.integers(low, high or 2**63 - 1)
            return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits)
        return values_of(kind)
    match get_origin(kind), get_args(kind):
        case ((typing.Union | types.UnionType), parts):
            return st.one_of(*map(values_of, parts))
        case typing.Literal, choices:
            return st.sampled_from(choices)
        case builtins.tuple, (part, _):
            return st.lists(values_of(part), max_size=3).map(tuple)
        case builtins.dict, (key, value):
            return st.dictionaries(values_of(key), values_of(value), max_size=3)
    return TEXT if kind is str else st.from_type(kind)


def options_of(kind: type[Options]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        field.alias or name: options_of(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options)
        else values_of(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        for name, field in kind.model_fields.items()
    }
    return st.fixed_dictionaries({}, optional=fields)


@given(options_of(Config))
def test_every_config_is_read_back_from_its_file_as_it_was(tmp_path_factory, data):
    prompt = data.setdefault("prompt", {})
    data["rounds"], prompt["style"] = 1, "plain"
    for key in ("shots", "replace", "prefill"):  # which a plain prompt refuses
        prompt.pop(key, None)
    if prompt.get("template") is not None:
        prompt["template"] += "{question}"
    try:
        config = parse_config(data, "test")
    except InputError:  # other rules, such as that a string that ends an answer is not empty
        reject()
    path = tmp_path_factory.getbasetemp() / "any.toml"
    write_text(path, dump_toml(config))
    assert load_config(path) == config
    keys = differences({}, tomllib.loads(dump_toml(config))).items()
    assert load_config(None, tuple(f"{key}={toml_value(new)}" for key, (_, new) in keys)) == config


@given(TEXT)
def test_text_is_set_on_the_command_line_as_toml_or_as_it_stands(text):
    assert load_config(None, (f"prompt.preamble={toml_value(text)}",)).prompt.preamble == text
    assert load_config(None, (f"prompt.stop={toml_value([text or 'x'])}",)).prompt.stop == (text or "x",)
    if not text.strip().startswith(('"', "'")):
        assert load_config(None, (f"prompt.preamble={text}",)).prompt.preamble == text


@pytest.mark.parametrize(("setting", "keys", "value"), [
    ("model.path=2024", ["model", "path"], "2024"),
    ("prompt.preamble=true", ["prompt", "preamble"], "true"),
    ("seed = 5", ["seed"], 5),
    ("prompt.preamble=1\nseed = 5", ["prompt", "preamble"], "1\nseed = 5"),
    ('model.device_map."model.layers.0"=1', ["model", "device_map", "model.layers.0"], 1),
    ('prompt.preamble="\\U0001F600"', ["prompt", "preamble"], "😀"),
    ("circuit.target_density=", ["circuit", "target_density"], None),
    ("prompt.preamble=", ["prompt", "preamble"], ""),
])  # fmt: skip
def test_what_is_set_is_what_was_meant(setting, keys, value):
    assert parse_override(setting) == (keys, value)


@pytest.mark.parametrize(
    "setting", ['prompt.preamble="\\ud83d\\ude00"', "prompt.preamble='Tis", 'prompt.preamble="a" or "b']
)
def test_what_begins_with_a_quote_and_is_no_toml_is_refused_and_not_taken_with_its_quotes(setting):
    with pytest.raises(InputError, match="begins with a quote"):
        load_config(None, (setting,))


def test_a_model_path_of_any_text_reaches_the_config(tmp_path, capsys):
    name = 'mo"del 模型\\😀\x7f'
    refuse(["run", "--model", str(tmp_path / name), "--out", str(tmp_path / "r")], capsys, "模型")


@pytest.mark.parametrize("key", ["prompt.preamble", "model.path", "problems.source", "problems.grader"])
def test_bytes_that_are_no_text_are_refused_by_the_key(key, tmp_path, capsys):
    refuse(["run", "--set", f"{key}=a\udcff", "--out", str(tmp_path / "r")], capsys, key, "half a character")
    assert not (tmp_path / "r").exists()


def test_half_a_character_deep_inside_is_refused_too():
    for section in ({"prompt": {"stop": ["a\ud83d"]}}, {"model": {"device_map": {"\ud83d": "cpu"}}}):
        with pytest.raises(InputError, match=r"(prompt\.stop|model\.device_map).*half a character"):
            parse_config(section, "test")
