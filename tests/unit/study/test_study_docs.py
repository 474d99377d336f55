"""Examples in docs: those of studies.md do what the text says; those of servers.md, load.md and studies/ load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pytest_llem
from pytest_llem.study import Study, load_study

DOCS = Path(pytest_llem.__file__).parent.parent / "docs"
STUDIES = sorted((DOCS.parent / "studies").glob("*.yaml"))
PAGE = (DOCS / "studies.md").read_text(encoding="utf-8")
SERVERS = [
    text
    for page in ("servers.md", "load.md")
    for text in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
]
EXAMPLES = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if not text.startswith("#")]
COUNTS = [1, 5, 8, 4, 2, 1]


def test_every_example_is_counted() -> None:
    assert len(EXAMPLES) == len(COUNTS)


@pytest.mark.parametrize(("text", "count"), list(zip(EXAMPLES, COUNTS, strict=True)))
def test_example_loads_and_has_as_many_experiments(load: Callable[..., Study], text: str, count: int) -> None:
    shared = "" if text.startswith("model") else "model: builtin:tiny-llama\n"

    assert len(load(shared + text).experiments) == count


@pytest.mark.parametrize("text", SERVERS)
def test_every_study_of_a_server_loads(load: Callable[..., Study], text: str) -> None:
    shared = "" if text.startswith("model") else "model: builtin:tiny-llama\nengine: openai\ndtype: float32\n"

    assert load(shared + text).experiments


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_ready_study_loads(path: Path) -> None:
    assert load_study(path).experiments
