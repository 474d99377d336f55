"""The summary table: numbers as people read them, and ids that stay distinct on a narrow terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.results.summary import ExperimentSummary, MetricSummary
from pytest_llem.results.terminal import plus_minus, quantity, significant
from pytest_llem.session.reporting.summary import summary_lines


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


@pytest.mark.parametrize(
    ("value", "uncertainty", "text"),
    [
        (0.41234, 0.00687, "412.3 ± 6.9 mJ"),
        (0.41234, 0.0987, "412 ± 99 mJ"),
        (0.41234, 0.00996, "412 ± 10 mJ"),
        (1234.5, 1700.0, "1.2 ± 1.7 kJ"),
        (12.3, None, "12.3 J ±?"),
        (12.3, 0.0, "12.3 J"),
        (-0.5, 0.02, "-500 ± 20 mJ"),
    ],
)
def test_an_uncertainty_has_two_digits_and_its_value_the_same_place(
    value: float, uncertainty: float | None, text: str
) -> None:
    assert quantity(value, "J", uncertainty) == text


def test_an_uncertainty_as_large_as_hundreds_takes_no_decimals() -> None:
    assert plus_minus(51234.0, 310.0) == "51234 ± 310"
    assert plus_minus(512.0, None) == "512 ±?"


def known(value: float, uncertainty: float | None, spread: float | None) -> MetricSummary:
    half = None if spread is None else spread / 2
    return MetricSummary(value, half, 3, value, uncertainty, spread, 2.0)


def row(identity: str, **more: object) -> ExperimentSummary:
    metrics = {
        "joules_per_output_token": known(0.0123, 0.0004, 0.000246),
        "output_tokens_per_s": known(512.0, 7.3, None),
        "energy_j": known(12.3, 0.41, 0.2),
    }
    values: dict[str, object] = {"meter": "estimate", "measured": False, "metrics": metrics}
    values |= {"states": {"valid": 3}, "reasons": (), **more}
    return ExperimentSummary(
        study="s",
        experiment_id=identity,
        config_hash="0" * 64,
        engine="transformers",
        model="m",
        cycles_valid=3,
        cycles_total=3,
        warnings=(),
        **values,  # type: ignore[arg-type]
    )


def test_a_narrow_terminal_loses_columns_before_ids_lose_what_distinguishes_them() -> None:
    rows = [row("batch_size:1-dtype:float32"), row("batch_size:1-dtype:bfloat16")]
    wide = summary_lines(rows, Path("r"), 120)
    narrow = summary_lines(rows, Path("r"), 70)
    assert "energy" in wide[1]
    assert "energy" not in narrow[1]
    assert not any("spread" in line for line in narrow)
    assert all(len(line) <= 70 for line in narrow[1:4])
    assert "batch_size:1-dtype:float32" in narrow[2]


def test_a_number_stands_with_its_expanded_uncertainty_and_the_spread_apart() -> None:
    """Half an interquartile range stood behind ±, which holds the true value in under half of studies."""
    lines = summary_lines([row("a")], Path("r"), 120)
    assert "12.30 ± 0.40 mJ" in lines[2]
    assert "2.0%" in lines[2]
    assert "512.0 ± 7.3" in lines[2]
    assert any("expanded uncertainty (95 %" in line for line in lines)
    assert any("spread: interquartile range" in line for line in lines)


def test_an_unknown_uncertainty_and_the_boards_gain_are_said() -> None:
    metrics = {"joules_per_output_token": known(0.0123, None, None)}
    lines = summary_lines([row("a", metrics=metrics, gain_uncertainty_rel=0.05)], Path("r"), 120)
    assert "12.3 mJ ±?" in lines[2]
    assert any("±? is not known" in line for line in lines)
    assert any("gain error, 5%, is apart" in line for line in lines)


def test_an_estimate_is_never_shown_as_if_it_were_measured() -> None:
    assert any("NOT measured" in line for line in summary_lines([row("a")], Path("r"), 100))
    assert any(
        "measured by nvml" in line for line in summary_lines([row("a", meter="nvml", measured=True)], Path("r"), 100)
    )


def test_what_was_not_measured_is_a_dash() -> None:
    lines = summary_lines([row("a", meter="none", measured=False, metrics={})], Path("r"), 100)
    assert lines[2].split() == ["a", "3/3", "-", "-", "-", "-"]


def test_why_cycles_are_not_valid_is_said_without_an_option() -> None:
    """On a busy machine the table had 0/3 in each row, pytest `12 skipped`, and nothing said why."""
    invalid = {"states": {"invalid": 3}, "reasons": ("cpu_contended: the processes waited", "the worker was killed")}
    lines = summary_lines([row("a", **invalid), row("b", states={"valid": 2, "invalid": 1})], Path("r"), 120)
    assert "not valid: 4 cycles (cpu_contended): `pytest -rs` says more" in lines
    assert not any("not valid" in line for line in summary_lines([row("a")], Path("r"), 120))
