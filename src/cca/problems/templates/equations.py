"""Conditions solved for one of their variables: from ``a + b - ans == 0`` that ans is ``a + b``."""

import ast
from collections import Counter
from collections.abc import Iterator

_INVERSE: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}


def solutions(condition: ast.expr) -> dict[str, ast.expr]:
    """What a variable equals wherever `condition` holds, for each variable for which an equation in it can be solved.

    A variable can be where it stands once in the equation, under nothing but ``+ - * /`` and no factor that may be 0.
    """
    parts = [condition]
    if isinstance(condition, ast.BoolOp) and isinstance(condition.op, ast.And):
        parts = condition.values
    found: dict[str, ast.expr] = {}
    for part in parts:
        if isinstance(part, ast.Compare) and len(part.ops) == 1 and isinstance(part.ops[0], ast.Eq):
            times = Counter(node.id for node in ast.walk(part) if isinstance(node, ast.Name))
            left, right = part.left, part.comparators[0]
            for name, rest in (*_isolated(left, right), *_isolated(right, left)):
                if times[name] == 1:
                    found.setdefault(name, rest)
    return found


def _isolated(side: ast.expr, other: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Each name of `side` with what it equals where `side` equals `other`."""
    match side:
        case ast.Name(id=name):
            yield name, other
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            yield from _isolated(inner, ast.UnaryOp(ast.USub(), other))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            product = isinstance(op, ast.Mult)
            if not product or _is_factor(right):
                yield from _isolated(left, ast.BinOp(other, _INVERSE[type(op)](), right))
            if isinstance(op, ast.Sub):
                yield from _isolated(right, ast.BinOp(left, op, other))
            elif isinstance(op, ast.Add) or (product and _is_factor(left)):
                yield from _isolated(right, ast.BinOp(other, _INVERSE[type(op)](), left))


def _is_factor(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0
