"""From outcomes to what pytest shows: passed, skipped with reasons, failed with a short message, and properties."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_llem.results.outcome import Outcome
    from pytest_llem.results.schema import Result
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.session import LlemSession

Property = tuple[str, "str | int | float | bool"]


def message(outcome: Outcome) -> str:
    """The failure text of an outcome, with paths below the current directory shortened."""
    return outcome.message().replace(f"{Path.cwd()}{os.sep}", "")


def check(outcome: Outcome, *, strict: bool) -> None:
    """Pass a valid cycle, skip an invalid one with its reasons (fail it when strict), fail everything else."""
    if outcome.state == "invalid" and not strict:
        pytest.skip(f"invalid: {'; '.join(outcome.reasons())}")
    if outcome.state != "valid":
        pytest.fail(message(outcome), pytrace=False)


def usable(outcome: Outcome, item: pytest.Item) -> Result:
    """The result for a user's test: skipped when invalid, an error when the cycle failed."""
    marker = item.get_closest_marker("llem_study")
    allow_invalid = bool(marker and marker.kwargs.get("allow_invalid"))
    if outcome.state == "invalid" and not allow_invalid:
        pytest.skip(f"{outcome.key}: invalid: {'; '.join(outcome.reasons())}")
    if outcome.result is None:
        pytest.fail(message(outcome), pytrace=False)
    return outcome.result


def skip_if_precise(session: LlemSession, point: ExperimentCycle) -> None:
    """Skip an optional cycle when the cycles before it, measured here where absent, reach `target_ci`."""
    execution = point.study.execution
    if not point.optional or execution.target_ci is None:
        return
    from pytest_llem.results.precision import precise_after

    outcomes: list[Outcome] = []
    for cycle in range(1, point.cycle or 1):
        outcomes.append(session.get_or_measure(replace(point, cycle=cycle), item=None))
        width = precise_after(outcomes, execution)
        if width is not None:
            pytest.skip(
                f"precise enough: {execution.headline} ±{width:.2%} after {cycle} cycles "
                f"(target_ci {execution.target_ci:.2%})"
            )


def judge(session: LlemSession, point: ExperimentCycle, item: pytest.Item) -> None:
    """Judge one experiment by its budgets and against the baseline, measuring the cycles that are absent."""
    from pytest_llem.errors import StoreError
    from pytest_llem.results.judging import judge_experiment, write_gate

    outcomes = [session.get_or_measure(cycle, item=None) for cycle in point.cycles()]
    experiment = point.experiment
    try:
        report = judge_experiment(
            outcomes, experiment.expect, experiment.compare, session.baseline, strict=session.options.strict
        )
    except StoreError as error:
        pytest.fail(str(error), pytrace=False)
    write_gate(outcomes[0].directory.parent, report)
    found: list[Property] = [
        ("llem_study", str(point.study.name)),
        ("llem_experiment", str(experiment.id)),
        ("llem_verdict", str(report.status)),
    ]
    set_properties(item, [*found, *((f"llem_gate_{row.metric}", str(row.status)) for row in report.rows)])
    if report.failed:
        pytest.fail(report.text(), pytrace=False)
    if report.status != "pass":
        pytest.skip(report.skip_reason())


def set_properties(item: pytest.Item, found: Sequence[Property]) -> None:
    """Set an item's JUnit properties in place of earlier ones of the same name: a plugin may run an item again."""
    names = {name for name, _ in found}
    item.user_properties[:] = [*(entry for entry in item.user_properties if entry[0] not in names), *found]


def properties(outcome: Outcome, rootpath: Path) -> list[Property]:
    """The headline of an outcome as JUnit properties: exact built-in types, which xdist can carry; no nulls."""
    found: list[Property] = [
        ("llem_study", str(outcome.key.study)),
        ("llem_experiment", str(outcome.key.experiment_id)),
        ("llem_status", str(outcome.state)),
        ("llem_artifact", os.path.relpath(outcome.directory, rootpath)),
    ]
    result = outcome.result
    if result is not None:
        numbers: Mapping[str, Any] = {
            "energy_j": result.energy.energy_j,
            "uncertainty_j": result.energy.uncertainty_j,
            "joules_per_output_token": result.energy.joules_per_output_token,
            "avg_power_w": result.energy.avg_power_w,
            "output_tokens_per_s": result.throughput.output_tokens_per_s,
            "ttft_p50_s": result.latency.ttft_s.p50 if result.latency.ttft_s else None,
            "tpot_p50_s": result.latency.tpot_s.p50 if result.latency.tpot_s else None,
        }
        found.append(("llem_meter", str(result.energy.meter)))
        found.append(("llem_energy_measured", bool(result.energy.measured)))
        found.append(("llem_config_hash", str(outcome.key.config_hash)))
        found.extend((f"llem_{name}", float(value)) for name, value in numbers.items() if value is not None)
    return found
