"""Stage 1a of a run: problems, and a pair of traces for each."""

import reprlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cca.errors import InputError
from cca.grading.graders import NAMES
from cca.method.traces import TRACED, Traces, by_length, cut_note, cut_off, share_cut, trace_pairs
from cca.model.checks import check_model
from cca.problems.sources import Source
from cca.problems.splits import describe_splits, how_split
from cca.records import Problem, TracePair
from cca.run.journal import Keep, journalled
from cca.run.plan import check_weights_fit, memory_at_start
from cca.run.plan_memory import lacking, said
from cca.run.problems import check_fit, draw_problems, target_source
from cca.run.run import Run
from cca.run.writing import traces_of


def work(run: Run) -> None:
    """Write problems.jsonl and traces.jsonl."""
    options, seed = run.config.traces, run.config.seed
    # what a begun run asks stays what it was, whatever became of the source
    begun = run.folder.read("problems.jsonl", Problem) if "problems" in run.folder.manifest else []
    problems = begun or _draw(run)
    engine = run.model.engine
    if not engine.own_streams:
        run.warn(
            "trace",
            f"samples are drawn by {engine.name} {engine.version}, whose random numbers are its own: they are others "
            "than those of engine.name=transformers, and so may be the pivots",
        )
    if not begun:
        run.folder.write("problems.jsonl", problems)
    traced = [p for p in problems if p.split in TRACED]
    writing = traces_of(run, traced)

    def draw(left: list[Problem], keep: Keep[TracePair]) -> None:
        trace_pairs(engine, run.prompter, left, options, seed, lambda pair: keep([pair]), writing.watch)

    pairs = journalled(
        run.folder,
        run.display,
        "trace",
        "traces.jsonl",
        TracePair,
        {problem.id: problem for problem in by_length(traced, run.prompter)},
        lambda pair: pair.problem,
        draw,
        each=1,
        shown=_shown,
        writing=writing,
    )
    found = Traces(tuple(pairs), {}, options)
    if said := cut_off(found.cut, options.max_new_tokens):
        run.warn("trace", said)


def _draw(run: Run) -> list[Problem]:
    """The problems of the run, checked and described in its manifest.

    Raises:
        InputError: they cannot be drawn or asked, or are not those that the folder holds already.
    """
    config, source = run.config, target_source(run.config)
    problems = draw_problems(config, source)
    if (before := run.folder.read("problems.jsonl", Problem)) and before != problems:
        raise InputError(
            f"the problems of {source.name} are not those of {run.folder.path}; put that source back, or begin anew "
            f"with: cca trace {run.folder.path} --redo"
        )
    model_config = check_model(config.model.path, trust_remote_code=config.model.trust_remote_code, weights=False)
    check_fit(config, ((p.split, run.prompter.prompt(p)) for p in problems), model_config)
    _check_grader(run, problems, source)
    check_stop(run, problems)
    _check_examples(run, source)
    unused = len(source.rows) - sum(p.skill is None for p in problems)
    if source.is_rows and unused:
        run.warn(
            "trace",
            f"{unused} of the {len(source.rows)} problems of {source.name} are not used: of each template at most "
            "problems.train, problems.validation and problems.test are taken; raise them to use all",
        )
    # there can be no more pivots than problems; better said now than after hours
    config.circuit.check_reach(sum(p.split == "train" for p in problems))
    _say_memory(run, model_config, problems)
    sizes = describe_splits(problems, source.name, how_split(source, config.problems.split_by))
    run.folder.manifest["problems"] = asdict(sizes)
    return problems


def _say_memory(run: Run, model_config: Any, problems: list[Problem]) -> None:
    """Say what the stages will hold, before weights are there to hold.

    Raises:
        InputError: the weights alone do not fit.
    """
    if "model" in vars(run):  # loaded by the caller, so that what is free is without it
        return
    memory = memory_at_start(run.config, model_config, run.prompter, problems)
    check_weights_fit(run.config, memory)
    run.display.say(f"memory: {said(memory)}")
    if lacks := lacking(memory, run.config):
        run.warn("trace", f"memory may be too little: {lacks}")


def _shown(pairs: Sequence[TracePair]) -> tuple[str, str]:
    right = sum(pair.greedy.correct for pair in pairs) / len(pairs)
    cut = cut_note(share_cut(pair.greedy for pair in pairs))
    opposite = sum(p.sampled is not None for p in pairs)
    return "greedy traces", f"{right:.1%} right{cut}, {opposite:,} with an opposite sample"


def _check_grader(run: Run, problems: list[Problem], source: Source) -> None:
    """Warn of problems to which no answer is right, or not their own solution, so that nothing can be learned there."""
    grade, name = run.prompter.grade, run.config.problems.grader
    wrong = [p for p in problems if not grade(p, p.solution).correct]
    # a function of the user's may look for something else than ####
    unread = [p for p in wrong if name in NAMES and not grade(p, f"#### {p.answer}").correct]
    others = " or ".join(other for other in ("math-verify", "exact") if other != name)
    if unread and sum(p.split == "train" for p in unread) == sum(p.split == "train" for p in problems):
        raise InputError(
            f"the grader {name} cannot read the gold answer of any training problem of {source.name}, such as "
            f"{reprlib.repr(unread[0].answer)}, so there is nothing to learn; set problems.grader to {others}, or mend "
            "the answers"
        )
    _warn(
        run,
        unread,
        f"the grader cannot read the gold answers of {len(unread):,} of {len(problems):,} problems, so no answer to "
        f"them is right; set problems.grader to {others}, or mend the answers",
    )
    lost = {p.id for p in unread}
    wrong = [p for p in wrong if p.id not in lost]
    _warn(
        run,
        wrong,
        f"the grader takes the own solutions of {len(wrong):,} of {len(problems):,} problems for wrong; choose another "
        "problems.grader, or mend the answers"
        + (f" (cca problems {source.name} --check names them)" if source.is_rows else ""),
    )


def _warn(run: Run, problems: list[Problem], message: str) -> None:
    if problems:
        run.warn("trace", f"{message}; the first is {problems[0].id} (gold {reprlib.repr(problems[0].answer)})")


def check_stop(run: Run, problems: list[Problem]) -> None:
    """Warn of stop strings that stand in worked solutions: an answer written like them would end before its result."""
    prompter = run.prompter
    shown = [i for i, example in enumerate(prompter.examples, 1) if prompter.cut(example.solution) != example.solution]
    if shown:
        run.warn(
            "trace", f"worked example {shown[0]} has a string of prompt.stop, so that answers like it are cut there"
        )
    cut = [p for p in problems if prompter.cut(p.solution) != p.solution and prompter.grade(p, p.solution).correct]
    lost = [p for p in cut if not prompter.grade(p, prompter.cut(p.solution)).correct]
    _warn(
        run,
        lost,
        f"prompt.stop ends the own solutions of {len(lost):,} of {len(problems):,} problems before their answer; leave "
        "out of prompt.stop what they contain",
    )


def _check_examples(run: Run, source: Source) -> None:
    """Warn of problems that are left out since the prompt's examples give their answers."""
    if source.left_out:
        some = ", ".join(source.left_out[:3]) + " ..." * (len(source.left_out) > 3)
        run.warn(
            "trace",
            f"prompt.examples {run.config.prompt.examples} shows {len(source.left_out)} of the problems ({some}); they "
            "are left out",
        )
