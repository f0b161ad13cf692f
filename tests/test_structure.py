"""Rules of the code itself: who may import whom, what must stay fast, and that the documents tell the truth."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from cca.cli import _parser
from cca.run.stages import STAGES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "cca"
ROOMS = (
    ("errors",),
    ("options",),
    ("io", "records"),
    ("lock",),
    ("folder",),
    ("grading",),
    ("problems",),
    ("model",),
    ("method",),
    ("evaluation",),
    ("controls",),
    ("show",),
    ("run",),
    ("commands",),
    ("cli", "__init__", "bundled"),
)
"""From the bottom up: a room imports from those before it. `cca/__init__.py` is the front door, and on top."""
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
MODULES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """What a module imports anywhere: at its top, inside functions, and for its types alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # `from cca.show import words` imports a module
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def arrows(path: Path) -> set[str]:
    """The modules of this library that a module imports."""
    known = {f"cca.{module_name(p)}" for p in MODULES}
    return {name.removeprefix("cca.") for name in imported_modules(path) & known}


def room(module: str) -> str:
    return module.split(".")[0]


def test_there_are_few_rooms_and_each_has_its_floor():
    found = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found == set(FLOOR)
    assert len(found) <= 18


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_rooms_import_only_downward(path):
    mine = room(module_name(path))
    for other in arrows(path):
        allowed = room(other) == mine or FLOOR[room(other)] < FLOOR[mine]
        assert allowed, f"{module_name(path)} imports {other}, which is not below it"


def test_the_rule_on_rooms_sees_lazy_and_type_checking_imports(tmp_path):
    module = tmp_path / "m.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cca.run.run import Run\n"
        "def f():\n    from cca.show import words\n    import cca.cli\n"
    )
    assert arrows(module) == {"run.run", "show.words", "cli"}


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_name(path): arrows(path) for path in MODULES if module_name(path) != "__init__"}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", ["method", "model"])
def test_the_method_and_the_model_know_no_run_folder_and_no_config(name):
    for path in (SOURCE / name).rglob("*.py"):
        assert not {m for m in arrows(path) if room(m) in ("folder", "run")}, path


PURE = {
    "errors": {"pydantic"},
    "options": {"torch"},
    "io": {"torch"},
    "records": {"torch"},
    "folder": {"torch"},
    "grading/answers": {"torch", "sympy"},
    "evaluation/pivot_kinds": {"torch", "transformers", "scipy", "numpy"},
    "evaluation/results": {"torch", "scipy", "numpy"},
    "evaluation/stats": {"torch"},
    "method/options": {"torch"},
    "model/options": {"torch"},
    "model/placement": {"torch"},
    "run/config": {"torch"},
    "run/cost": {"torch", "pydantic"},
    "run/counts": {"torch", "pydantic"},
    "run/devices": {"torch", "pydantic"},
    "run/plan_memory": {"torch"},
    "run/shape": {"torch", "transformers", "pydantic"},
    "controls/methods": {"torch", "pydantic"},
    "run/stages/__init__": {"torch", "pydantic"},
    "problems/splits": {"torch", "reasoning_gym"},
    "problems/slips": {"torch"},
}


@pytest.mark.parametrize("name", PURE)
def test_what_only_describes_loads_nothing_heavy(name):
    module = f"cca.{name.replace('/', '.').removesuffix('.__init__')}"
    code = f"import sys, {module}; print(sorted({PURE[name]!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_is_too_long_to_read(path):
    assert len(path.read_text().splitlines()) <= 450


def longest_function(path: Path) -> tuple[int, str]:
    """Lines of the longest function without its docstring, and its name."""
    lengths = [(0, "")]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lengths.append((node.end_lineno - first.lineno + 1, node.name))
    return max(lengths)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_function_reads_in_one_sitting(path):
    length, name = longest_function(path)
    assert length <= 50, f"{name} has {length} lines"


def test_every_stage_and_command_has_its_line_of_help():
    text = " ".join(_parser().format_help().split())
    for stage in STAGES.values():
        assert f"{stage.name} {stage.help}" in text
    for file in (SOURCE / "commands").glob("[a-z]*.py"):
        assert file.stem == "options" or f" {file.stem} " in text


def test_every_stage_of_the_table_has_its_module():
    for name in STAGES:
        assert "def work(run: Run)" in (SOURCE / "run" / "stages" / f"{name}.py").read_text()


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
