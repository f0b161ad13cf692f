"""Configs: what is read, what is written back, and what is refused by its name."""

import tomllib
from pathlib import Path

import pytest
from test_run import refuse

from cca import cli
from cca.errors import InputError
from cca.options import Options
from cca.run.config import Config, dump_toml, load_config, parse_config


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


def test_a_missing_or_broken_config_is_named(tmp_path, capsys):
    refuse(["run", str(tmp_path / "none.toml")], capsys, "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    refuse(["run", str(tmp_path / "bad.toml")], capsys, "not valid TOML")
