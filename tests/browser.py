"""A real browser for tests of pages: what it complains of, and what it asks for.

The conftest of tests/unit/results imports the fixtures; no test may start a browser of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

CHROMIUM = os.environ.get("LLEM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def skip_or_fail(reason: str) -> NoReturn:
    """Skip, or fail where the environment promises a browser."""
    if os.environ.get("LLEM_REQUIRE_BROWSER") == "1":
        pytest.fail(f"LLEM_REQUIRE_BROWSER=1, and {reason}")
    pytest.skip(reason)


@dataclass
class Opened:
    """A page with what went wrong on it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """For no longer than a module: while it is open, its event loop is this thread's, and nobody else may run one."""
    try:
        sync_api = import_module("playwright.sync_api")
    except ImportError:
        skip_or_fail("playwright is not installed (extra `dev`)")
    if CHROMIUM is None:
        skip_or_fail("there is no Chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(browser: Any) -> Callable[..., Opened]:
    def open_page(file: Path, **options: Any) -> Opened:
        opened = Opened(browser.new_page(**options))
        opened.page.on("console", lambda line: opened.complaints.append(f"{line.type}: {line.text}"))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(file.as_uri())
        return opened

    return open_page
