"""What mkdocs is told besides mkdocs.yml: pages that lie outside of docs/, and links that lead out of it."""

import posixpath
import re
from typing import Any

PAGES = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that are files at the top of the repository."""
LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as on GitHub, so that one link leads to it here and there."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    from pathlib import Path

    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    return relinked(markdown, page.file.src_uri, config.repo_url)


def relinked(markdown: str, name: str, repository: str | None) -> str:
    """`markdown` of the page `name` with links that lead out of docs/ made into ones that lead somewhere.

    repository: the address of the repository, to whose files they lead then. Where there is none they become code.
    """
    here = posixpath.dirname(PAGES.get(name, f"docs/{name}"))
    pages = {source: page for page, source in PAGES.items()}

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(here, target))
        page = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is not None:
            return f"[{text}]({posixpath.relpath(page, posixpath.dirname(name) or '.')}{anchor})"
        if repository:
            return f"[{text}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(replaced, markdown)
