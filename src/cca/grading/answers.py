"""What answer a text gives, and whether it equals the gold answer, by reading alone (no sympy, no torch)."""

from collections.abc import Callable
from typing import NamedTuple

from cca.grading.characters import plain
from cca.grading.numbers import last_match, last_number, normal_number, one_number, same_number, unwrap
from cca.grading.stated import BOX, held, stated_number


class Graded(NamedTuple):
    """The answer that a text gives, empty where it gives none, and whether it is the gold one."""

    answer: str
    correct: bool


Grader = Callable[[str, str], Graded]
"""From a text and its gold answer."""


def final_text(text: str) -> str:
    r"""What follows the last ``####``, or the whole text, stripped; of that, what the last ``\boxed{}`` holds."""
    text = unwrap(plain(text)).replace("⁄", "/").rsplit("####", 1)[-1]
    if box := last_match(BOX, text):
        text = held(text, box.end())
    return text.strip()


def grade_number(text: str, gold: str) -> Graded:
    """The answer that `text` gives by `last_number`, and whether it equals the one number that `gold` is.

    Where `gold` is a fraction ("3/4", LaTeX's too) or a decimal, a fraction at the end of `text` is read as one and
    compared by value. A gold answer that is not one number by `one_number` ("2:30", "5!") equals nothing.
    """
    wanted = one_number(final_text(gold))
    answer = last_number(text, fractions="/" in wanted or "." in wanted)
    return Graded(answer, wanted != "" and same_number(answer, wanted))


def grade_stated(text: str, gold: str) -> Graded:
    """As `grade_number`, of the answer that `text` states first (`stated_number`), if it states one.

    What is written after a statement does not count: a model that was shown worked examples goes on with questions of
    its own. A fraction in a statement is always read as one.
    """
    wanted = one_number(final_text(gold))
    answer = stated_number(text)
    return Graded(answer, wanted != "" and same_number(answer, wanted)) if answer else grade_number(text, gold)


def grade_exact(text: str, gold: str) -> Graded:
    """The final text, compared with the final text of `gold` as it stands.

    A number is compared by value; case and outer space are ignored. Only an empty final text is no answer.
    """
    answer = final_text(text)
    same = normal_number(answer).casefold() == normal_number(final_text(gold)).casefold()
    return Graded(answer, answer != "" and same)


GRADERS: dict[str, Grader] = {"number": grade_number, "stated": grade_stated, "exact": grade_exact}
