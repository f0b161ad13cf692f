"""The configuration of a run: frozen pydantic models, one per stage; an unknown key is an error.

Config objects stop at the pipeline: the stages themselves take plain arguments.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cca.controls.methods import OF_ROWS, Arm
from cca.errors import InputError
from cca.problems.gsm_symbolic import SMALL_TEMPLATES

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)


class Model(_Section):
    path: str = "bundled"
    """``bundled``, a folder, or a hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base weights. Gates, deltas and losses are float32 always."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` ..."""
    device_map: Literal["auto"] | None = None
    """``auto``: spread the layers over all GPUs, then main memory, then disk (accelerate), in place of ``device``."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """Which attention function; by default the one that transformers chooses for the model."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Read it first."""


class Prompt(_Section):
    style: Literal["plain", "few-shot", "chat"] = "plain"
    """``plain``: the question; ``few-shot``: worked examples, then the question; ``chat``: the tokenizer's chat
    template, each example a turn."""
    template: str | None = None
    """What stands for a question, with ``{question}``. Default: ``Q: {question}``, a new line and ``A:``; for chat
    ``{question}`` alone."""
    preamble: str = ""
    """Said first, before any example."""
    shots: Annotated[int, Field(ge=0)] = 0
    """How many examples."""
    examples: str = ""
    """Where they come from: ``lm-eval:TASK`` (those that lm-evaluation-harness shows) or a JSON-lines file with
    ``question`` and ``solution``."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these strings, as well as at the model's end token."""


def _for_the_bundled_model(value: Any, otherwise: Any) -> Any:
    """A default of problems that depends on their source."""
    return Field(default_factory=lambda data: value if data.get("source") == "gsm-symbolic" else otherwise)


class Problems(_Section):
    source: str = "gsm-symbolic"
    """``gsm-symbolic`` (reasoning-gym's generators), ``reasoning-gym:NAME``, a file of JSON lines, CSV or Parquet with
    ``question`` and ``answer``, a folder of such files or annotated templates, or ``owner/name:config`` of the hub."""
    templates: tuple[str | int, ...] | Literal["all"] = _for_the_bundled_model(SMALL_TEMPLATES, "all")
    """Names of templates, or ``all`` of the source."""
    max_number: Annotated[float, Field(ge=0)] = _for_the_bundled_model(60, 0)
    """Of ``gsm-symbolic``: no number in a question or solution is above this, or else the instance is redrawn. 0: no
    bound."""
    split_by: Literal["instance", "template", "source"] | None = None
    """``instance``: a template's instances go to training, validation and test (the paper's); ``template``: whole
    templates do, so that every test template is new; ``source``: as the file says. Default: ``source`` where it has
    training problems, else ``instance``."""
    train: Annotated[int, Field(ge=0)] = 14
    """Instances per template that give pivots."""
    validation: Annotated[int, Field(ge=0)] = 8
    """Instances per template that choose the step of the update."""
    test: Annotated[int, Field(ge=0)] = 28
    """Instances per template that are only evaluated."""
    held_out: Share = 0.2
    """Share of the templates that are kept out of the update entirely and only evaluated; for ``instance`` alone."""
    grader: str = "number"
    """``number`` (the last one, as GSM-Symbolic does), ``exact``, ``math-verify`` or your own ``module:function``."""


class Traces(_Section):
    samples: Count = 10
    """Samples a problem gets at most until one is of opposite correctness."""
    temperature_if_correct: Positive = 1.2
    """Temperature where the greedy trace is correct (a wrong sample is wanted)."""
    temperature_if_wrong: Positive = 0.8
    """Temperature where the greedy trace is wrong (a correct sample is wanted)."""
    max_new_tokens: Count = 160
    """Tokens a trace may have."""
    batch: Count = 64
    """Problems traced together. A killed run loses at most one such batch."""
    skip_solved: bool = True
    """Leave out templates whose training instances the base model all solves."""


class Pivots(_Section):
    method: Literal["branching", "prefix"] = "branching"
    """``branching``: where the greedy completion changes its outcome; ``prefix``: where the two traces part."""


class Circuit(_Section):
    penalty: Annotated[float, Field(ge=0, alias="lambda")] = 0.05
    """``lambda``: the price of a component. Higher gives a sparser circuit."""
    target_density: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Search for the lambda that gives this density, within a tenth of it, starting from ``lambda``. The paper's
    circuits are at about 0.016."""
    learning_rate: Positive = 5e-3
    """Adam's."""
    decay: Share = 0.9
    """Factor on the learning rate ..."""
    decay_every: Count = 5
    """... every so many epochs."""
    batch: Count = 8
    """Pivots a step."""
    epochs: Count = 50
    """At most."""
    patience: Positive = 1.0
    """Stop when the rounded circuit has not changed for this many epochs. The paper's 0.2 is of far longer epochs."""
    cache_gib: Positive = 4.0
    """Keys and values of all prefixes are kept where they fit in this many GiB, else read again each step."""


class Update(_Section):
    arm: Arm = "circuit"
    """What is trained on the pivots: the ``circuit``'s rows; as controls, rows of a ``random`` circuit of the same
    counts per kind, ``all`` rows, as many rows of the largest ``gradient``, a ``bias`` on the output logits, a
    ``steering`` vector on the last layer's output, ``lora-pivots``; or, on correct solutions, ``lora`` or ``finetune``
    (all weights)."""
    loss: Literal["linear", "logistic"] = "logistic"
    """Of a pivot's margin: ``linear`` is the paper's; ``logistic`` lets go of a pivot as it is won."""
    learning_rate: Positive = 0.2
    """Step size of plain gradient descent."""
    steps: Count = 20
    """At most."""
    validate_every: Count = 2
    """Validation at these steps ..."""
    validate_at: tuple[int, ...] = ()
    """... and at these."""
    patience: Count = 4
    """Stop after this many validations without a new best."""
    batch: Count = 32
    """Pivots a forward and backward pass; the gradient is always that of all pivots."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: for long prompts, a third more time for far less memory."""
    lora_rank: Count = 8
    """Of the arms ``lora`` and ``lora-pivots``, whose matrices are those whose rows components own."""
    lora_alpha: Positive = 16
    """Their change is scaled by alpha / rank."""
    solution_batch: Count = 8
    """Solutions a step of the arms ``lora`` and ``finetune``; their ``steps`` are epochs, for a step of the other arms
    is a pass over all pivots as well."""


class Evaluation(_Section):
    transfer: tuple[str, ...] = ("chain_sum", "simple_equations", "leg_counting")
    """Skills of reasoning-gym that neighbour the target and could gain or lose with it."""
    retention: tuple[str, ...] = ("rotate_matrix", "manipulate_matrix")
    """Skills of reasoning-gym that must not move."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of lm-evaluation-harness that must not move, such as ``mmlu``, ``triviaqa``, ``truthfulqa_mc2``."""
    task_data: str = ""
    """Folder of local files for them (its layout: `cca.evaluation.harness.files`); without one they come from the hub."""
    task_limit: Annotated[int, Field(ge=0)] = 0
    """Documents of each subtask, from its first. 0: all."""
    task_shots: Annotated[int, Field(ge=0)] | None = None
    """Worked examples in place of the task's own number."""
    per_skill: Annotated[int, Field(ge=0)] = 200
    """Problems a skill."""
    batch: Count = 128
    """Problems answered together."""
    drift_problems: Count = 100
    """Problems a set whose solutions measure drift, at most."""
    text: tuple[str, ...] = ()
    """Files of plain text on which drift is measured too, such as an article a file."""


class Config(_Section):
    seed: int = 0
    """Everything random derives from it."""
    rounds: Count = 1
    """How often to trace, find a circuit and update, each time from the updated model, as long as validation rises."""
    model: Model = Model()
    prompt: Prompt = Prompt()
    problems: Problems = Problems()
    traces: Traces = Traces()
    pivots: Pivots = Pivots()
    circuit: Circuit = Circuit()
    update: Update = Update()
    evaluation: Evaluation = Evaluation()


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
        raise InputError(f"config from {source}: " + "; ".join(_explain(e) for e in error.errors())) from error
    _check_prompt(config.prompt, f"config from {source}: ")
    if config.rounds > 1 and config.update.arm not in OF_ROWS:
        raise InputError(f"config from {source}: rounds is {config.rounds}, but update.arm {config.update.arm} has one")
    return config


def _check_prompt(prompt: Prompt, source: str) -> None:
    if prompt.template is not None and "{question}" not in prompt.template:
        raise InputError(f"{source}prompt.template has no {{question}}; add it where the question goes")
    if prompt.style == "few-shot" and not prompt.shots:
        raise InputError(f'{source}prompt.style is "few-shot" with no examples; set prompt.shots, for example to 8')
    if prompt.shots and prompt.style == "plain":
        raise InputError(f"{source}prompt.shots is {prompt.shots}, but a plain prompt shows none; set prompt.style")
    if prompt.shots and not prompt.examples:
        raise InputError(
            f"{source}prompt.shots is {prompt.shots}, but prompt.examples names none; set it to lm-eval:gsm8k_cot, or "
            "to a JSON-lines file with question and solution"
        )


def _explain(error: Any) -> str:
    *sections, key = [str(part) for part in error["loc"]] or ["config"]
    where = ".".join([*sections, key])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']} (got {error['input']!r})"
    section: Any = Config
    for part in sections:
        section = section.model_fields[part].annotation
    known = [field.alias or name for name, field in section.model_fields.items()]
    return f"unknown key {where}; known there: {', '.join(known)}"


def dump_toml(config: Config) -> str:
    """The whole config as TOML, defaults included."""
    lines = [f"seed = {config.seed}", f"rounds = {config.rounds}"]
    for name, section in config.model_dump(by_alias=True).items():
        if isinstance(section, dict):
            lines.append(f"\n[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in section.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
