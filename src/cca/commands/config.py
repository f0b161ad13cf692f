"""`cca config`: every setting of a run with its default and what it does, as a TOML file to change."""

import argparse
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """`cca config` has no arguments."""


def run(_: argparse.Namespace) -> int:
    """Print it."""
    from cca.options import Options
    from cca.run.config import Config

    print("# Every setting of cca run, with its default. Use it: cca run THIS_FILE, or --set section.key=value")
    sections = [name for name, field in Config.model_fields.items() if isinstance(field.default, Options)]
    defaults = Config()
    print("\n".join(_keys(Config, defaults, leave_out=sections)))
    for name in sections:
        options = getattr(defaults, name)
        print(f"\n[{name}]  # {(inspect.getdoc(type(options)) or '').splitlines()[0]}")
        print("\n".join(_keys(type(options), options)))
    return 0


def _keys(kind: Any, values: Any, leave_out: list[str] | None = None) -> Iterator[str]:
    """Each field of an options class: its docstring as a comment, then ``key = default``.

    Commented out is what has no default, and what depends on another key.
    """
    from cca.run.config import toml_value

    told = _docstrings(kind)
    for name, field in kind.model_fields.items():
        if name in (leave_out or ()):
            continue
        yield from (f"# {line}" for line in textwrap.wrap(told[name].replace("``", '"'), 110))
        key, value = field.alias or name, getattr(values, name)
        depends = field.default_factory is not None  # on another key, which one may want to change
        yield f"{'# ' if depends or value is None else ''}{key} = {'' if value is None else toml_value(value)}"


def _docstrings(kind: Any) -> dict[str, str]:
    """The string that follows each field in the source of an options class."""
    import ast

    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    told: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            told[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return told
