"""Rules of the code itself: who may import whom, what must stay fast, and that the README tells the truth."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "cca"
STAGES = {"traces", "pivots", "circuit", "update", "evaluation"}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_do_not_import_each_other_the_pipeline_or_the_config(stage):
    forbidden = {f"cca.{s}" for s in STAGES - {stage}} | {"cca.run.pipeline", "cca.run.config", "cca.cli"}
    assert not imported_modules(SOURCE / f"{stage}.py") & forbidden


def test_the_pure_modules_need_no_torch():
    for name in ("answers", "stats", "records", "errors", "config", "problems/slips", "problems/gsm_symbolic"):
        assert not {m.split(".")[0] for m in imported_modules(SOURCE / f"{name}.py")} & {"torch", "transformers"}


def test_no_module_is_longer_than_about_400_lines():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 420, path


def test_help_answers_in_under_a_second_and_loads_no_torch():
    code = "import sys; sys.argv = ['cca', '--help']\nfrom cca import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # fills the bytecode cache
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "cca.cli", "--help"], check=True, capture_output=True, text=True)
    assert time.monotonic() - began < 1
    assert "cca run" in shown.stdout


def test_the_readme_shows_the_two_commands_and_they_are_in_the_makefile():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for command in ("make run", "make test"):
        assert command in first_screen
        assert command.split()[1] in targets


@pytest.mark.parametrize("constraints", [[], ["TORCH_CONSTRAINTS="]])
def test_make_builds_the_environment_with_a_cpu_torch_unless_told_otherwise(constraints):
    """In a dry run every pip call names what it installs, and only the CPU build has an index of its own."""
    make = ["make", "--dry-run", "VENV=.missing", *constraints, "run"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "TORCH_"))}
    planned = subprocess.run(make, cwd=ROOT, env=plain, check=True, capture_output=True, text=True).stdout
    calls = [line for line in planned.splitlines() if "pip install" in line]
    assert all("--requirement" in call or "--editable" in call for call in calls)
    assert ["pytorch.org/whl/cpu" in call for call in calls] == ([False] if constraints else [True, False])


def documents() -> list[Path]:
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return top + [p for folder in ("docs", "recipes", "experiments") for p in sorted((ROOT / folder).rglob("*.md"))]


def test_every_cca_command_in_the_documents_is_understood():
    """Each documented `cca ...` line gets as far as finding or not finding its run, never an unknown option."""
    from cca.cli import _parser

    commands = [
        line.split("#")[0].strip()
        for path in documents()
        for line in re.findall(r"^(?:\$ |    )?(cca .*)$", path.read_text(), flags=re.M)
    ]
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command)[1:])


def test_every_file_that_a_document_names_exists():
    for path in documents():
        for name in re.findall(
            r"`((?:src|docs|recipes|benchmarks|experiments|examples|tests|configs)/[\w./-]+)`", path.read_text()
        ):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_relative_link_of_a_document_leads_somewhere():
    for path in documents():
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if link.startswith(("http:", "https:", "mailto:")):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.relative_to(ROOT)} links to {link}, which does not exist"
            if anchor:
                assert anchor in anchors(target), (
                    f"{path.relative_to(ROOT)} links to {link}; no heading there is called so"
                )
