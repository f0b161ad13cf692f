"""Worked examples for few-shot prompts: from lm-evaluation-harness, or from a file of one's own."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import yaml

from cca.errors import InputError, install_command
from cca.problems.formats import Record, json_lines
from cca.problems.prompts import Example, PromptOptions
from cca.problems.rows import cell_text

LM_EVAL = "lm-eval:"


def load_examples(options: PromptOptions) -> tuple[Example, ...]:
    """The first `shots` examples of ``lm-eval:TASK`` or of a JSON-lines file, their solutions rewritten by `replace`.

    Raises:
        InputError: as the functions below.
    """
    source, count = options.examples, options.shots
    if not count:
        return ()
    if source.startswith(LM_EVAL):
        found = _lm_eval_examples(source.removeprefix(LM_EVAL), count)
    else:
        found = _file_examples(Path(source), count)
    return _rewritten(found, options.replace, source) if options.replace else found


def _rewritten(examples: tuple[Example, ...], others: Mapping[str, str], source: str) -> tuple[Example, ...]:
    """All at once, of two that begin at one place the longer, so that their order does not matter.

    Raises:
        InputError: one of the texts is in none of the solutions, or nothing is left of one.
    """
    pattern = re.compile("|".join(re.escape(text) for text in sorted(others, key=len, reverse=True)))
    replaced: set[str] = set()

    def other(match: re.Match[str]) -> str:
        replaced.add(match[0])
        return others[match[0]]

    found = tuple(e._replace(solution=pattern.sub(other, e.solution)) for e in examples)
    for text in others:
        if text not in replaced:
            raise InputError(
                f"prompt.replace has {text!r}, which is in none of the {len(examples)} worked solutions of {source}; "
                f"the first ends with {examples[0].solution[-60:]!r}"
            )
    for number, example in enumerate(found, 1):
        if not example.solution.strip():
            raise InputError(f"prompt.replace leaves nothing of worked solution {number} of {source}; mend it")
    return found


def _lm_eval_examples(task: str, count: int) -> tuple[Example, ...]:
    """What lm-evaluation-harness shows for `task`, read from the installed package, which is neither run nor copied.

    Raises:
        InputError: the package is not installed, or it has no such task or too few examples.
    """
    found = find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"prompt.examples takes {task} from lm-evaluation-harness, which is not installed; "
            f"install it with: {install_command('lm-eval')}"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "tasks"
    files = sorted(folder.glob(f"**/{task.replace('_', '-')}.yaml")) + sorted(folder.glob(f"**/{task}.yaml"))
    if not files:
        raise InputError(f"lm-evaluation-harness has no task {task}; name another in prompt.examples")
    settings = yaml.load(files[0].read_text(encoding="utf-8"), Loader=_Loader)
    samples = (settings.get("fewshot_config") or {}).get("samples") or []
    if not isinstance(samples, list) or len(samples) < count:
        raise InputError(
            f"task {task} of lm-evaluation-harness shows {len(samples)} examples and prompt.shots is {count}; lower it"
        )
    return tuple(Example(str(s["question"]), str(s["target"])) for s in samples[:count])


class _Loader(yaml.SafeLoader):
    """Reads the harness's files without running what its own tags (``!function``) name."""


_Loader.add_multi_constructor("!", lambda *_: None)


def _file_examples(path: Path, count: int) -> tuple[Example, ...]:
    """From a JSON-lines file with ``question`` and ``solution``.

    Raises:
        InputError: the file cannot be read, a line is not such an object, or it has too few.
    """
    remedy = "name lm-eval:TASK or a JSON-lines file"
    found = list(json_lines(path, "prompt.examples", remedy))
    if len(found) < count:
        raise InputError(f"{path} has {len(found)} examples and prompt.shots is {count}; lower it")
    return tuple(Example(_text(record, "question"), _text(record, "solution")) for record in found[:count])


def _text(record: Record, key: str) -> str:
    text = cell_text(record.values.get(key, ""), f"{record.place}: its {key}")
    if not text.strip():
        raise InputError(f'{record.place} has no {key}; an example has "question" and "solution"')
    return text
