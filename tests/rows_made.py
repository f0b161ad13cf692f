"""Rows and files of rows, as somebody wrote them."""

from pathlib import Path
from typing import Any


def row(question: str, answer: Any = "1", **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


def some(word: str, count: int = 20) -> list[dict[str, Any]]:
    """Rows whose questions begin with a word."""
    return [row(f"{word} {i}?", str(i)) for i in range(count)]


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
