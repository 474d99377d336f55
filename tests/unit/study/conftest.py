from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_llem.study import Overrides, Study, load_study

Load = Callable[..., Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a study from its text; the file is called study.yaml unless `name` says otherwise."""

    def from_text(
        text: str,
        name: str = "study.yaml",
        overrides: Overrides | None = None,
        env: Mapping[str, str] | None = None,
        execution: Mapping[str, object] | None = None,
    ) -> Study:
        path = tmp_path / name
        path.write_text(dedent(text), encoding="utf-8")
        return load_study(path, overrides=overrides, env=env or {}, execution=execution)  # type: ignore[arg-type]

    return from_text
