"""A data set through a whole run: its own lengths by default, and a cut that plan, result and a warning tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

pytestmark = pytest.mark.engine


@pytest.fixture
def measured(pytester: pytest.Pytester, faults: Callable[..., Path]) -> Callable[[str, str], dict[str, Any]]:
    """The result of a cycle on two texts, with these settings of the workload; the faulty engine reads letters."""

    def run(dataset: str, workload: str) -> dict[str, Any]:
        texts = ["x" * 591, "short", "not needed"]
        (pytester.path / "p.txt").write_text("\n".join(texts))
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": texts}), pytester.path / "p.parquet")
        study = faults("none")
        settings = f"prompts: 2, dataset: {dataset}, output_tokens: 4, {workload}"
        study.write_text(study.read_text().replace("prompts: 2, input_tokens: 8, output_tokens: 4", settings))
        pytester.runpytest_inprocess(f"--llem-study={study.name}").assert_outcomes(passed=1)
        (path,) = pytester.path.glob("llem-results/*/faults/*/c1/result.json")
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    return run


def test_a_data_set_keeps_its_own_lengths(measured: Callable[[str, str], dict[str, Any]]) -> None:
    result = measured("p.txt", "seed: 1")
    assert result["workload"]["input_tokens"] == 596
    assert result["workload"]["prompts_truncated"] == {"prompts": 0, "tokens_before": 0, "tokens_after": 0}
    assert result["workload"]["finish_reasons"].keys() == {"length"}
    assert "prompts_truncated" not in {warning["code"] for warning in result["warnings"]}


def test_a_cut_that_is_asked_for_is_counted_and_said(
    pytester: pytest.Pytester, measured: Callable[[str, str], dict[str, Any]]
) -> None:
    """The worker has the texts of a Parquet file from the pytest side: it cannot read one itself."""
    result = measured("p.parquet", "input_tokens: 128, ignore_eos: false")
    assert result["workload"]["input_tokens"] == 133
    assert result["workload"]["prompts_truncated"] == {"prompts": 1, "tokens_before": 591, "tokens_after": 128}
    said = {warning["code"]: warning["message"] for warning in result["warnings"]}
    assert "1 of 2 prompts" in said["prompts_truncated"]
    assert "ended by length" in said["outputs_truncated"]
    plan = pytester.runpytest_inprocess("--llem-study=faults.yaml", "--collect-only")
    plan.stdout.fnmatch_lines(["*prompts: p.parquet: longer prompts are cut to 128 tokens; how many, each result says"])
