"""Graders: those that come with cca by name, a function of the user's, and where two of them disagree."""

import importlib
import reprlib
import sys
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from cca.errors import InputError
from cca.grading.answers import GRADERS, Graded, Grader, final_text
from cca.grading.mathematics import math_verify

NAMES = (*GRADERS, "math-verify", "package.module:function")


def load_grader(grader: str | Callable[[str, str], Any]) -> Grader:
    """The grader of that name, or a function of the user's as a grader; tried once before it is handed out.

    Args:
        grader: ``number``, ``stated``, ``exact``, ``math-verify``, ``package.module:function``, or the function itself.
            A function takes a text and the gold answer and returns whether the text is right, or (the answer that it
            gives, empty where it gives none, whether that is right). A module is found as Python finds it, last in the
            current directory, which stays on the path for what the module imports.

    Returns:
        A grader. Of a user's function it raises InputError where that function raises or returns something else.

    Raises:
        InputError: there is no such grader, or it does not work.
    """
    if not isinstance(grader, str):
        found = _checked(grader, getattr(grader, "__qualname__", type(grader).__name__))
    elif grader == "math-verify":
        found = math_verify
    else:
        found = GRADERS.get(grader) or _checked(_named_function(grader), grader)
    found("#### 1", "1")
    return found


def _named_function(name: str) -> Any:
    """What ``package.module:function`` names."""
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        raise InputError(f"unknown grader {name!r}; use one of {', '.join(NAMES)}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        raise InputError(
            f"grader {name}: importing {module_name} failed ({type(error).__name__}: {error}); "
            "it must be importable from the current directory or installed"
        ) from error
    try:
        return attrgetter(function_name)(module)
    except AttributeError as error:
        where = getattr(module, "__file__", None) or "a package without code"
        raise InputError(f"grader {name}: {module_name} ({where}) has no {function_name}; define it there") from error


def _checked(function: Any, name: str) -> Grader:
    """`function` as a grader; what it raises or returns wrongly becomes an InputError that shows the text."""
    if not callable(function):
        said = name.rpartition(":")[2]
        raise InputError(f"grader {name}: {said} is no function; name one that takes (text, gold)")

    def grade(text: str, gold: str) -> Graded:
        asked = f"for gold {ending(gold)!r} and the text {ending(text)!r}"
        try:
            verdict = function(text, gold)
        except Exception as error:
            cause = f"{type(error).__name__}: {ending(str(error), 200)}"
            raise InputError(f"grader {name} raised {cause}, {asked}; mend it") from error
        match verdict:
            case bool():
                return Graded(final_text(text), verdict)
            case (str(answer), bool(correct)):
                return Graded(answer, correct)
        raise InputError(
            f"grader {name} returned {reprlib.repr(verdict)}, {asked}; return (answer: str, correct: bool) or a bool"
        )

    return grade


def ending(text: str, length: int = 60) -> str:
    """The last `length` characters of `text`, where its answer is."""
    return text if len(text) <= length else "…" + text[-length:]


class Disagreement(NamedTuple):
    """A text that one grader takes for correct and another does not; `end` is the end of the text."""

    id: str
    gold: str
    first: Graded
    second: Graded
    end: str


def disagreements(items: Iterable[tuple[str, str, str]], first: Grader, second: Grader) -> list[Disagreement]:
    """The `items` (id, text, gold) on whose correctness two graders differ, in order.

    That they write one answer differently ("0.5", "1/2") is no disagreement.
    """
    found = []
    for id, text, gold in items:
        a, b = first(text, gold), second(text, gold)
        if a.correct != b.correct:
            found.append(Disagreement(id, gold, a, b, ending(text, 200)))
    return found
