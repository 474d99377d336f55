"""The Python examples of docs/results.md, run as they stand on a stored run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from pytest_llem.results.layout import CycleKey
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

PAGE = Path(__file__).parents[3] / "docs" / "results.md"


def test_the_documented_examples_run(
    tmp_path: Path,
    bench: Bench,
    key: CycleKey,
    worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pandas", reason="to_dataframe needs pandas")
    store = RunStore.create(tmp_path / "llem-results", "run-1", environment={"hostname": "here"})
    for cycle in (1, 2, 3):
        each = replace(key, cycle=cycle)
        get_or_measure(store, each, worker(each, bench.measurement()))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "llem-results", "--format", "requests", "-o", "all.parquet"]) == 0
    for name in ("load", "requests"):
        found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        exec(compile(found.group(1), str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "study batch_size:1 [0.8333" in said
    assert re.search(r"^3 .*experiment", said, flags=re.MULTILINE)
