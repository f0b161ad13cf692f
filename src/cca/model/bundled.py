"""The model inside this package, and what is known of the slips that were planted in it."""

import json
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parents[1] / "bundled" / "organism"


def location(path: str) -> str:
    """What to load from: ``bundled`` names the model inside this package."""
    return str(BUNDLED) if path == "bundled" else str(Path(path).expanduser()) if path.startswith("~") else path


def planted_slips(path: str) -> dict[str, dict[str, Any]]:
    """Template -> `kind` and training `share` of its planted slip; empty for a model that has none planted."""
    truth = Path(location(path)) / "slips.json"
    return json.loads(truth.read_text()) if truth.exists() else {}


def slip_kinds(path: str) -> dict[str, str]:
    """Template -> kind of planted slip; empty for a model that has none planted."""
    return {template: slip["kind"] for template, slip in planted_slips(path).items()}
