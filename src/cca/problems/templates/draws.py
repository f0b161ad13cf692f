"""Values for variables that are drawn from lists and must meet conditions: one at random, or all there are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cca.errors import InputError
from cca.problems.templates.expressions import Expression, ExpressionError, Permutations, Value, plain, truth

MAX_DRAWS = 100_000
"""Draws in a row that conditions may reject before an `InputError`."""
MAX_LISTED = 5_000
"""Up to this many assignments are listed."""
MAX_TRIED = 50_000
"""Values tried in listing before there count as too many."""

Variables = dict[str, Value]


class Condition(NamedTuple):
    """What must hold, and the place in a file to name in errors."""

    place: str
    holds: Expression

    def met(self, variables: Variables) -> bool:
        """Whether it holds; InputError where it is neither true nor false."""
        try:
            return truth(self.holds(variables))
        except (ExpressionError, TypeError) as error:
            raise InputError(f"{self.place}: {error}; write a comparison, is_int(...) or divides(...)") from None


class Equation(NamedTuple):
    """A condition that says what its last variable is: that is looked up rather than drawn.

    Drawn, it would meet the condition once in as many draws as it has options. Looked up, one of `most` places is drawn
    of which the options with the right value take the first, so that every assignment stays as likely as it was.
    """

    condition: Condition
    rest: Expression
    by_value: dict[Value, list[tuple[Value, ...]]]
    most: int  # options with one value


class Step(NamedTuple):
    """Names that are drawn together, what they are drawn from, and the conditions that can be decided then."""

    names: tuple[str, ...]
    options: Sequence[tuple[Value, ...]]
    checks: tuple[Condition, ...] = ()
    equation: Equation | None = None

    def candidates(self, variables: Variables) -> Sequence[tuple[Value, ...]]:
        """The options, or those that the equation leaves."""
        if not self.equation:
            return self.options
        try:
            return self.equation.by_value.get(self.equation.rest(variables), [])
        except (ExpressionError, TypeError):  # no value, or a list
            return [
                option for option in self.options if self.equation.condition.met(self.with_option(variables, option))
            ]

    def with_option(self, variables: Variables, option: tuple[Value, ...]) -> Variables:
        """`variables` and those of this step."""
        return {**variables, **dict(zip(self.names, option, strict=True))}

    def failed(self, variables: Variables) -> Condition | None:
        """The first condition that the variables do not meet."""
        return next((check for check in self.checks if not check.met(variables)), None)

    def narrowed(self) -> "Step":
        """This step without the options that fail a condition on it alone, and with its equation where it has one.

        Raises:
            InputError: a condition leaves no option.
        """
        if isinstance(self.options, Permutations) and len(self.options) > MAX_TRIED:
            return self
        options = self.options
        own = [check for check in self.checks if check.holds.names <= set(self.names)]
        for check in own:
            options = [option for option in options if check.met(self.with_option({}, option))]
            if not options:
                raise InputError(f"{check.place} holds for no value of {', '.join(self.names)}; loosen it")
        checks = tuple(check for check in self.checks if check not in own)
        return Step(self.names, options, checks, self._equation(options, checks))

    def _equation(self, options: Sequence[tuple[Value, ...]], checks: Sequence[Condition]) -> Equation | None:
        for check in checks:
            for place, name in enumerate(self.names):
                if name in check.holds.equals and not check.holds.names & {*self.names} - {name}:
                    by_value: dict[Value, list[tuple[Value, ...]]] = {}
                    for option in options:
                        by_value.setdefault(plain(option[place]), []).append(option)
                    return Equation(check, check.holds.equals[name](), by_value, max(map(len, by_value.values())))
        return None


@dataclass(frozen=True)
class Draws:
    """Assignments of values to the names of `steps`, in the order in which they are drawn."""

    steps: tuple[Step, ...]

    @classmethod
    def ordered(cls, groups: Sequence[Step], checks: Sequence[Condition]) -> "Draws":
        """The groups in an order in which every condition is decided early, small lists first."""
        left, order = sorted(groups, key=lambda group: len(group.options)), list[Step]()
        pending = list(checks)
        while pending:
            missing = [[g for g in left if c.holds.names.intersection(g.names)] for c in pending]
            nearest = min(range(len(pending)), key=lambda i: len(missing[i]))
            equals = pending[nearest].holds.equals
            order += sorted(missing[nearest], key=lambda group: not equals.keys().isdisjoint(group.names))
            left = [group for group in left if group not in missing[nearest]]
            pending.pop(nearest)
        steps: list[Step] = []
        bound: set[str] = set()
        for group in (*order, *left):
            ready = [c for c in checks if c.holds.names <= bound.union(group.names) and not c.holds.names <= bound]
            bound.update(group.names)
            steps.append(group._replace(checks=tuple(ready)))
        return cls(tuple(steps))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for step in self.steps for name in step.names)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(check for step in self.steps for check in step.checks)

    def options(self, name: str) -> list[Value]:
        """What the variable `name` can be on its own."""
        step = next(step for step in self.steps if name in step.names)
        if isinstance(step.options, Permutations):
            return list(step.options.pool)
        return list(dict.fromkeys(option[step.names.index(name)] for option in step.options))

    def decide(self, shown: set[str]) -> bool:
        """Whether every other variable is looked up from what is drawn before it."""
        others = [step for step in self._narrowed if not shown.issuperset(step.names)]
        return all(step.equation and step.equation.most == 1 for step in others)

    def draw(self, rng: random.Random) -> Variables:
        """One assignment that meets the conditions, all being equally likely.

        Raises:
            InputError: `MAX_DRAWS` draws in a row failed a condition; names the one that rejected most.
        """
        rejected: dict[str, int] = {}
        for _ in range(MAX_DRAWS):
            variables: Variables = {}
            # A condition is decided as soon as its variables are there, and where it fails the draw starts over:
            # cheap, and unlike going on from the last variable it favours no assignment.
            for step in self._narrowed:
                options = step.candidates(variables)
                place = rng.randrange(step.equation.most if step.equation else len(options))
                if place < len(options):
                    variables.update(zip(step.names, options[place], strict=True))
                    failed = step.failed(variables)
                else:
                    failed = step.equation and step.equation.condition
                if failed:
                    rejected[failed.place] = rejected.get(failed.place, 0) + 1
                    break
            else:
                return variables
        worst = max(rejected, key=lambda place: rejected[place])
        raise InputError(
            f"{worst} rejected {rejected[worst]} of {MAX_DRAWS} draws, the most of all conditions, and no draw met "
            "them all; loosen it or narrow the lists under #init"
        )

    @cached_property
    def listed(self) -> list[Variables] | None:
        """Every assignment that meets the conditions, or None where there are more than `MAX_LISTED`, or finding
        them takes more than `MAX_TRIED` values.
        """
        found: list[Variables] = []
        tried, free = 0, 1
        for step in self._narrowed:
            free *= 1 if step.checks or step.equation else len(step.options)
        if free > MAX_LISTED:
            return None

        def search(depth: int, variables: Variables) -> bool:
            """Adds all that begins with `variables`; false where that is too much."""
            nonlocal tried
            if depth == len(self._narrowed):
                found.append(dict(variables))
                return len(found) <= MAX_LISTED
            step = self._narrowed[depth]
            for option in step.candidates(variables):
                tried += 1
                variables.update(zip(step.names, option, strict=True))
                if tried > MAX_TRIED or not (step.failed(variables) or search(depth + 1, variables)):
                    return False
            return True

        return found if search(0, {}) else None

    @cached_property
    def _narrowed(self) -> list[Step]:
        return [step.narrowed() for step in self.steps]
