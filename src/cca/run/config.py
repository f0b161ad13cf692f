"""The configuration of a run: the options of its stages in one TOML file; an unknown key is an error."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.evaluation.options import EvaluationOptions, Limit
from cca.io import user_text
from cca.method.options import CircuitOptions, PivotOptions, TraceOptions, UpdateOptions
from cca.method.rates import OF_ADAM, OF_THE_BUNDLED_MODEL
from cca.model.bundled import is_bundled
from cca.model.options import HOTTEST_OF_VLLM, EngineOptions, ModelOptions
from cca.options import Count, Options, all_explained
from cca.problems.prompts import PromptOptions, check_prompt
from cca.problems.splits import ProblemOptions


class Config(Options):
    """Every setting of a run. A section is a stage's options, explained where they stand."""

    seed: int = 0
    """Everything random derives from it."""
    rounds: Count = 1
    """How often to trace, find a circuit and update, each time from the updated model, as long as validation rises."""
    model: ModelOptions = ModelOptions()
    engine: EngineOptions = EngineOptions()
    prompt: PromptOptions = PromptOptions()
    problems: ProblemOptions = ProblemOptions()
    traces: TraceOptions = TraceOptions()
    pivots: PivotOptions = PivotOptions()
    circuit: CircuitOptions = CircuitOptions()
    update: UpdateOptions = UpdateOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @model_validator(mode="before")
    @classmethod
    def _has_the_bundled_model_s_rate(cls, data: Any) -> Any:
        """Of a run of the bundled model that gives none."""
        update, model = data.get("update", {}), data.get("model", {})
        if not isinstance(update, dict) or not isinstance(model, dict):  # whole options, or what they cannot be
            return data
        other = "learning_rate" in update or {update.get("arm"), update.get("method")} & OF_ADAM.keys()
        if other or not is_bundled(str(model.get("path", "bundled"))):
            return data
        return {**data, "update": {**update, "learning_rate": OF_THE_BUNDLED_MODEL}}

    @property
    def hottest(self) -> float:
        """The highest temperature that anything is sampled at."""
        traces, pivots = self.traces, self.pivots
        of_pivots = pivots.temperature if pivots.confirm else 0.0
        return max(traces.temperature_if_correct, traces.temperature_if_wrong, of_pivots)

    @property
    def answer_limit(self) -> Limit:
        """Of the answers of stage 3's validation, of the evaluation and of the diagnosis."""
        return self.evaluation.answer_limit(self.traces)


def parse_override(text: str) -> tuple[list[str], Any]:
    """``section.key=value`` as a key path and a value in TOML, or as it stands where a bare word is a string.

    Nothing after ``=`` is None where the setting may be None. A key with dots in it stands in quotes.

    Raises:
        InputError: there is no ``=`` or no key, or a value begins with a quote and is not TOML.
    """
    key, sign, value = text.partition("=")
    keys = _key_path(key)
    if not sign or not keys:
        raise InputError(f"--set {text!r} is not of the form section.key=value, for example update.steps=10")
    bare = value if key == key.rstrip() else value.strip()
    field = _field(keys)
    of_text = field is not None and field.annotation in (str, str | None)
    if not bare and field is not None and not field.is_required() and field.get_default() is None:
        return keys, None
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")
    except tomllib.TOMLDecodeError as error:
        if bare.startswith(('"', "'")):
            raise InputError(
                f"--set {text!r}: what begins with a quote is TOML, and this is none ({error}); leave the quotes out, "
                "or write an emoji as itself or as \\U0001F600, and a backslash twice"
            ) from error
        return keys, bare
    if parsed.keys() != {"value"} or (of_text and not isinstance(parsed["value"], str)):
        return keys, bare
    return keys, parsed["value"]


def _key_path(key: str) -> list[str]:
    try:
        found: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    path: list[str] = []
    while isinstance(found, dict):
        if len(found) != 1:
            return []
        ((name, found),) = found.items()
        path.append(name)
    return path


def _field(keys: Sequence[str]) -> FieldInfo | None:
    """What is known of the setting at `keys`."""
    kind, found = Config, None
    for key in keys:
        if not (isinstance(kind, type) and issubclass(kind, Options)):
            return None
        found = next((f for name, f in kind.model_fields.items() if key in (f.alias, name)), None)
        kind = found.annotation if found else None
    return found


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (None: all defaults, the bundled run) and put `overrides` on top.

    Raises:
        InputError: the file is missing or not TOML, a key is unknown or a value is out of range.
    """
    if path is None:
        return read_config("", "the command line", overrides)
    if path.is_dir():
        remedy = f"to go on with that run: cca run --out {path}" if (path / "manifest.json").exists() else "name a file"
        raise InputError(f"{path} is a folder, and a config is a TOML file; {remedy}")
    return read_config(user_text(path, "config", "name a TOML file"), str(path), overrides)


def read_config(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """The config that is `text`, which was read from `source`, with `overrides` on top. Raises as `load_config`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"config {source} is not valid TOML: {error}") from error
    for override in overrides:
        keys, value = parse_override(override)
        section = data
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise InputError(f"--set {override!r}: {key} is not a section")
        if value is None:
            section.pop(keys[-1], None)
        else:
            section[keys[-1]] = value
    return parse_config(data, source)


def parse_config(data: dict[str, Any], source: str) -> Config:
    """Validate a config that was read from `source`.

    Raises:
        InputError: as `load_config`.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise InputError(f"config from {source}: {all_explained(error, Config)}") from error
    check_prompt(config.prompt, f"config from {source}: ")
    config.pivots.check(f"config from {source}: ")
    if config.rounds > 1 and config.update.method not in OF_ROWS:
        raise InputError(
            f"config from {source}: rounds is {config.rounds}, but update.arm {config.update.method} has one"
        )
    if config.engine.name == "vllm" and config.update.method not in OF_ROWS:
        raise InputError(
            f"config from {source}: engine.name is vllm, which takes changes of weight rows, and update.arm "
            f"{config.update.method} is none; set engine.name=transformers"
        )
    if config.engine.name == "vllm" and (hottest := config.hottest) > HOTTEST_OF_VLLM:
        raise InputError(
            f"config from {source}: engine.name is vllm, which samples at temperatures up to {HOTTEST_OF_VLLM:g}, and "
            f"one of traces or pivots is {hottest:g}; lower it, or set engine.name=transformers"
        )
    return config


def dump_toml(config: Config) -> str:
    """The whole config as TOML, defaults included; what is None or an empty table is left out."""
    sections = config.model_dump(by_alias=True, mode="json")
    return tomli_w.dumps({name: _stated(value) for name, value in sections.items()})


def _stated(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None and v != {}} if isinstance(value, dict) else value


def toml_value(value: Any) -> str:
    """A value on one line, as it stands in a config or after ``=`` in --set; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, Options):
        value = dict(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {toml_value(v)}" for key, v in value.items()) + "}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
