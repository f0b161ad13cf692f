"""What a run would do, hold in memory and change, told from the configuration alone: no weights are read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca.problems.splits import how_split
from cca.records import Problem, Split
from cca.run.config import Config
from cca.run.problems import check_fit, draw_problems, target_source

if TYPE_CHECKING:
    from cca.model.components import Components, Layer

TYPICAL_DENSITY = 0.016
"""Of the paper's circuits; a run's own is known once its circuit is learned."""
A_FEW = 3
"""Problems of each template, split and skill by which prompts are measured."""


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
class Memory:
    """GiB, estimated. trace, circuit, update, evaluate: what each stage's hungriest moment takes beside the weights.

    notes: what of, by stage.
    """

    weights: float
    trace: float
    circuit: float
    update: float
    evaluate: float
    peak: float
    notes: dict[str, str]


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of the prompts."""

    mean: float
    longest: int


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


def make_plan(config: Config) -> Plan:
    """Components, rows, memory and work of the run of `config`.

    Raises:
        InputError: As the run itself would before it loads weights.
    """
    from cca.model.bundled import location
    from cca.model.checks import check_device, check_model
    from cca.model.gguf.header import is_gguf
    from cca.model.open import open_prompter
    from cca.model.weights import empty_model, has_weights

    path, trust = config.model.path, config.model.trust_remote_code
    check_device(config.model.device, config.model.device_map)
    # a configuration alone can be planned for
    whole = is_gguf(path) or has_weights(Path(location(path)))
    model_config = check_model(path, trust_remote_code=trust, weights=whole)
    prompter = open_prompter(config.model, config.prompt, config.problems.grader)
    groups = _groups(config)
    prompts = [[prompter.prompt(p) for p in group.problems] for group in groups]
    check_fit(config, ((g.split, p) for g, found in zip(groups, prompts, strict=True) for p in found), model_config)
    config.circuit.check_reach(sum(group.size for group in groups if group.split == "train"))
    model = empty_model(model_config, path, trust_remote_code=trust)
    lengths = [[len(p) for p in found] for found in prompts]
    return _planned(config, model_config, model, _work(config, groups, lengths))


class _Group(NamedTuple):
    """Problems of one template or skill in one split, and how many of them the run will have, at most."""

    split: Split
    problems: list[Problem]
    size: int


def _groups(config: Config) -> list[_Group]:
    """Problems to measure prompts by.

    Rows of a file are all read. Of templates and skills, whose problems are drawn, a few of each say enough: to draw
    all takes longer than everything else that a dry run does.
    """
    options, per_skill = config.problems, config.evaluation.per_skill
    source = target_source(config)
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
        _Group(split, problems, len(problems) if source.is_rows else wanted.get(split, per_skill))
        for (split, _), problems in found.items()
    ]


def _planned(config: Config, model_config: Any, model: Any, work: Work) -> Plan:
    """The plan of `work` on a model that has no weights."""
    import torch

    from cca.model.components import find_components

    parts = find_components(model)
    everything = torch.ones(parts.size, dtype=torch.bool)
    parameters = sum(p.numel() for p in model.parameters())
    return Plan(
        PlannedModel(config.model.path, model_config.model_type, parameters, len(parts.layers)),
        {"all": parts.size, **parts.counts(everything)},
        PlannedRows(
            sum(len(owned) for owned in parts.rows(everything).values()), parts.layers[0].query.rows.shape[1], 1
        ),
        PlannedCircuit(TYPICAL_DENSITY, round(parts.size * TYPICAL_DENSITY)),
        _memory(config, model_config.get_text_config(), parts, parameters, work),
        work,
    )


def _memory(config: Config, text: Any, parts: "Components", parameters: int, work: Work) -> Memory:
    from cca.model.memory import free_bytes, place
    from cca.model.read import TOKENS

    size = 4 if config.model.dtype in ("float32", "auto") else 2
    longest = work.prompt_tokens.longest + config.traces.max_new_tokens
    typical = work.prompt_tokens.mean + config.traces.max_new_tokens / 2
    cached = size * sum(layer.key.rows.numel() + layer.value.rows.numel() for layer in parts.layers)

    def writing(rows: int, limit: int) -> float:
        """Each row's place, what it continues, and logits with a copy."""
        return rows * ((2 * work.prompt_tokens.longest + limit) * cached + 2 * size * text.vocab_size)

    prefixes = work.pivots * typical * cached
    kept = place(int(prefixes), config.circuit.cache_gib, free_bytes("cpu"), None).where == "device"
    step = 2 * config.circuit.batch * longest * cached
    a_layer = [size * _activations(layer, text) for layer in parts.layers]
    again = config.update.gradient_checkpointing
    held = max(a_layer) + size * text.hidden_size * len(a_layer) if again else sum(a_layer)
    weights, trace, circuit, update, evaluate = (
        round(taken / 2**30, 3)
        for taken in (
            parameters * size,
            writing(config.traces.batch, config.traces.max_new_tokens),
            (prefixes if kept else 0) + step,
            min(config.update.batch * longest, max(longest, *TOKENS.values())) * held,
            writing(config.evaluation.batch, work.answer_tokens),
        )
    )
    over = f"all prefixes take {prefixes / 2**30:.1f}, over circuit.cache_gib, so each step reads its own again"
    notes = {
        "weights": " (as float32; half as much where model.dtype auto comes to bfloat16)"
        if config.model.dtype == "auto"
        else "",
        "circuit": f" ({'keys and values of all prefixes' if kept else over})",
        "update": " (activations of one layer at a time)" if again else " (activations)",
    }
    peak = round(weights + max(trace, circuit, update, evaluate), 3)
    return Memory(weights, trace, circuit, update, evaluate, peak, notes)


def _activations(layer: "Layer", text: Any) -> float:
    """Numbers that the backward pass keeps for one token of one layer: what goes into and out of each product."""
    from cca.model.experts import is_experts

    heads = layer.query.rows.numel() + layer.key.rows.numel() + layer.value.rows.numel()
    neurons = 0.0
    for part in layer.feed_forward:
        active = 1.0
        if is_experts(part.down):
            active = text.num_experts_per_tok / part.down.get_parameter("gate_up_proj").shape[0]
        neurons += len(part.up) * active
    return 6 * text.hidden_size + 4 * heads + 4 * neurons


def _work(config: Config, groups: Sequence[_Group], lengths: Sequence[Sequence[int]]) -> Work:
    splits = Counter[str]()
    for group in groups:
        splits[group.split] += group.size
    tokens = sum(sum(found) / len(found) * group.size for found, group in zip(lengths, groups, strict=True))
    traced = splits["train"] + splits["validation"]
    return Work(
        problems=dict(splits),
        prompt_tokens=PromptTokens(tokens / splits.total(), max(max(found) for found in lengths)),
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
