"""The site of the documentation: what it is made of, and that it builds without a warning."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import cca

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
HOOKS: Any = importlib.util.module_from_spec(
    spec := importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")  # pyright: ignore[reportArgumentType]
)
spec.loader.exec_module(HOOKS)  # pyright: ignore[reportOptionalMemberAccess]


def pages(nav: Any) -> list[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in pages(item)]


def test_every_page_of_the_navigation_exists_and_every_document_is_in_it():
    named = pages(CONFIG["nav"])
    assert len(named) == len(set(named))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(named) == there | set(HOOKS.PAGES)
    assert all((ROOT / source).exists() for source in HOOKS.PAGES.values())


def test_every_public_name_is_on_the_reference_page():
    shown = re.findall(r"^::: cca\.(\w+)$", (DOCS / "reference.md").read_text(), flags=re.M)
    assert sorted(shown) == sorted(cca.__all__)


def texts(path: Path) -> list[str]:
    """The constant parts of all texts of a module: of an f-string those between its values."""
    return [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_every_message_of_the_troubleshooting_page_is_one_that_the_code_has():
    """What stands between the values of a quoted message: names in capitals, numbers and quotations."""
    said = "\n".join(text for path in (ROOT / "src").rglob("*.py") for text in texts(path))
    messages = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), flags=re.M)
    assert len(messages) >= 10
    for message in messages:
        parts = [part.strip(" :;,()") for part in re.split(r"\b[A-Z.]{3,}\b|\b\d[\d.]*\b|'[^']*'", message)]
        assert any(len(part) >= 8 and part in said for part in parts), message


@pytest.mark.parametrize(
    ("link", "without", "with_one"),
    [
        ("[the README](../README.md)", "the README (`README.md`)", "[the README](https://h/r/blob/HEAD/README.md)"),
        ("[a/b](../a/b)", "`a/b`", "[a/b](https://h/r/blob/HEAD/a/b)"),
        ("[x](../x.md#y)", "x (`x.md`)", "[x](https://h/r/blob/HEAD/x.md#y)"),
        ("[m](method.md#y)", "[m](method.md#y)", "[m](method.md#y)"),
        ("[c](../CONTRIBUTING.md)", "[c](contributing.md)", "[c](contributing.md)"),
        ("[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("![i](../i.png) [h](#h)", "![i](../i.png) [h](#h)", "![i](../i.png) [h](#h)"),
    ],
)
def test_links_that_lead_out_of_the_site_lead_to_the_repository_or_become_code(link, without, with_one):
    assert HOOKS.relinked(link, "page.md", None) == without
    assert HOOKS.relinked(link, "page.md", "https://h/r/") == with_one


def test_links_of_pages_from_the_top_of_the_repository_lead_into_the_site():
    assert HOOKS.relinked("[m](docs/method.md#y)", "contributing.md", None) == "[m](method.md#y)"
    assert HOOKS.relinked("[m](../../CONTRIBUTING.md)", "results/speed.md", None) == "[m](../contributing.md)"


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="the site is not built: make site installs mkdocs")
def test_the_site_builds_without_a_warning_and_asks_the_network_for_nothing(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in pages(CONFIG["nav"]):
        page = (tmp_path / "site" / name).with_suffix(".html").read_text()
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^\s\">]*", page)
        assert not fetched, name
        assert str(ROOT) not in page
    assert not (tmp_path / "site" / "hooks.py").exists()


def test_the_citation_names_the_version_and_licence_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == cca.__version__
    assert cited["license"] == project["license"]
    assert f"## {cca.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    for page in (*DOCS.rglob("*.md"), ROOT / "README.md"):
        for version in re.findall(r"constructive_circuit_amplification-([\d.]+)-py3", page.read_text()):
            assert version == cca.__version__, page.name


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "src" / "cca" / "py.typed").exists()
