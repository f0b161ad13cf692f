"""What the updates of finished runs do to other problems than theirs, such as GSM8K's test questions.

    python experiments/elsewhere.py gsm8k_test.jsonl runs/compare/0/* -n 500 --out answers

Asks the base model, and each run's updated one, with the run's prompt and limit of tokens, and sets the result beside
that on all problems which had no part in the update: these, and the run's own of test and held-out templates. Questions
of a run's own training or validation are refused. Answers go to OUT, a file for each model, prompt, update and choice
of problems, and are not asked for again.
"""

import argparse
import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from cca.controls.load import load_intervention
from cca.errors import InputError
from cca.evaluation import stats
from cca.evaluation.pooling import answers_of, clusters_of, outcomes
from cca.evaluation.scores import answer
from cca.folder import RunFolder
from cca.method.traces import TRACED, by_length
from cca.problems.load import load_problems
from cca.records import Problem, Score, Which
from cca.run.run import Run
from cca.show.tables import points


def drawn(source: str, n: int, seed: int, runs: list[Run]) -> list[Problem]:
    """`n` of the problems of `source`, in its order.

    Raises:
        InputError: one of them was used to train or choose an update.
    """
    found = load_problems(source)
    chosen = sorted(np.random.default_rng(seed).permutation(len(found))[:n]) if n < len(found) else range(len(found))
    problems = [found[i] for i in chosen]
    questions = {p.question for p in problems}
    for run in runs:
        if used := [p.id for p in run.problems if p.split in TRACED and p.question in questions]:
            raise InputError(f"{source}: {len(used)} questions are of {run.folder.path}'s training, such as {used[0]}")
    return problems


def name_of(run: Run, which: Which, *asked: object) -> str:
    """Of a file with what one model made of `asked`: another for each model, update and question."""
    change = run.folder.final_delta().read_bytes() if which == "updated" else b""
    key = hashlib.sha256(repr((run.model.revision, *asked)).encode() + change)
    label = "-".join(run.folder.path.resolve().parts[-2:]) if which == "updated" else "base"
    return f"{label}-{key.hexdigest()[:12]}"


def put_on(run: Run, which: Which) -> AbstractContextManager[None]:
    """Within the context the run's network is the one of the two models."""
    network = run.model.network
    if which == "base":
        return nullcontext()
    return load_intervention(run.folder.final_delta(), network.device).active(network)


def answers(run: Run, problems: list[Problem], out: Path, which: Which) -> list[Score]:
    """The answers of one model; those that stand in `out` already are not asked for again."""
    folder = RunFolder(out, {"stages": {}})
    prompts = [run.prompter.prompt(p) for p in problems]
    name = f"{name_of(run, which, run.config.answer_limit.tokens, prompts)}.jsonl"
    there = {score.problem: score for score in folder.recover(name, Score)}
    left = by_length([p for p in problems if p.id not in there], run.prompter)
    with put_on(run, which):
        fresh = answer(
            run.model.engine,
            run.prompter,
            left,
            model=which,
            max_new_tokens=run.config.answer_limit.tokens,
            slots=run.config.evaluation.batch,
            done=lambda score: folder.append(name, [score]),
        )
    there |= {score.problem: score for score in fresh}
    return [there[p.id] for p in problems]


def with_its_own(run: Run, here: stats.Outcomes) -> str:
    """The change on `here` and on the run's own problems of test and held-out templates together."""
    if not run.folder.finished("evaluate"):
        return "not evaluated"
    own = answers_of(run.folder)
    mine = [outcomes(own.by_split[split], own.clusters) for split in ("test", "held_out") if split in own.by_split]
    found = stats.pooled([here, *mine], seed=0)
    return f"{found.n:,}: {points(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="as problems.source of a config")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished up to the update, of one model")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of problems")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = [Run.load(path) for path in options.runs]
    problems = drawn(options.source, options.n, options.seed, runs)
    options.out.mkdir(parents=True, exist_ok=True)
    base = answers(runs[0], problems, options.out, "base")
    print(f"base: {stats.accuracy([score.correct for score in base]).value:.1%} of {len(base)}")
    print(
        "\n| update | accuracy | points (95%) | gained / lost | sign-flip p | with its own problems |\n"
        + "| --- " * 6
        + "|"
    )
    for run in runs:
        run.use(runs[0].model)
        updated = answers(run, problems, options.out, "updated")
        here = outcomes(list(zip(base, updated, strict=True)), clusters_of(problems))
        found = stats.pooled([here], seed=0)
        print(
            f"| {run.folder.path} | {found.updated:.1%} | {points(found)} | {found.gained} / {found.lost} | "
            f"{found.sign_flip_p:.2g} | {with_its_own(run, here)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
