"""What the parts of the benchmark say, a line a comparison, and what they are asked."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MODEL = "CCA_BENCH_MODEL"
COLUMNS = {"": -54, "plain": 12, "cca": 12, "ratio": 8, "floor": 11, "bar": 9, " ": 9, "spread": 8}
"""Widths of the table's columns; what is negative begins at the left."""


@dataclass(frozen=True)
class Line:
    """What one comparison found. A figure that was not taken is None; of a line that was skipped all are.

    plain, cca, floor: in `unit`; the less the better. share: the ratio is cca's share of the plain method's, else how
    many times less cca takes. bar: what the ratio must reach. spread: of the repeats of both, the larger.
    """

    what: str
    cca: float | None = None
    plain: float | None = None
    floor: float | None = None
    unit: Literal["s", "GiB", "tokens"] = "s"
    share: bool = False
    bar: float | None = None
    spread: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if self.cca is None or self.plain is None:
            return None
        over, under = (self.cca, self.plain) if self.share else (self.plain, self.cca)
        return over / under if under > 0 else float("inf")

    @property
    def reached(self) -> bool | None:
        """Whether the ratio reaches the bar; None where there is none, or nothing was measured."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio <= self.bar if self.share else self.ratio >= self.bar

    def row(self) -> str:
        """The line as one of the table."""
        ratio = self.ratio
        return _row(
            self.what,
            self._said(self.plain),
            self._said(self.cca),
            "" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:,.0f}x",
            self._said(self.floor),
            "" if self.bar is None else f"{'<=' if self.share else '>='} {self.bar:g}x",
            {None: "", True: "reached", False: "MISSED"}[self.reached],
            "" if self.spread is None else f"{self.spread:.0%}",
            note=self.note,
        )

    def _said(self, figure: float | None) -> str:
        if figure is None:
            return ""
        return f"{figure:,.0f} tok" if self.unit == "tokens" else f"{figure:.3g} {self.unit}"


def _row(*cells: str, note: str = "") -> str:
    padded = (f"{cell:<{-w}}" if w < 0 else f"{cell:>{w}}" for cell, w in zip(cells, COLUMNS.values(), strict=True))
    return f"{''.join(padded)}  {note}".rstrip()


def head() -> str:
    return _row(*COLUMNS)


def missed(lines: Iterable[Line]) -> list[Line]:
    """Those whose bar was measured and is not reached."""
    return [line for line in lines if line.reached is False]


@dataclass(frozen=True)
class Setting:
    """What to measure. models: paths of real models, the first for all parts and the others for how time grows.

    quick: least sizes and one repeat, which tells whether it works and gives no figures.
    """

    models: tuple[str, ...] = ()
    quick: bool = False

    @property
    def model(self) -> str | None:
        return self.models[0] if self.models else None

    def of(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def arguments(self) -> list[str]:
        return [a for path in self.models for a in ("--model", path)] + ["--quick"] * self.quick


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        help=f"a GGUF file or a folder of a real model; more of them for how time grows (default: {MODEL}, else none)",
    )
    parser.add_argument("--quick", action="store_true", help="least sizes and one repeat: whether it works, no figures")


def setting_of(given: argparse.Namespace) -> Setting:
    models = given.model or [path for path in os.environ.get(MODEL, "").split(os.pathsep) if path]
    if absent := [path for path in models if not Path(path).exists()]:
        sys.exit(f"there is no {', '.join(absent)}; give the path of a GGUF file or of a model's folder")
    return Setting(tuple(models), given.quick)


def skipped(what: str) -> Line:
    return Line(what, note=f"skipped: no --model, and {MODEL} is not set")


def part(doc: str | None, lines: Callable[[Setting], Iterable[Line]]) -> None:
    """A part as a process of its own: prints its lines as they are found, as JSON."""
    parser = argparse.ArgumentParser(description=doc)
    add_arguments(parser)
    for line in lines(setting_of(parser.parse_args())):
        print(json.dumps(asdict(line)), flush=True)


def said_by(output: Iterable[str]) -> Iterator[Line]:
    """The lines among what a part prints."""
    for text in output:
        if text.startswith("{"):
            yield Line(**json.loads(text))
