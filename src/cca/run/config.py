"""The configuration of a run: the options of its stages in one TOML file; an unknown key is an error."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.evaluation.options import EvaluationOptions
from cca.method.options import CircuitOptions, PivotOptions, TraceOptions, UpdateOptions
from cca.model.options import ModelOptions
from cca.options import Count, Options, explained
from cca.problems.prompts import PromptOptions, check_prompt
from cca.problems.splits import ProblemOptions


class Config(Options):
    """Every setting of a run. A section is a stage's options, explained where they stand."""

    seed: int = 0
    """Everything random derives from it."""
    rounds: Count = 1
    """How often to trace, find a circuit and update, each time from the updated model, as long as validation rises."""
    model: ModelOptions = ModelOptions()
    prompt: PromptOptions = PromptOptions()
    problems: ProblemOptions = ProblemOptions()
    traces: TraceOptions = TraceOptions()
    pivots: PivotOptions = PivotOptions()
    circuit: CircuitOptions = CircuitOptions()
    update: UpdateOptions = UpdateOptions()
    evaluation: EvaluationOptions = EvaluationOptions()


def parse_override(text: str) -> tuple[list[str], Any]:
    """``section.key=value`` as a key path and a TOML value (a bare word is taken as a string).

    Raises:
        InputError: there is no ``=`` or no key.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text!r} is not of the form section.key=value, for example update.steps=10")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return key.strip().split("."), parsed


def load_config(path: Path | None, overrides: tuple[str, ...] = ()) -> Config:
    """Read a TOML file (None: all defaults, the bundled run) and put `overrides` on top.

    Raises:
        InputError: the file is missing or not TOML, a key is unknown or a value is out of range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read config {path}: {error.strerror}; name a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"config {path} is not valid TOML: {error}") from error
    for override in overrides:
        keys, value = parse_override(override)
        section = data
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise InputError(f"--set {override!r}: {key} is not a section")
        section[keys[-1]] = value
    return parse_config(data, str(path) if path else "the command line")


def parse_config(data: dict[str, Any], source: str) -> Config:
    """Validate a config that was read from `source`.

    Raises:
        InputError: as `load_config`.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise InputError(f"config from {source}: " + "; ".join(explained(e, Config) for e in error.errors())) from error
    check_prompt(config.prompt, f"config from {source}: ")
    if config.rounds > 1 and config.update.method not in OF_ROWS:
        raise InputError(
            f"config from {source}: rounds is {config.rounds}, but update.arm {config.update.method} has one"
        )
    return config


def dump_toml(config: Config) -> str:
    """The whole config as TOML, defaults included; what is None or an empty table is left out."""
    sections = config.model_dump(by_alias=True, mode="json")
    return tomli_w.dumps({name: _stated(value) for name, value in sections.items()})


def _stated(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None and v != {}} if isinstance(value, dict) else value
