"""The model inside this package, and what is known of the slips that were planted in it."""

import json
from pathlib import Path
from typing import Any

from cca.errors import InputError

BUNDLED = Path(__file__).parents[1] / "bundled" / "organism"


def location(path: str) -> str:
    """What to load from: ``bundled`` names the model inside this package."""
    return str(BUNDLED) if path == "bundled" else str(Path(path).expanduser()) if path.startswith("~") else path


def is_bundled(path: str) -> bool:
    """Whether `path` names the model inside this package, in either way."""
    return location(path) == str(BUNDLED)


def planted_slips(path: str) -> dict[str, dict[str, Any]]:
    """Template -> `kind` and training `share` of its planted slip; empty for a model that has none planted.

    Raises:
        InputError: the model's slips.json says something else.
    """
    truth = Path(location(path)) / "slips.json"
    if not truth.exists():
        return {}
    try:
        found = json.loads(truth.read_text(encoding="utf-8"))
        return {str(template): {"kind": str(slip["kind"]), **slip} for template, slip in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{truth} does not say which slips were planted in the model ({error!r}); remove or mend it"
        ) from error


def slip_kinds(path: str) -> dict[str, str]:
    """Template -> kind of planted slip; empty for a model that has none planted."""
    return {template: slip["kind"] for template, slip in planted_slips(path).items()}
