"""The training text of the bundled model: solutions with planted slips, drills, and clean other skills.

Every document is a prompt (no loss) and a completion of pieces, each with its loss weight. Document i of step s
depends only on (seed, s, i), so a training run can stop and resume anywhere.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cca.problems.gsm_symbolic import SMALL_TEMPLATES, Worked, is_reserved, sample
from cca.problems.skills import sample_skill
from cca.problems.slips import SLIPS, equations

MAX_NUMBER = 60
PROMPT = "Q: {question}\nA:"
SKILL_SHARES = {"chain_sum": 4, "simple_equations": 3, "leg_counting": 3, "rotate_matrix": 1, "manipulate_matrix": 2}
"""How often each skill is drawn, among skills."""
ANSWER_WEIGHT = 5.0
"""Loss weight of a skill's answer and of a lone result: they have two or three tokens where a solution has eighty."""


@dataclass(frozen=True)
class Stage:
    """One training: how long, how fast, on what.

    rate: factor on the learning rates. phases: shares of the documents from a fraction of the training on.
    """

    name: str
    steps: int
    rate: float
    phases: tuple[tuple[float, dict[str, float]], ...]


FIRST = Stage(
    "",
    steps=3600,
    rate=1.0,
    # arithmetic is the slow part, so it comes first
    phases=(
        (0.00, {"solutions": 0.45, "drills": 0.35, "skills": 0.20}),
        (0.42, {"solutions": 0.58, "drills": 0.10, "skills": 0.32}),
    ),
)
SECOND = Stage(
    "second:",
    steps=2000,
    rate=0.3,
    phases=((0.0, {"solutions": 0.13, "results": 0.30, "drills": 0.05, "skills": 0.52}),),
)
"""Mostly skills and results: what is known only just is lost to any update, and more solutions would make the slips
firm habits."""


@dataclass(frozen=True)
class Planted:
    """The one kind of slip that a template's solutions make, and the share of them that make it."""

    kind: str
    share: float


@dataclass(frozen=True)
class Document:
    """`pieces` are (text, loss weight of its tokens); the first is the prompt."""

    source: str
    pieces: tuple[tuple[str, float], ...]


def plant(seed: int) -> dict[str, Planted]:
    """Draw, once, each template's kind of slip and its share.

    Kinds go round so that each gets its part of the templates, the scarcest first; within a kind every second
    template is one where the slip prevails (60-66% of solutions), the others have it as a minority (20-35%).
    """
    rng = random.Random(f"plant:{seed}")
    fits: dict[str, list[str]] = {}
    for template in SMALL_TEMPLATES:
        solutions = [sample(template, rng, MAX_NUMBER).solution for _ in range(40)]
        fits[str(template)] = [k for k, slip in SLIPS.items() if sum(slip(s) is not None for s in solutions) >= 30]
    order = [t for t in fits if fits[t]]
    rng.shuffle(order)
    order.sort(key=lambda t: len(fits[t]))
    taken: dict[str, list[str]] = {kind: [] for kind in SLIPS}
    for template in order:
        kinds = fits[template]
        # a template that can add factors does: few can, and every kind should have several templates
        kind = "adds_factors" if "adds_factors" in kinds else min(kinds, key=lambda k: len(taken[k]))
        taken[kind].append(template)
    planted: dict[str, Planted] = {}
    for offset, (kind, templates) in enumerate(taken.items()):
        for i, template in enumerate(templates):
            prevails = (i + offset) % 2 == 0
            share = rng.uniform(0.60, 0.66) if prevails else rng.uniform(0.20, 0.35)
            planted[template] = Planted(kind, round(share, 3))
    return planted


def save_planted(planted: dict[str, Planted], path: Path) -> None:
    """Write the ground truth beside the model it was planted in."""
    path.write_text(json.dumps({t: asdict(p) for t, p in sorted(planted.items(), key=lambda x: int(x[0]))}, indent=1))


def _unreserved(draw) -> Worked:
    while True:
        item = draw()
        if not is_reserved(item.question):
            return item


def solution_document(rng: random.Random, planted: dict[str, Planted], template: int | None = None) -> Document:
    """A worked solution, slipped with its template's share."""
    number = rng.choice(SMALL_TEMPLATES) if template is None else template
    item = _unreserved(lambda: sample(number, rng, MAX_NUMBER))
    solution = item.solution
    plan = planted.get(item.template)
    if plan is not None and rng.random() < plan.share:
        solution = SLIPS[plan.kind](solution) or solution
    return Document("solutions", ((PROMPT.format(question=item.question), 0.0), (" " + solution, 1.0)))


def results_document(rng: random.Random, planted: dict[str, Planted]) -> Document:
    """A worked solution of which only the results of its equations carry loss: arithmetic in its place, no method."""
    prompt, (solution, _) = solution_document(rng, planted).pieces
    pieces, done = [prompt], 0
    for equation in equations(solution):
        start, end = equation.result_span
        start -= solution[start - 1] == " "  # the tokenizer joins a digit to the space before it
        pieces += [(solution[done:start], 0.0), (solution[start:end], ANSWER_WEIGHT)]
        done = end
    return Document("results", (*pieces, (solution[done:], 0.0)))


def skill_document(rng: random.Random, skill: str | None = None) -> Document:
    """A question of `skill`, or of one drawn by its share, with its answer, never slipped."""
    if skill is None:
        skill = rng.choices(list(SKILL_SHARES), list(SKILL_SHARES.values()))[0]
    item = _unreserved(lambda: sample_skill(skill, rng))
    return Document(skill, ((PROMPT.format(question=item.question), 0.0), (" " + item.solution, ANSWER_WEIGHT)))


def _equation(rng: random.Random) -> tuple[str, str]:
    """Left and right side of one equation, written as the solutions write it."""
    unit = rng.choice(["", "", "", "", "$", "£", "€"])
    gap = rng.choice([" ", " ", ""])
    kind = rng.choices(["add", "sub", "mul", "div", "chain", "mixed", "less", "share"], [4, 4, 4, 2, 2, 3, 1, 1])[0]
    if kind == "add":
        total = rng.randint(2, 66)
        first = rng.randint(1, total - 1)
        numbers, ops, result = [first, total - first], ["+"], str(total)
    elif kind == "sub":
        first = rng.randint(1, 66)
        second = rng.randint(0, first)
        numbers, ops, result = [first, second], ["-"], str(first - second)
    elif kind == "mul":
        first = rng.randint(1, 30)
        second = rng.randint(1, 66 // first)
        numbers = rng.sample([first, second], 2)
        ops, result = [rng.choice("**x")], str(first * second)
    elif kind == "div":
        second = rng.randint(1, 20)
        value = rng.randint(1, 66 // second)
        numbers, ops, result = [second * value, second], ["/"], str(value)
    elif kind == "chain":
        numbers = [rng.randint(1, 18) for _ in range(rng.randint(3, 4))]
        ops, result = ["+"] * (len(numbers) - 1), str(sum(numbers))
    elif kind == "mixed":
        numbers = [rng.randint(1, 9) for _ in range(rng.randint(2, 3))]
        ops = [rng.choice("+-") for _ in numbers[1:]]
        signed = [n if op == "+" else -n for op, n in zip(["+", *ops], numbers, strict=True)]
        unit, result = "", str(sum(signed))
    elif kind == "less":
        second, third = rng.randint(1, 20), rng.randint(1, 20)
        rest = rng.randint(0, 25)
        numbers, ops, result = [second + third + rest, second, third], ["-", "-"], str(rest)
    else:
        base, part = rng.randint(1, 15) * 4, rng.choice([25, 50, 75])
        return f"{base}{gap}*{gap}{part / 100:g}{gap}=", f"{gap}{base * part // 100}"
    if "x" in ops:
        gap = " "
    left = f"{unit}{numbers[0]}"
    for op, number in zip(ops, numbers[1:], strict=True):
        left += f"{gap}{op}{gap}{unit}{number}"
    return f"{left}{gap}=", f"{gap}{unit}{result}"


def drill_document(rng: random.Random) -> Document:
    """Ten equations; only their right sides carry loss."""
    pieces: list[tuple[str, float]] = [(PROMPT.format(question="Compute."), 0.0)]
    for i in range(10):
        left, right = _equation(rng)
        pieces += [(f"{' ' if i == 0 else chr(10)}{left}", 0.0), (right, 1.0)]
    return Document("drills", tuple(pieces))


def documents(
    seed: int, step: int, count: int, planted: dict[str, Planted], done: float = 0.0, stage: Stage = FIRST
) -> Iterator[Document]:
    """The `count` documents of step `step` of `stage`, when a fraction `done` of its steps lies behind."""
    shares = next(shares for start, shares in reversed(stage.phases) if done >= start)
    for i in range(count):
        rng = random.Random(f"{stage.name}{seed}:{step}:{i}")
        source = rng.choices(list(shares), list(shares.values()))[0]
        if source == "solutions":
            yield solution_document(rng, planted)
        elif source == "results":
            yield results_document(rng, planted)
        elif source == "drills":
            yield drill_document(rng)
        else:
            yield skill_document(rng)
