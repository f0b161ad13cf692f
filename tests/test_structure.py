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

from cca.cli import _parser
from cca.run.stages import MEASURED, STAGES
from cca.show import views

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "cca"
OF_THE_PAPER = {"traces", "pivots", "circuit", "update", "evaluation"}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("stage", sorted(OF_THE_PAPER))
def test_stages_do_not_import_each_other_the_pipeline_or_the_config(stage):
    forbidden = {f"cca.{s}" for s in OF_THE_PAPER - {stage}} | {"cca.run.pipeline", "cca.run.config", "cca.cli"}
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


def test_every_stage_and_command_has_its_line_of_help():
    text = " ".join(_parser().format_help().split())
    for stage in STAGES.values():
        assert f"{stage.name} {stage.help}" in text
    for file in (SOURCE / "commands").glob("[a-z]*.py"):
        assert file.stem == "options" or f" {file.stem} " in text


def test_the_stages_that_a_run_s_figures_come_from_are_the_same_where_they_run_and_where_they_are_shown():
    assert views.MEASURED == MEASURED


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


def test_every_cca_command_in_the_documents_is_understood():
    """Each documented `cca ...` line gets as far as finding or not finding its run, never an unknown option."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    commands = [
        line.split("#")[0].strip()
        for path in documents
        for line in re.findall(r"^(?:\$ |    )?(cca .*)$", path.read_text(), flags=re.M)
    ]
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command)[1:])


def test_every_file_that_a_document_names_exists():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`((?:src|docs|recipes|benchmarks|tests|configs)/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
