"""What a run would do, hold in memory and change, told from the configuration alone: no weights are read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca.errors import InputError
from cca.problems.splits import how_split
from cca.records import Problem, Split
from cca.run.config import Config
from cca.run.counts import Lengths
from cca.run.plan_memory import TYPICAL_DENSITY, Free, Memory, plan_memory
from cca.run.problems import check_fit, draw_problems, target_source
from cca.run.shape import Shape, shape_of

if TYPE_CHECKING:
    from cca.problems.prompts import Prompter
    from cca.problems.sources import Source

A_FEW = 3
"""Problems of each template, split and skill by which prompts are measured."""
SHARED = 16
"""Tokens that prompts must have in common for these to be read and kept once, as in `cca.model.read`."""
ANSWER = 150
"""Tokens of an answer where no solution tells how long they are: between the 126 and 274 of a 0.5B model with and
without worked examples (docs/real-models.md)."""
_SOLVED = 100
"""Solutions by which answers are measured, at most."""


@dataclass(frozen=True)
class PlannedModel:
    """The model. type: as transformers calls it. parameters: how many its weights have."""

    path: str
    type: str
    parameters: int
    layers: int


@dataclass(frozen=True)
class PlannedRows:
    """How many rows of weights all components own, and one of them."""

    all: int
    per_head: int
    per_neuron: int


@dataclass(frozen=True)
class PlannedCircuit:
    """A circuit of the paper's density."""

    density: float
    components: int


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of the prompts. shared: of the start that all have in common. answer: expected of an answer, as many as
    worked solutions have."""

    mean: float
    longest: int
    shared: int
    answer: float


@dataclass(frozen=True)
class Work:
    """What there is to do, at most. problems: by split. max_new_tokens: of a trace. answers: of both models.

    prompt_tokens: over all rows of a file, or a few problems of each template where they are drawn.
    """

    problems: dict[str, int]
    prompt_tokens: PromptTokens
    max_new_tokens: int
    greedy_traces: int
    sampled_traces: int
    pivots: int
    sampled_completions: int
    circuit_steps: int
    circuit_batch: int
    update_steps: int
    validations: int
    validation_problems: int
    rounds: int
    answers: int
    answer_tokens: int
    benchmarks: list[str]


@dataclass(frozen=True)
class Plan:
    """What a run would do. components: how many there are of each kind, and ``all``."""

    model: PlannedModel
    components: dict[str, int]
    rows: PlannedRows
    circuit: PlannedCircuit
    memory_gib: Memory
    work: Work


class Group(NamedTuple):
    """Problems of one template or skill in one split, and how many of them the run will have, at most."""

    split: Split
    problems: list[Problem]
    size: int


class Basis(NamedTuple):
    """What a plan is made of: a model without weights with its configuration and shape, problems, and their prompts."""

    model_config: Any
    model: Any
    shape: Shape
    work: Work
    lengths: Lengths


def make_plan(config: Config) -> Plan:
    """Components, rows, memory and work of the run of `config` on this machine.

    Raises:
        InputError: As the run itself would before it loads weights.
    """
    return planned(config, basis(config), free_here(config))


def basis(config: Config) -> Basis:
    """What a plan of `config` is made of, where all that it names is here.

    Raises:
        InputError: As `make_plan`.
    """
    from cca.model.bundled import location
    from cca.model.checks import check_device, check_model
    from cca.model.engines.choice import check_engine
    from cca.model.gguf.header import is_gguf
    from cca.model.open import open_prompter
    from cca.model.weights import has_weights

    path, trust = config.model.path, config.model.trust_remote_code
    check_device(config.model.device, config.model.device_map)
    check_engine(config.engine, config.model)
    # a configuration alone can be planned for
    whole = is_gguf(path) or has_weights(Path(location(path)))
    model_config = check_model(path, trust_remote_code=trust, weights=whole)
    prompter = open_prompter(config.model, config.prompt, config.problems.grader)
    groups = groups_of(config, target_source(config))
    check_fit(config, ((g.split, prompter.prompt(p)) for g in groups for p in g.problems), model_config)
    config.circuit.check_reach(sum(group.size for group in groups if group.split == "train"))
    return basis_of(config, model_config, prompter, groups)


def basis_of(config: Config, model_config: Any, prompter: "Prompter", groups: Sequence[Group]) -> Basis:
    """What a plan is made of, of its parts.

    Raises:
        InputError: no model can be built of its configuration, or its components are not found.
    """
    from cca.model.weights import empty_model

    model = empty_model(model_config, config.model.path, trust_remote_code=config.model.trust_remote_code)
    lengths, longest = _measured(config, prompter, groups)
    work = _work(config, groups, lengths, longest)
    return Basis(model_config, model, shape_of(model_config, model), work, lengths)


def planned(config: Config, of: Basis, free: Free) -> Plan:
    """The plan of `of` where so much memory is free."""
    import torch

    from cca.model.components import find_components

    parts, shape, work = find_components(of.model), of.shape, of.work
    everything = torch.ones(parts.size, dtype=torch.bool)
    memory = plan_memory(config, shape, of.lengths, work.prompt_tokens.longest, work.pivots, free)
    return Plan(
        PlannedModel(config.model.path, shape.type, shape.parameters, shape.layers),
        {"all": parts.size, **parts.counts(everything)},
        PlannedRows(
            sum(len(owned) for owned in parts.rows(everything).values()), parts.layers[0].query.rows.shape[1], 1
        ),
        PlannedCircuit(TYPICAL_DENSITY, round(parts.size * TYPICAL_DENSITY)),
        memory,
        work,
    )


def memory_at_start(config: Config, model_config: Any, prompter: "Prompter", problems: Sequence[Problem]) -> Memory:
    """What each stage of a run that has drawn `problems` will hold, against what is free here."""
    groups = [Group("train", list(problems), len(problems))]
    of = basis_of(config, model_config, prompter, groups)
    pivots = sum(problem.split == "train" for problem in problems)
    return plan_memory(config, of.shape, of.lengths, of.work.prompt_tokens.longest, pivots, free_here(config))


def check_weights_fit(config: Config, memory: Memory) -> None:
    """See that the weights alone fit on the device, in 16 bits where the type is still to be chosen.

    Raises:
        InputError: they do not.
    """
    dtype = config.model.dtype
    least = memory.weights / 2 if dtype == "auto" else memory.weights
    if memory.has is not None and least > memory.has:
        smaller = 'model.dtype = "bfloat16", ' if dtype == "float32" else ""
        raise InputError(
            f"the weights of {config.model.path} take {least:.1f} GiB, and {memory.has:.1f} are free on the device "
            f'({config.model.device}); set {smaller}model.device_map = "auto", or take another device or model'
        )


def free_here(config: Config) -> Free:
    """What this machine has free where the run would compute; nobody says it of layers that are spread."""
    from cca.model.memory import free_bytes, host_free_bytes
    from cca.model.precision import main_device

    options = config.model
    device = main_device(options.device, options.device_map)
    is_cpu = device == "cpu"
    if options.device_map is not None:
        return Free(None, None, is_cpu)
    return Free(free_bytes(device), None if is_cpu else host_free_bytes(), is_cpu)


def groups_of(config: Config, source: "Source") -> list[Group]:
    """Problems to measure prompts by.

    Rows of a file are all read. Of templates and skills, whose problems are drawn, a few of each say enough: to draw
    all takes longer than everything else that a dry run does.
    """
    options, per_skill = config.problems, config.evaluation.per_skill
    wanted: dict[str, int] = {**options.counts(), "held_out": options.test}
    if how_split(source, options.split_by) == "template":
        wanted = dict.fromkeys(wanted, sum(options.counts().values()))
    if not source.is_rows:
        few = options.changed({split: min(count, A_FEW) for split, count in options.counts().items()})
        skills = config.evaluation.changed({"per_skill": min(per_skill, A_FEW)})
        config = config.model_copy(update={"problems": few, "evaluation": skills})
    found: dict[tuple[Split, str], list[Problem]] = {}
    for problem in draw_problems(config, source):
        found.setdefault((problem.split, problem.skill or problem.template), []).append(problem)
    return [
        Group(split, problems, len(problems) if source.is_rows else wanted.get(split, per_skill))
        for (split, _), problems in found.items()
    ]


class _Measured(NamedTuple):
    """Mean lengths, and the longest prompt."""

    lengths: Lengths
    longest: int


def _measured(config: Config, prompter: "Prompter", groups: Sequence[Group]) -> _Measured:
    total, longest = 0.0, 0
    for group in groups:
        prompts = [len(prompter.prompt(problem)) for problem in group.problems]
        total += sum(prompts) / len(prompts) * group.size
        longest = max(longest, *prompts)
    shared = len(prompter.start) if len(prompter.start) >= SHARED else 0
    solution = _solution(prompter, [p for group in groups for p in group.problems if p.skill is None])
    answer = min(solution, config.traces.max_new_tokens)
    evaluated = [group for group in groups if group.split not in ("train", "validation")]
    replies = sum(g.size * (_solution(prompter, g.problems) if g.problems[0].skill else solution) for g in evaluated)
    reply = replies / sum(group.size for group in evaluated) if evaluated else solution
    prompt = total / sum(group.size for group in groups) - shared
    return _Measured(Lengths(shared, prompt, answer, solution, answer, answer, reply), longest)


def _solution(prompter: "Prompter", problems: Sequence[Problem]) -> float:
    """Mean tokens of the worked solutions."""
    solved = [p for p in problems if p.solution.strip()]
    found = [len(prompter.reference(p.solution)) for p in solved[:: max(1, len(solved) // _SOLVED)]]
    return sum(found) / len(found) if found else ANSWER


def _work(config: Config, groups: Sequence[Group], lengths: Lengths, longest: int) -> Work:
    splits = Counter[str]()
    for group in groups:
        splits[group.split] += group.size
    traced = splits["train"] + splits["validation"]
    mean = lengths.shared + lengths.prompt
    return Work(
        problems=dict(splits),
        prompt_tokens=PromptTokens(mean, longest, round(lengths.shared), lengths.answer),
        max_new_tokens=config.traces.max_new_tokens,
        greedy_traces=traced,
        sampled_traces=traced * config.traces.samples,
        pivots=splits["train"],
        sampled_completions=traced * config.pivots.sampled(config.traces.max_new_tokens),
        circuit_steps=config.circuit.epochs * config.circuit.steps(splits["train"]),
        circuit_batch=config.circuit.batch,
        update_steps=config.update.steps,
        validations=config.update.validations(),
        validation_problems=splits["validation"],
        rounds=config.rounds,
        answers=2 * (splits.total() - traced),
        answer_tokens=config.answer_limit.tokens,
        benchmarks=list(config.evaluation.tasks),
    )
