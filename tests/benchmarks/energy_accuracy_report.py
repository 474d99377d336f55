"""The accuracy benchmark's figures as rows, as text, and as tables in docs/energy.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from pytest_llem.job.config import Thresholds
from tests.benchmarks.energy_accuracy_cases import IN_WORDS, LOADS, SENSORS
from tests.benchmarks.energy_accuracy_virtual import Run
from tests.figures import write_figures

OURS = "pytest-llem"
DOCS = Path(__file__).parents[2] / "docs" / "energy.md"


@dataclass(frozen=True)
class Row:
    """One meter on windows of one length: errors and bounds relative to the truth.

    `valid` counts the windows whose number may be used, `covered` those of them whose bound holds. `mean_bias` tells
    what repeating does not average out.
    """

    case: str
    meter: str
    window_s: float
    runs: int
    mean_error: float
    worst_error: float
    mean_bias: float
    median_bound: float | None = None
    valid: int | None = None
    covered: int | None = None


def row(
    case: str,
    meter: str,
    window_s: float,
    errors: Sequence[float],
    bounds: Sequence[float] | None,
    *,
    refused: bool = False,
) -> Row:
    """Sum up one meter's windows of one length; none is valid where its sensor was `refused`."""
    sizes = [abs(error) for error in errors]
    known = (case, meter, window_s, len(errors), fmean(sizes), max(sizes), fmean(errors))
    if not bounds:
        return Row(*known)
    limit = Thresholds().uncertainty_rel
    valid = [(size, bound) for size, bound in zip(sizes, bounds, strict=True) if bound <= limit and not refused]
    return Row(*known, median(bounds), len(valid), sum(size <= bound for size, bound in valid))


def show(rows: Sequence[Row]) -> None:
    """Print a table of percentages."""
    print(f"{'meter':<12} {'window':>7} {'runs':>5} {'mean':>8} {'worst':>8} {'bias':>8} {'bound':>8}  bound holds")
    for one in rows:
        bound = f"{100 * one.median_bound:7.3f}%" if one.median_bound is not None else f"{'-':>8}"
        holds = f"{one.covered} of {one.valid} valid" if one.valid is not None else "-"
        print(
            f"{one.meter:<12} {one.window_s:>6}s {one.runs:>5} {100 * one.mean_error:7.3f}% "
            f"{100 * one.worst_error:7.2f}% {100 * one.mean_bias:+7.3f}% {bound}  {holds}"
        )


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """For `--json`."""
    return [asdict(one) for one in rows]


def own_table(rows: Sequence[Row]) -> str:
    """Markdown: this project alone: the first case in full, the others in the windows that are hard and often used."""
    lines = [
        "| sensor | window | mean error | worst | median bound | valid | bound holds in |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        if one.case != rows[0].case and one.window_s not in (0.3, 1.0):
            continue
        covered, valid = one.covered or 0, one.valid or 0
        share = f"{covered / valid:.1%}" if valid else "-"
        lines.append(
            f"| {IN_WORDS[one.case]} | {one.window_s:g} s | {_percent(one.mean_error)} | {_percent(one.worst_error)} | "
            f"{_percent(one.median_bound)} | {valid} of {one.runs} | {share} |"
        )
    return "\n".join(lines)


def matrix_table(found: Mapping[tuple[str, str, float], Sequence[Run]], length: float) -> str:
    """Markdown: sensors by loads, for windows of one length: the median bound, and in how many valid ones it holds."""
    lines = [f"| {length:g} s | {' | '.join(LOADS)} |", "|" + "---|" * (1 + len(LOADS))]
    for sensor in SENSORS:
        cells = []
        for load in LOADS:
            runs = found[sensor.name, load, length]
            valid = [run for run in runs if run.valid]
            if not valid:
                cells.append("invalid")
                continue
            bound, held = median(run.bound or 0.0 for run in valid), fmean(run.covered for run in valid)
            few = "" if len(valid) == len(runs) else f", {len(valid) / len(runs):.0%} valid"
            cells.append(f"{_percent(bound)} ({held:.0%}{few})")
        lines.append(f"| {IN_WORDS[sensor.name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers_table(rows: Sequence[Row]) -> str:
    """Markdown: this project and the others on the same windows."""
    others = list(dict.fromkeys(one.meter for one in rows if one.meter != OURS))
    lines = [
        "| sensor | window | runs | this project | bound | bound holds | " + " | ".join(others) + " |",
        "|" + "---|" * (6 + len(others)),
    ]
    found: Mapping[tuple[str, float, str], Row] = {(one.case, one.window_s, one.meter): one for one in rows}
    for case, length in dict.fromkeys((one.case, one.window_s) for one in rows):
        own = found[case, length, OURS]
        errors = [_percent(found[case, length, m].mean_error) if (case, length, m) in found else "-" for m in others]
        lines.append(
            f"| {IN_WORDS[case]} | {length:g} s | {own.runs} | {_percent(own.mean_error)} | "
            f"{_percent(own.median_bound)} | {own.covered} of {own.valid} | " + " | ".join(errors) + " |"
        )
    return "\n".join(lines)


def write_docs(name: str, text: str) -> None:
    """Put a table into the page, as `write_figures` does."""
    write_figures(name, text, DOCS)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    percent = 100 * value
    if percent < 0.005:
        return "under 0.01 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 1 else f"{percent:.2f} %"
