"""Measure a trained organism: greedy accuracy where the right way prevails and where a slip does, pass@10, skills.

    python recipes/organism/measure.py MODEL [--per-template 10] [--seed 100]

Problems are drawn from the reserved fifth with a seed of their own. Prints JSON.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from cca.evaluation.scores import answer
from cca.evaluation.stats import accuracy
from cca.model.bundled import planted_slips
from cca.model.generate import Row, write
from cca.model.open import Model, open_model
from cca.model.read import texts
from cca.model.sampling import stream
from cca.problems.skills import SKILLS
from cca.problems.splits import ProblemOptions, build_problems, chosen_source
from cca.records import Problem

LIMIT = 160


def pass_at(model: Model, problems: list[Problem], samples: int, temperature: float) -> list[bool]:
    """Whether at least one of `samples` sampled traces is correct, per problem."""
    prompter, solved = model.prompter, dict.fromkeys([p.id for p in problems], False)

    def ended(problem: Problem, tokens: list[int]) -> tuple[Row, ...]:
        solved[problem.id] |= prompter.trace(problem, tokens).correct
        return ()

    rows = [
        Row(
            text,
            LIMIT,
            temperature=temperature,
            uniforms=stream(0, problem.id, n).random(LIMIT),
            stop=prompter.stop_rule(),
            then=partial(ended, problem),
        )
        for problem, text in zip(problems, texts([prompter.prompt(p) for p in problems]), strict=True)
        for n in range(samples)
    ]
    write(model.network, rows, slots=256, end_tokens=prompter.end_tokens)
    return list(solved.values())


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
    scores = answer(model.engine, model.prompter, tested, model="base", max_new_tokens=LIMIT, slots=128)
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
