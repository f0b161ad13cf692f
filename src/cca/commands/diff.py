"""`cca diff`: in which components two checkpoints differ."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cca.model.difference import Difference


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cca diff`."""
    parser.add_argument("first", metavar="A", help="bundled, a folder, a GGUF file or a hub name")
    parser.add_argument("second", metavar="B", help="another of the same architecture")
    parser.add_argument("--json", action="store_true", help="as JSON, each component by itself")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the models")


def run(options: argparse.Namespace) -> int:
    """Compare, and print what was asked for."""
    from cca.model.checkpoint import open_checkpoint
    from cca.model.difference import difference

    first, second = (
        open_checkpoint(path, trust_remote_code=options.trust_remote_code) for path in (options.first, options.second)
    )
    found = difference(first, second)
    if options.json:
        print(json.dumps(_record(found), indent=1))
    else:
        from cca.show.changes import show_difference

        show_difference(found, options.first, options.second)
    return 0


def _record(found: "Difference") -> dict[str, Any]:
    return {
        "compared_as": found.compared_as,
        "components": [
            {**c.component._asdict(), "rows": c.rows, "of": c.of, "change": c.change} for c in found.components
        ],
        "others": {name: changed._asdict() for name, changed in found.others.items()},
    }
