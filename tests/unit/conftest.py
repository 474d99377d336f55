"""What unit tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed import Site, forget


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty directory on the path, for packages with entry points."""
    (tmp_path / "site").mkdir()
    yield Site(tmp_path / "site", monkeypatch)
    forget()
