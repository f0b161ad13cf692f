"""Write the traces and pivots of a run as Parquet, and its pivots as preferences, which trl's DPO and KTO take."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCardData

from cca.errors import InputError, install_command
from cca.evaluation.pivot_kinds import between
from cca.io import write_text
from cca.model.checkpoint import made_whole
from cca.problems.prompts import Prompter
from cca.records import Pivot, Problem, Trace, TracePair, problem_of
from cca.run.run import Run
from cca.run.share.card import PAPER, TAGS, shown_name

TABLES = {
    "traces": "every greedy and sampled trace, graded",
    "pivots": "the token at which each pair of traces turns, and how both tokens go on",
    "preferences_at_pivot": "prompt and trace up to the pivot; chosen and rejected go on from there with the desired "
    "and the undesired token",
    "preferences_whole": "prompt; chosen and rejected are the right and the wrong trace of the same problem",
}


class Written(NamedTuple):
    """Rows of each table; pairs that are in no preferences, since one side was cut; and rows of preferences whose text
    the tokenizer does not make into the tokens that the model wrote."""

    rows: dict[str, int]
    cut: int
    respelled: int


def export_datasets(run: Run, out: Path, called: str = "FOLDER") -> Written:
    """Write a folder that ``datasets.load_dataset`` reads, with one configuration for each of `TABLES`.

    Each has the splits of the run's problems (train and validation). called: what its README.md loads it as.

    Raises:
        InputError: pyarrow is not installed, the run has no pivots yet, or `out` exists or cannot be written.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(f"Parquet needs pyarrow; install it with: {install_command('pyarrow')}") from error
    if not run.folder.finished("pivots"):
        raise InputError(f"{run.folder.path} has no pivots yet; find them with: cca pivots {run.folder.path}")
    run.folder.verify(("trace", "pivots"))
    problems = {p.id: p for p in run.problems}
    pairs = run.folder.read("traces.jsonl", TracePair)
    prompter = run.prompter
    tables: dict[str, list[dict[str, Any]]] = {
        "traces": [
            _trace(prompter, pair, kind, trace, problems) for pair in pairs for kind, trace in pair.by_kind().items()
        ],
        "pivots": [
            _pivot(prompter, p, problem_of(p, problems, "pivots.jsonl"), p.counts(run.config.pivots.gap))
            for p in run.found_pivots()
        ],
    }
    preferences = _preferences(prompter, run.pivots(), pairs, problems)
    whole = {name: [row for row in rows if not row.pop("cut")] for name, rows in preferences.items()}
    cut = sum(map(len, preferences.values())) - sum(map(len, whole.values()))
    respelled = sum(not row["same_tokens"] for rows in whole.values() for row in rows)
    found = Written({name: len(rows) for name, rows in (tables | whole).items()}, cut, respelled)
    with made_whole(out) as temporary:
        files = {name: _write(temporary, name, rows) for name, rows in (tables | whole).items()}
        write_text(temporary / "README.md", _card(run, found, files, called))
    return found


# ---- rows ----


def _trace(
    prompter: Prompter, pair: TracePair, kind: str, trace: Trace, problems: Mapping[str, Problem]
) -> dict[str, Any]:
    problem = problem_of(pair, problems, "traces.jsonl")
    return {
        **_of(problem),
        "kind": kind,
        "correct": trace.correct,
        "answer": trace.answer,
        "cut": trace.cut,
        "text": trace.text,
        "prompt": _spelled(prompter, pair.prompt),
        "prompt_tokens": list(pair.prompt),
        "tokens": list(trace.tokens),
    }


def _pivot(prompter: Prompter, pivot: Pivot, problem: Problem, counts: bool) -> dict[str, Any]:
    known = asdict(pivot)
    return {
        **_of(problem),
        "method": pivot.method,
        "counts": counts,
        "kind": between(pivot, prompter, problem.answer).kind,
        "prefix": _spelled(prompter, pivot.prefix),
        "desired": _spelled(prompter, [pivot.desired]),
        "undesired": _spelled(prompter, [pivot.undesired]),
        "after_desired": _spelled(prompter, pivot.after_desired),
        "after_undesired": _spelled(prompter, pivot.after_undesired),
        **{f"{name}_tokens": list(known[name]) for name in ("prefix", "after_desired", "after_undesired")},
        "desired_token": pivot.desired,
        "undesired_token": pivot.undesired,
        **{
            name: known[name]
            for name in (
                "position", "greedy_correct", "on_slip", "samples", "right_after_desired", "right_after_undesired"
            )
        },
    }  # fmt: skip


def _preferences(
    prompter: Prompter, pivots: Sequence[Pivot], pairs: Iterable[TracePair], problems: Mapping[str, Problem]
) -> dict[str, list[dict[str, Any]]]:
    """At each pivot, and of the whole traces that each was found in."""
    by_problem = {pair.problem: pair for pair in pairs}
    at_pivot: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for pivot in pivots:
        problem = problem_of(pivot, problems, "pivots.jsonl")
        written = pivot.prefix[len(pivot.prefix) - pivot.position :]
        sides = (pivot.after_desired or (pivot.desired,)), (pivot.after_undesired or (pivot.undesired,))
        cut = any(prompter.trace(problem, (*written, *side)).cut for side in sides)
        at_pivot.append(_preference(prompter, problem, pivot.prefix, *sides, cut))
        pair = by_problem[pivot.problem]
        assert pair.sampled is not None
        right, wrong = sorted((pair.greedy, pair.sampled), key=lambda trace: not trace.correct)
        whole.append(_preference(prompter, problem, pair.prompt, right.tokens, wrong.tokens, right.cut or wrong.cut))
    return {"preferences_at_pivot": at_pivot, "preferences_whole": whole}


def _preference(
    prompter: Prompter,
    problem: Problem,
    prompt: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    cut: bool,
) -> dict[str, Any]:
    texts = [_spelled(prompter, prompt), *(_rest(prompter, prompt, side) for side in (chosen, rejected))]
    encoded = [prompter.tokenizer.encode(texts[0] + more) for more in ("", *texts[1:])]
    return {
        "prompt": texts[0],
        "chosen": texts[1],
        "rejected": texts[2],
        **_of(problem),
        "same_tokens": encoded == [[*prompt], [*prompt, *chosen], [*prompt, *rejected]],
        "cut": cut,
    }


def _of(problem: Problem) -> dict[str, Any]:
    return {
        "problem": problem.id,
        "template": problem.template,
        "split": problem.split,
        "question": problem.question,
        "gold": problem.answer,
    }


def _spelled(prompter: Prompter, tokens: Sequence[int]) -> str:
    """The text of `tokens`, special ones included, but for those that the tokenizer begins each text with itself."""
    begins = prompter.tokenizer.encode("")
    ends = len(begins) and prompter.tokenizer.eos_token_id == begins[-1]
    start = len(begins) - bool(ends)
    if start and list(tokens[:start]) == begins[:start]:
        tokens = tokens[start:]
    return prompter.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)


def _rest(prompter: Prompter, start: Sequence[int], more: Sequence[int]) -> str:
    """What `more` adds to the text of `start`: a token decoded alone may lose its space, or be part of a character."""
    whole, before = _spelled(prompter, (*start, *more)), _spelled(prompter, start)
    return whole[len(before) :] if whole.startswith(before) else _spelled(prompter, more)


# ---- files ----


def _write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A file of each split that has rows: split -> path within `folder`."""
    import pyarrow as pa
    from pyarrow import parquet

    files: dict[str, str] = {}
    for split in sorted({row["split"] for row in rows}):
        mine = [{key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split]
        files[split] = f"{name}/{split}.parquet"
        (folder / name).mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(mine), folder / files[split])
    return files


_CODE = """```python
from datasets import load_dataset

preferences = load_dataset({}, "preferences_at_pivot", split="train")  # for trl's DPOTrainer and KTOTrainer
```"""


def _card(run: Run, found: Written, files: Mapping[str, Mapping[str, str]], called: str) -> str:
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in of.items()]}
        for name, of in files.items()
        if of
    ]
    model, source = shown_name(run.config.model.path), shown_name(run.config.problems.source)
    data = DatasetCardData(
        tags=[*TAGS, "dpo", "preference"],
        task_categories=["text-generation"],
        configs=configs,
        pretty_name=f"Traces and pivots of {model}",
    )
    confirmed = "; of those not confirmed by samples `counts` is false" if run.config.pivots.confirm else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Traces and pivots of {model}",
        f"What {model} wrote on problems of `{source}`, graded by `{run.config.problems.grader}`, and the tokens at "
        f"which its reasoning turns ({run.config.pivots.method} method{confirmed}), by Constructive Circuit "
        f"Amplification ({PAPER}).",
        "\n".join(f"- `{name}` ({found.rows[name]:,} rows): {what}." for name, what in TABLES.items()),
        _CODE.format(repr(called) if "/" in called else called),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(found)),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(found: Written) -> Iterator[str]:
    yield "Right and wrong are what the grader says. Problems that test the update are not in here."
    yield (
        "Texts hold special tokens as the model saw them, but for those that the tokenizer begins a text with: give "
        "them to a trainer as text, not as a conversation. trl ends each side with the tokenizer's end token where "
        "it does not end so already."
    )
    if found.respelled:
        yield (
            f"Of {found.respelled:,} preferences the tokenizer makes the texts into other tokens than the model wrote "
            "(`same_tokens` is false); the tokens themselves are in `traces` and `pivots`."
        )
    if found.cut:
        yield f"{found.cut:,} pairs are in no preferences, since the limit of tokens cut a side."
