"""A safe evaluator for the expressions that templates are written in.

A template may come from anyone, so nothing here executes Python: the text is parsed to a syntax tree, every node of
which must be on the list below, and becomes a chain of closures over exact numbers. Text, depth, numbers and lists
are all bounded, so that no expression can hang or fill the memory.
"""

import ast
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from cca.problems.templates.equations import solutions

MAX_TEXT = 2_000
"""Characters of an expression."""
MAX_DEPTH = 100
"""Levels of nesting."""
MAX_BITS = 256
"""Bits of a number's numerator or denominator."""
MAX_EXPONENT = 64
MAX_ITEMS = 100_000
"""Items of a list or range."""
MAX_ITEMS_COMPUTED = 1_000
"""Items of a list that is computed from variables, and so anew for every draw."""


class ExpressionError(ValueError):
    """An expression that is not allowed or has no value: the message quotes it and says why."""


class Pair(NamedTuple):
    """A value and how a question words it: ``twice`` and 2. It computes as its value."""

    text: str
    value: int | Fraction


Value = Any
"""int, Fraction (never integral), str, bool, Pair, list, Permutations or None; bool only from a comparison."""
Variables = Mapping[str, Value]
_Run = Callable[[Variables], Value]


class Permutations(Sequence[tuple[Value, ...]]):
    """All ordered choices of `count` different items of `pool`, by number, without listing them."""

    def __init__(self, pool: Sequence[Value], count: int):
        if not 1 <= count <= len(pool):
            raise ValueError(f"cannot choose {count} of {len(pool)} items")
        if math.perm(len(pool), count) >= 2**62:
            raise ValueError(f"there are too many ways to choose {count} of {len(pool)} items")
        self.pool, self.size = pool, count

    def __len__(self) -> int:
        return math.perm(len(self.pool), self.size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, chosen = list(self.pool), []
        for _ in range(self.size):
            index, place = divmod(index, len(rest))
            chosen.append(rest.pop(place))
        return tuple(chosen)

    def __iter__(self) -> Iterator[tuple[Value, ...]]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Expression:
    """A parsed expression: call it with the values of its variables.

    equals: a call that builds what a variable must be for the expression to hold, by that variable's name.

    Raises:
        ExpressionError: it has no value for them (division by zero, a number where text stands, too large a result).
    """

    text: str
    names: frozenset[str]
    calls: frozenset[str]
    run: _Run
    equals: Mapping[str, Callable[[], "Expression"]]

    def __call__(self, variables: Variables) -> Value:
        try:
            return self.run(variables)
        except ZeroDivisionError:
            raise ExpressionError(f"`{self.text}` divides by zero") from None
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise ExpressionError(f"`{self.text}`: {error}") from None


def parse(
    text: str, known: Collection[str], helpers: Mapping[str, Callable[..., Value]], max_items: int = MAX_ITEMS_COMPUTED
) -> Expression:
    """Read an expression over the names in `known` that calls only `helpers` and builds lists up to `max_items`.

    Raises:
        ExpressionError: it is not an expression, or uses something that is not allowed.
    """
    shown = text if len(text) <= 80 else text[:77] + "..."
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"`{shown}` is {len(text)} characters long; at most {MAX_TEXT} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd spacing and backslashes
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it cannot be read, or is nested too deeply"
        raise ExpressionError(f"`{shown}` is not an expression: {reason}") from None
    try:
        return _expression(shown, tree.body, known, helpers, max_items)
    except ValueError as error:
        raise ExpressionError(f"`{shown}`: {error}") from None


def _expression(
    text: str, node: ast.expr, known: Collection[str], helpers: Mapping[str, Callable[..., Value]], max_items: int
) -> Expression:
    builder = _Builder(known, helpers, max_items)
    run = builder.build(node, 0)
    equals = {
        name: partial(_expression, text, rest, known, helpers, max_items) for name, rest in solutions(node).items()
    }
    return Expression(text, frozenset(builder.names), frozenset(builder.calls), run, equals)


def number(value: Value) -> int | Fraction:
    """`value` as a bounded exact number in lowest terms, an int where it is integral.

    Raises:
        TypeError: it is not a number.
        ValueError: it is too large.
    """
    value = plain(value)
    if type(value) is int:
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"a number of more than {MAX_BITS} bits is not allowed")
        return value
    if type(value) is not Fraction:
        raise TypeError(f"{_kind(value)} stands where a number is needed")
    if value.denominator == 1:
        return number(value.numerator)
    for part in (value.numerator, value.denominator):
        number(part)
    return value


def whole(value: Value) -> int:
    """`value` as an int, or TypeError where it is not integral."""
    exact = number(value)
    if not isinstance(exact, int):
        raise TypeError(f"{exact} stands where a whole number is needed")
    return exact


def items(value: Value) -> list[Value]:
    """`value` as a list, or TypeError; ValueError where it is longer than allowed."""
    if not isinstance(value, list):
        raise TypeError(f"{_kind(value)} stands where a list is needed")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"a list of more than {MAX_ITEMS} items is not allowed")
    return value


def _kind(value: Value) -> str:
    if type(value) in (int, Fraction):
        return f"the number {value}"
    kinds = {str: f"the text {str(value)[:30]!r}", list: "a list", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a choice")


def plain(value: Value) -> Value:
    """`value`, or what a pair counts as."""
    return value.value if type(value) is Pair else value


def _add(a: Value, b: Value) -> Value:
    if isinstance(a, list) and isinstance(b, list):
        return items(a + b)
    return number(number(a) + number(b))


def _multiply(a: Value, b: Value) -> Value:
    if isinstance(a, list) and type(b) is int:
        if len(a) * b > MAX_ITEMS:
            raise ValueError(f"a list of more than {MAX_ITEMS} items is not allowed")
        return a * b
    return number(number(a) * number(b))


def _power(a: Value, b: Value) -> Value:
    exponent = whole(b)
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"an exponent above {MAX_EXPONENT} is not allowed")
    return number(Fraction(number(a)) ** exponent)


_BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: _add,
    ast.Sub: lambda a, b: number(number(a) - number(b)),
    ast.Mult: _multiply,
    ast.Div: lambda a, b: number(Fraction(number(a)) / number(b)),
    ast.FloorDiv: lambda a, b: number(number(a) // number(b)),
    ast.Mod: lambda a, b: number(number(a) % number(b)),
    ast.Pow: _power,
}


def _equal(a: Value, b: Value) -> bool:
    if isinstance(a, str) != isinstance(b, str):
        text, other = (a, b) if isinstance(a, str) else (b, a)
        raise TypeError(f"{_kind(text)} is compared with {_kind(other)}; of a pair, name[0] is the wording")
    return a == b


def _among(a: Value, pool: Value) -> bool:
    return any(_equal(a, plain(item)) for item in items(pool))


_COMPARE: dict[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda a, b: not _equal(a, b),
    ast.In: _among,
    ast.NotIn: lambda a, b: not _among(a, b),
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Lt: lambda a, b: number(a) < number(b),
    ast.LtE: lambda a, b: number(a) <= number(b),
    ast.Gt: lambda a, b: number(a) > number(b),
    ast.GtE: lambda a, b: number(a) >= number(b),
}


class _Builder:
    """Turns one syntax tree into closures, refusing every node that is not in `_ALLOWED`."""

    def __init__(self, known: Collection[str], helpers: Mapping[str, Callable[..., Value]], max_items: int):
        self.known, self.helpers, self.max_items = known, helpers, max_items
        self.names: set[str] = set()
        self.calls: set[str] = set()

    def build(self, node: ast.AST, depth: int) -> _Run:
        build = _ALLOWED.get(type(node))
        if build is None:
            raise ExpressionError(f"{type(node).__name__} is not allowed in a template")
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nesting deeper than {MAX_DEPTH} levels is not allowed")
        return build(self, node, depth + 1)

    def _constant(self, node: ast.Constant, _depth: int) -> _Run:
        value = node.value
        if type(value) is float:
            # A decimal is meant as it is written; its repr gives those digits back, the binary value would not.
            value = Fraction(repr(value)) if math.isfinite(value) else None
        if type(value) not in (int, Fraction, str, bool):
            raise ExpressionError(f"{node.value!r} is not allowed in a template")
        value = value if isinstance(value, str | bool) else number(value)
        return lambda _: value

    def _name(self, node: ast.Name, _depth: int) -> _Run:
        raw = self._raw_name(node)
        return lambda variables: plain(raw(variables))

    def _raw_name(self, node: ast.Name) -> _Run:
        name = node.id
        if name not in self.known:
            known = ", ".join(sorted(self.known)) or "none"
            raise ExpressionError(f"no name {name}; known: {known}")
        self.names.add(name)
        return lambda variables: variables[name]

    def _binop(self, node: ast.BinOp, depth: int) -> _Run:
        apply = _BINARY.get(type(node.op))
        if apply is None:
            raise ExpressionError(f"the operator {type(node.op).__name__} is not allowed in a template")
        left, right = self.build(node.left, depth), self.build(node.right, depth)
        return lambda variables: self._bounded(apply(left(variables), right(variables)))

    def _bounded(self, value: Value) -> Value:
        if isinstance(value, list) and len(value) > self.max_items:
            raise ValueError(f"a list of more than {self.max_items} items is not allowed; use comparisons instead")
        return value

    def _unaryop(self, node: ast.UnaryOp, depth: int) -> _Run:
        operand = self.build(node.operand, depth)
        if isinstance(node.op, ast.Not):
            return lambda variables: not truth(operand(variables))
        if isinstance(node.op, ast.USub):
            return lambda variables: -number(operand(variables))
        if isinstance(node.op, ast.UAdd):
            return lambda variables: number(operand(variables))
        raise ExpressionError(f"the operator {type(node.op).__name__} is not allowed in a template")

    def _boolop(self, node: ast.BoolOp, depth: int) -> _Run:
        parts = [self.build(value, depth) for value in node.values]
        combine = all if isinstance(node.op, ast.And) else any
        return lambda variables: combine(truth(part(variables)) for part in parts)

    def _compare(self, node: ast.Compare, depth: int) -> _Run:
        first = self.build(node.left, depth)
        links: list[tuple[Callable[[Value, Value], bool], _Run]] = []
        for op, right in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise ExpressionError(f"the comparison {type(op).__name__} is not allowed in a template")
            if isinstance(op, ast.Is | ast.IsNot) and not (
                isinstance(right, ast.Constant) and isinstance(right.value, bool)
            ):
                raise ExpressionError("`is` is for True and False alone; write ==")
            if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.Set):
                right = ast.List(right.elts)
            links.append((_COMPARE[type(op)], self.build(right, depth)))

        def run(variables: Variables) -> bool:
            left = first(variables)
            for compare, right in links:
                value = right(variables)
                if not compare(left, value):
                    return False
                left = value
            return True

        return run

    def _ifexp(self, node: ast.IfExp, depth: int) -> _Run:
        test, yes, no = (self.build(part, depth) for part in (node.test, node.body, node.orelse))
        return lambda variables: yes(variables) if truth(test(variables)) else no(variables)

    def _list(self, node: ast.List, depth: int) -> _Run:
        parts = [self.build(part, depth) for part in node.elts]
        return lambda variables: [scalar(part(variables)) for part in parts]

    def _tuple(self, node: ast.Tuple, depth: int) -> _Run:
        if len(node.elts) != 2:
            raise ExpressionError("only a pair of text and value may stand in round brackets")
        text, value = (self.build(part, depth) for part in node.elts)
        return lambda variables: Pair(str(scalar(text(variables))), number(value(variables)))

    def _subscript(self, node: ast.Subscript, depth: int) -> _Run:
        # mult[1] means the value of a pair, so here the pair must not have become its value yet.
        base = self._raw_name(node.value) if isinstance(node.value, ast.Name) else self.build(node.value, depth)
        if isinstance(node.slice, ast.Slice):
            lower, upper = (part and self.build(part, depth) for part in (node.slice.lower, node.slice.upper))
            if node.slice.step is not None:
                raise ExpressionError("a slice with a step is not allowed in a template")

            def cut(variables: Variables) -> Value:
                start, stop = (part and whole(part(variables)) for part in (lower, upper))
                return items(base(variables))[start:stop]

            return cut
        index = self.build(node.slice, depth)

        def at(variables: Variables) -> Value:
            value = base(variables)
            if not isinstance(value, list | str | Pair):
                raise TypeError(f"{value} has no parts to choose from")
            return value[whole(index(variables))]

        return at

    def _call(self, node: ast.Call, depth: int) -> _Run:
        name = _dotted(node.func)
        helper = self.helpers.get(name)
        if helper is None:
            raise ExpressionError(f"no helper {name}; known: {', '.join(sorted(self.helpers))}")
        if node.keywords:
            raise ExpressionError(f"{name} takes values in order, not by name")
        parts = [self.build(part, depth) for part in node.args]
        try:
            inspect.signature(helper).bind(*parts)
        except TypeError as error:
            raise ExpressionError(f"{name}: {error}") from None
        self.calls.add(name)
        return lambda variables: self._bounded(helper(*[part(variables) for part in parts]))


_ALLOWED: dict[type[ast.AST], Callable[[_Builder, Any, int], _Run]] = {
    ast.Constant: _Builder._constant,
    ast.Name: _Builder._name,
    ast.BinOp: _Builder._binop,
    ast.UnaryOp: _Builder._unaryop,
    ast.BoolOp: _Builder._boolop,
    ast.Compare: _Builder._compare,
    ast.IfExp: _Builder._ifexp,
    ast.List: _Builder._list,
    ast.Tuple: _Builder._tuple,
    ast.Subscript: _Builder._subscript,
    ast.Call: _Builder._call,
}


def _dotted(node: ast.AST) -> str:
    """``np.random.randint`` as text: helpers are looked up by it, so an attribute is never read."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ExpressionError("only helpers can be called")
    return ".".join([node.id, *reversed(parts)])


def truth(value: Value) -> bool:
    """`value` where it is true or false, else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{_kind(value) if not isinstance(value, int | Fraction) else value} is not true or false")
    return value


def scalar(value: Value) -> Value:
    """`value` where it is text, a number or a pair, else TypeError."""
    return value if isinstance(value, str | Pair) else number(value)
