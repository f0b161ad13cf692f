"""Stage 1a of a run: problems, and a pair of traces for each."""

from collections.abc import Sequence

from cca.method.traces import chunks, trace_chunk
from cca.model.open import check_model, check_prompts
from cca.problems.splits import describe_splits, how_split
from cca.records import Problem, TracePair
from cca.run.workspace import Workspace, make_problems, open_problems


def trace(run: Workspace) -> None:
    """Write problems.jsonl and traces.jsonl."""
    options, path = run.config.traces, run.config.model.path
    problems = make_problems(run.config)
    check_prompts(
        [run.prompter.prompt(p) for p in problems],
        options.max_new_tokens,
        check_model(path, trust_remote_code=run.config.model.trust_remote_code),
        path,
    )
    _check_grader(run, problems)
    model = run.loaded.network
    run.folder.write("problems.jsonl", problems)
    section = run.config.problems
    run.folder.manifest["problems"] = {
        "source": section.source,
        "split_by": how_split(open_problems(section), section.split_by),
        "splits": describe_splits(problems),
    }
    traced = [p for p in problems if p.split in ("train", "validation")]

    def work(chunk: list[Problem]) -> list[TracePair]:
        return trace_chunk(
            model,
            run.prompter,
            chunk,
            samples=options.samples,
            temperature_if_correct=options.temperature_if_correct,
            temperature_if_wrong=options.temperature_if_wrong,
            max_new_tokens=options.max_new_tokens,
            seed=run.config.seed,
        )

    groups = list(chunks(traced, run.prompter, options.batch))
    run.in_chunks("trace", "traces.jsonl", TracePair, groups, lambda problem: problem.id, work, each=1, shown=_shown)


def _shown(pairs: Sequence[TracePair]) -> tuple[str, str]:
    right = sum(pair.greedy.correct for pair in pairs) / len(pairs)
    return "greedy traces", f"{right:.1%} right, {sum(p.sampled is not None for p in pairs):,} with an opposite sample"


def _check_grader(run: Workspace, problems: list[Problem]) -> None:
    """Warn of problems whose own worked solution the grader would take for wrong: nothing can be learned there."""
    wrong = [p for p in problems if not run.prompter.grade(p, p.solution).correct]
    if wrong:
        p = wrong[0]
        run.warn(
            "trace",
            f"the grader takes the own solutions of {len(wrong)} of {len(problems)} problems for wrong, such as {p.id} "
            f"(gold {p.answer!r}); choose another problems.grader, or mend their answers",
        )
