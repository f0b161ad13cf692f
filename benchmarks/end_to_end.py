"""All of the method's stages on a few problems, by the plain methods and by the library; then a whole `cca run`.

Both are really run, on the same problems with the same random numbers, and must give the same traces and pivots, and
the same gates and deltas but for rounding. Plain: `model.generate` for a greedy trace, a token at a time with the
model's own cache for a sampled one, and the references of the tests for all else, with 64 prefixes of a trace at once
for pivots. Evaluation is writing, which is timed on its own. `cca run` has no plain counterpart: its lines say what its
stages took.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import work
from lines import Line, Setting, part
from timing import Kept, compared, environment, in_turns
from torch import Tensor
from transformers import DynamicCache

from cca.method.circuit import learn_gates
from cca.method.options import CircuitOptions, TraceOptions, UpdateOptions
from cca.method.update import train
from cca.model.cache import cache_argument
from cca.model.delta import Delta
from cca.model.open import Model
from cca.model.sampling import pick, stream
from cca.records import Pivot, Problem, Trace, TracePair

TRACES = TraceOptions(samples=4, skip_solved=0)
GATES = CircuitOptions(penalty=0.05, learning_rate=0.05, epochs=2, min_steps=12, patience=50.0)
STEPS = UpdateOptions(loss="linear", learning_rate=0.01, steps=2, validate_every=2)
RUN = """
[problems]
templates = [12, 62, 0, 46, 58]
train = 5
validation = 3
test = 3
[traces]
skip_solved = 0
[circuit]
lambda = 0.1
learning_rate = 0.1
epochs = 10
min_steps = 0
[update]
steps = 2
validate_every = 1
[evaluation]
transfer = ["chain_sum"]
retention = ["leg_counting"]
per_skill = 3
drift_problems = 3
"""


@torch.no_grad()
def sampled(model: Model, prompt: Sequence[int], temperature: float, uniforms: Tensor) -> list[int]:
    """A sample, a token at a time with the model's own cache."""
    cache, tokens, ids = DynamicCache(), list[int](), list(prompt)
    while len(tokens) < len(uniforms) and not (tokens and tokens[-1] in model.end_tokens):
        known = cache_argument(model.network, cache)
        logits = model.network(input_ids=torch.tensor([ids]), **known, use_cache=True).logits[:, -1]
        ids = [int(pick(logits, temperature, uniforms[len(tokens)][None]))]
        tokens += ids
    return tokens


def plain_pair(model: Model, problem: Problem) -> TracePair:
    import reference

    prompt, options = model.prompter.prompt(problem), TRACES
    empty = TracePair(problem.id, problem.split, problem.template, prompt, Trace((), "", "", False), None, 0, None)
    (written,) = reference.completions(model.network, model.prompter, empty, [()], options.max_new_tokens)
    greedy, opposite, drawn = model.prompter.trace(problem, written), None, 0
    temperature = options.temperature_if_correct if greedy.correct else options.temperature_if_wrong
    for drawn in range(1, options.samples + 1):
        uniforms = torch.from_numpy(stream(0, problem.id, drawn - 1).random(options.max_new_tokens))
        found = model.prompter.trace(problem, sampled(model, prompt, temperature, uniforms))
        if found.correct is not greedy.correct:
            opposite = found
            break
    reason = None if opposite else "no_opposite"
    return TracePair(problem.id, problem.split, problem.template, prompt, greedy, opposite, drawn, reason)


def plain_gates(model: Model, pivots: Sequence[Pivot]) -> Tensor:
    import reference

    gates = torch.ones(model.components.size, requires_grad=True)
    adam = torch.optim.Adam([gates], lr=GATES.learning_rate)
    for epoch in range(GATES.epochs):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(GATES.passes(len(pivots))):
            order = torch.randperm(len(pivots), generator=generator).tolist()
            for rows in (order[i : i + GATES.batch] for i in range(0, len(order), GATES.batch)):
                with reference.projections_gated(model.network, model.components, gates):
                    loss = reference.pivot_loss(model.network, [pivots[i] for i in rows])
                    gates.grad = torch.autograd.grad(loss, gates)[0] + GATES.penalty
                adam.step()
                gates.data.clamp_(0, 1)
    return gates.detach()


def plain_delta(model: Model, pivots: Sequence[Pivot]) -> dict[str, Tensor]:
    """The weights change, and are put back."""
    import reference

    rows, network = work.a_circuit(model), model.network
    before = {name: network.get_parameter(name).detach().clone() for name in rows}
    assert isinstance(STEPS.learning_rate, float)
    reference.descend_weights(network, rows, pivots, STEPS.learning_rate, STEPS.steps)
    changed = {name: (network.get_parameter(name) - before[name])[rows[name]].detach() for name in rows}
    for name, weight in before.items():
        network.get_parameter(name).data.copy_(weight)
    return changed


class Stages:
    """The stages of one method after one another, each on what the stage before gave."""

    def __init__(self, model: Model, problems: Sequence[Problem]):
        self.model, self.problems = model, problems
        self.by_id = {p.id: p for p in problems}

    def cca_traces(self) -> list[TracePair]:
        return work.traces(self.model, self.problems, TRACES)

    def plain_traces(self) -> list[TracePair]:
        return sorted((plain_pair(self.model, p) for p in self.problems), key=lambda pair: pair.problem)

    def cca_pivots(self, pairs: list[TracePair]) -> list[Pivot]:
        return work.Traced(self.model, self.by_id, pairs, TRACES).search(pairs)

    def plain_pivots(self, pairs: list[TracePair]) -> list[Pivot]:
        import reference

        network, prompter, limit = self.model.network, self.model.prompter, TRACES.max_new_tokens
        return [
            reference.branching_pivot(network, prompter, pair, self.by_id[pair.problem], limit, group=64)[0]
            for pair in pairs
        ]

    def cca_gates(self, pivots: list[Pivot]) -> Tensor:
        return learn_gates(self.model.network, self.model.components, pivots, GATES).gates

    def cca_delta(self, pivots: list[Pivot]) -> dict[str, Tensor]:
        zeros = Delta.zeros(self.model, work.a_circuit(self.model))
        trained = train(self.model.network, zeros, pivots, [], None, STEPS)
        return dict(trained.intervention.parameters)


def places(pivots: Sequence[Pivot]) -> list[Any]:
    return [(p.prefix, p.desired, p.undesired) for p in pivots]


def chain(model: Model, problems: Sequence[Problem]) -> Iterator[Line]:
    """Both methods, a stage after the other; each stage's results must be the same."""
    stages, seconds = Stages(model, problems), {"plain": 0.0, "cca": 0.0}

    def both(what: str, plain: Callable[[], Any], cca: Callable[[], Any]) -> tuple[Line, Any, Any]:
        methods = {"plain": Kept(plain), "cca": Kept(cca)}
        times = in_turns(methods, 1, warm=False)
        for method in seconds:
            seconds[method] += times[method].least
        return compared(what, times["plain"], times["cca"]), methods["plain"].found, methods["cca"].found

    stages.cca_traces()  # a warm-up
    line, one, pairs = both(f"{len(problems)} problems: traces", stages.plain_traces, stages.cca_traces)
    assert [(p.greedy, p.sampled) for p in one] == [(p.greedy, p.sampled) for p in pairs], "other traces"
    yield line
    pairs = [pair for pair in pairs if pair.sampled]
    line, one, pivots = both("pivots", lambda: stages.plain_pivots(pairs), lambda: stages.cca_pivots(pairs))
    assert places(one) == places(pivots), "other pivots"
    yield line
    line, one, gates = both("circuit", lambda: plain_gates(model, pivots), lambda: stages.cca_gates(pivots))
    assert float((one - gates).abs().mean()) < 1e-3, "other gates"
    yield line
    line, one, delta = both("update", lambda: plain_delta(model, pivots), lambda: stages.cca_delta(pivots))
    for name, values in delta.items():
        torch.testing.assert_close(values, one[name], atol=1e-5, rtol=1e-3)
    yield line
    note = f"{len(pivots)} pivots; {GATES.epochs} epochs of the circuit, {STEPS.steps} steps of the update"
    yield Line("all of them", seconds["cca"], seconds["plain"], note=note)


def run() -> Iterator[Line]:
    """What a small run of the bundled model takes, by stage."""
    with tempfile.TemporaryDirectory() as temporary:
        config, out = Path(temporary) / "config.toml", Path(temporary) / "run"
        config.write_text(RUN, encoding="utf-8")
        command = [sys.executable, "-m", "cca.cli", "run", str(config), "--out", str(out), "--quiet"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    for stage, seconds in manifest["seconds"].items():
        yield Line(f"cca run, {stage}", seconds, note=f"{manifest['peak_gib'][stage]:.2f} GiB in all")


def lines(setting: Setting) -> Iterator[Line]:
    yield from chain(work.bundled(), work.problems(setting.of(12, 2), 1))
    if not setting.quick:
        yield from run()


if __name__ == "__main__":
    part(__doc__, lines)
