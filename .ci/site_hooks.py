"""Hooks of the documentation site: files outside docs/ that its pages link to.

mkdocs calls them (`hooks` in mkdocs.yml). Pages link to the repository's files by relative paths, as GitHub shows them;
here such a file becomes a page of its own (`PAGES`) or a plain copy below `source/`. A link to a file that is not there
is left alone, so that mkdocs reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "tests/benchmarks/README.md": "benchmarks.md",
}
"""Files of the repository that are pages of the site, by their name there."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the copies."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    copies = set()
    for file in files.documentation_pages():
        parts = FENCE.split(file.content_string)
        targets = {match[2] for part in parts[::2] for match in LINK.finditer(part)}
        copies |= {path for target in targets if (path := repository_path(file.src_uri, target)) is not None}
    for path in sorted(copies - set(PAGES)):
        files.append(File.generated(config, copy_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the repository's files at their pages and copies."""
    del config, files
    here = page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        path = repository_path(here, match[2])
        if path is None:
            return match[0]
        target = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path) or copy_of(path)
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{match[3]}"

    # Every second part is a fenced block, which stays as it is.
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(replace, part) for part in parts[::2]]
    return "".join(parts)


def repository_path(page: str, target: str) -> str | None:
    """The file that a link means, as a path in the repository; `None` for other links and for files in docs/.

    A page that comes from elsewhere links as from there, also to files in docs/.
    """
    if ":" in target or target.startswith("/"):
        return None
    origin = next((path for path, name in PAGES.items() if name == page), None)
    base = PurePosixPath(origin or f"docs/{page}").parent
    path = posixpath.normpath(str(base / target))
    if path.startswith("..") or not (ROOT / path).is_file():
        return None
    return None if path.startswith("docs/") and origin is None else path


def copy_of(path: str) -> str:
    """Where a copy lies in the site: with a suffix that keeps mkdocs from reading it as a page."""
    return f"source/{path}.txt" if path.endswith(".md") else f"source/{path}"
