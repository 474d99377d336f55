"""Prints docs/errors.md with its tables of error categories anew, from the error classes.

`nox -s pages` writes the page by it, and a test holds both together. The rest of the page is written by hand; `main`
fails where the package writes a code that the page does not list, or the page lists one that nothing writes any more.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_llem.containers.errors import error_classes
from pytest_llem.errors import LlemError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
CODES = ("Reasons why a result is invalid", "Warnings")
"""Headings of the tables that have the codes of `Note`; those of `RequestFailedError` are in a table of their own."""


def listed(page: str, *headings: str) -> set[str]:
    """The codes in the first column of the tables below these headings of the page."""
    sections = (page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] for heading in headings)
    return {code for section in sections for code in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)}


def written(sources: list[str], name: str) -> set[str]:
    """The codes that the package's source passes to this class as a literal."""
    codes = set()
    for call in (node for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).rpartition(".")[2] == name:
            given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "code")]
            codes |= {code.value for code in given if isinstance(code, ast.Constant)}
    return codes


def subclasses(cls: type[LlemError]) -> Iterator[type[LlemError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def sentence(cls: type[LlemError]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def with_rows(page: str, heading: str, rows: list[tuple[str, ...]]) -> str:
    """The page with these rows in the table below a heading, in place of those that it has."""
    cells = "".join("".join(f"| {cell.replace('|', chr(92) + '|')} " for cell in row) + "|\n" for row in rows)
    table = re.compile(rf"(\n## {heading}\n.*?\n\|[-|]+\|\n)(?:\|[^\n]*\n)*", re.DOTALL)
    return table.sub(lambda found: found[1] + cells, page, count=1)


def main() -> None:
    """Print the page; `SystemExit` where its codes and the source differ."""
    page = PAGE.read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "pytest_llem").rglob("*.py")]
    codes = listed(page, *CODES)
    absent = (written(sources, "Note") - codes) | (
        written(sources, "RequestFailedError") - listed(page, "Failed requests")
    )
    stale = {code for code in codes if not any(f'"{code}"' in text for text in sources)}
    if absent or stale:
        raise SystemExit(f"docs/errors.md: add {sorted(absent)}, remove {sorted(stale)}")
    docker = error_classes()
    general = [
        (f"`{cls.category}`", sentence(cls), f"`{cls.__name__}`")
        for cls in [LlemError, *subclasses(LlemError)]
        if cls.__module__ == "pytest_llem.errors"
    ]
    containers = [
        (f"`{category}`", sentence(cls), (cls.advice or "").format(image="IMAGE")) for category, cls in docker.items()
    ]
    sys.stdout.write(with_rows(with_rows(page, "Error categories", general), "Docker", containers))


if __name__ == "__main__":
    main()
