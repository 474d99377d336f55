"""The summary table: numbers as people read them, and ids that stay distinct on a narrow terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.results.summary import ExperimentSummary, MetricSummary
from pytest_llem.session.reporting.summary import quantity, significant, summary_lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (0.01234, "12.3 mJ"),
        (0.9996, "1.00 J"),
        (999.4, "999 J"),
        (999.6, "1.00 kJ"),
        (1234.5, "1.23 kJ"),
        (3.6e6, "3.60 MJ"),
        (5e-7, "500 nJ"),
        (-0.5, "-500 mJ"),
    ],
)
def test_quantities_have_three_significant_digits_and_a_prefix(value: float, text: str) -> None:
    assert quantity(value, "J") == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.12345, "0.123")])
def test_plain_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def row(identity: str, **more: object) -> ExperimentSummary:
    metrics = {
        "joules_per_output_token": MetricSummary(0.0123, 0.0003, 3),
        "output_tokens_per_s": MetricSummary(512.0, None, 2),
        "energy_j": MetricSummary(12.3, 0.1, 3),
    }
    values: dict[str, object] = {"meter": "estimate", "measured": False, "metrics": metrics, **more}
    return ExperimentSummary(
        study="s",
        experiment_id=identity,
        config_hash="0" * 64,
        engine="transformers",
        model="m",
        cycles_valid=3,
        cycles_total=3,
        states={"valid": 3},
        reasons=(),
        warnings=(),
        **values,  # type: ignore[arg-type]
    )


def test_a_narrow_terminal_loses_columns_before_ids_lose_what_distinguishes_them() -> None:
    rows = [row("batch_size:1-dtype:float32"), row("batch_size:1-dtype:bfloat16")]
    wide = summary_lines(rows, Path("r"), 120)
    narrow = summary_lines(rows, Path("r"), 70)
    assert "energy" in wide[1]
    assert "energy" not in narrow[1]
    assert all(len(line) <= 70 for line in narrow[1:4])
    assert "batch_size:1-dtype:float32" in narrow[2]


def test_an_estimate_is_never_shown_as_if_it_were_measured() -> None:
    assert any("NOT measured" in line for line in summary_lines([row("a")], Path("r"), 100))
    assert any(
        "measured by nvml" in line for line in summary_lines([row("a", meter="nvml", measured=True)], Path("r"), 100)
    )


def test_what_was_not_measured_is_a_dash() -> None:
    lines = summary_lines([row("a", meter="none", measured=False, metrics={})], Path("r"), 100)
    assert lines[2].split() == ["a", "3/3", "-", "-", "-"]
