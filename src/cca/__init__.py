"""Constructive Circuit Amplification: find the pivotal token, find the circuit, update only its rows.

The method is that of arXiv 2512.16914. Data flows one way, and every stage is a function from records to
records: problems -> traces -> pivots -> circuit -> update -> evaluation -> report.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cca.show.frames import Run

__version__ = "0.1.0"
__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    """`cca.Run` when it is asked for, since it loads torch."""
    if name == "Run":
        from cca.show.frames import Run

        return Run
    raise AttributeError(f"module 'cca' has no attribute {name!r}")
