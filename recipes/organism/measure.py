"""Measure a trained organism: greedy accuracy where the right way prevails and where a slip does, pass@10, skills.

    python recipes/organism/measure.py MODEL [--per-template 10] [--seed 100]

Problems are drawn from the reserved fifth with a seed of their own. Prints JSON.
"""

import argparse
import json
from pathlib import Path

from cca.evaluation.scores import answer_chunk
from cca.evaluation.stats import accuracy
from cca.method.traces import chunks, sample
from cca.model.bundled import planted_slips
from cca.model.open import Model, open_model
from cca.model.read import prefill
from cca.problems.skills import SKILLS
from cca.problems.splits import ProblemOptions, build_problems, chosen_source
from cca.records import Problem

LIMIT = 160


def pass_at(model: Model, problems: list[Problem], samples: int, temperature: float) -> list[bool]:
    """Whether at least one of `samples` sampled traces is correct, per problem."""
    solved, prompter = [], model.prompter
    for chunk in chunks(problems, prompter, 24):
        read = prefill(model.network, [prompter.prompt(p) for p in chunk])
        draws = [(i, n) for i in range(len(chunk)) for n in range(samples)]
        written = sample(model.network, prompter, chunk, read, draws, temperature, LIMIT, seed=0)
        right = [prompter.trace(chunk[i], tokens).correct for (i, _), tokens in zip(draws, written, strict=True)]
        solved += [any(right[i * samples : (i + 1) * samples]) for i in range(len(chunk))]
    return solved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--per-template", type=int, default=10)
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    model = open_model(options.model, device="cpu")
    planted = planted_slips(str(options.model))
    drawn = ProblemOptions(train=1, validation=1, test=options.per_template, held_out=0.0)
    problems = build_problems(
        chosen_source(drawn),
        drawn,
        retention=tuple(SKILLS),
        per_skill=60,
        seed=options.seed,
    )
    tested = [p for p in problems if p.split not in ("train", "validation")]
    scores = [
        score
        for chunk in chunks(tested, model.prompter, 128)
        for score in answer_chunk(model.network, model.prompter, chunk, model="base", max_new_tokens=LIMIT)
    ]
    groups: dict[str, list[bool]] = {}
    for score in scores:
        names = [score.set.name]
        if score.split == "test":
            share = planted.get(score.template, {"share": 0})["share"]
            names.append("slip prevails" if share > 0.5 else "right way prevails")
        for name in names:
            groups.setdefault(name, []).append(score.correct)
    groups["pass@10 at 0.8"] = pass_at(model, [p for p in tested if p.split == "test"], 10, 0.8)
    found = {name: accuracy(correct) for name, correct in groups.items()}
    print(
        json.dumps({n: {"n": a.n, "accuracy": round(a.value, 4), "ci95": a.ci95} for n, a in found.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
