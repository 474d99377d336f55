"""The tests that every study consists of, and what pytest shows of a cycle's outcome.

`collection` gives it to pytest as the module of each study file; `start` and `xdist.reports` use its functions. Names
of tests are part of node ids, and users' CI reads those of the properties, so neither may change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import LlemError, StoreError, WriteError

if TYPE_CHECKING:
    from pytest_llem.results.schema import Result
    from pytest_llem.results.state import Outcome
    from pytest_llem.results.summary import MetricSummary
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.session import LlemSession

OF_ANSWERS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "joules_per_correct_answer",
    "joules_per_correct_answer_uncertainty",
)
"""Properties of a cycle whose answers are scored."""
Property = tuple[str, "str | int | float | bool"]


def test_experiment(request: pytest.FixtureRequest, llem_session: LlemSession, llem_cycle: ExperimentCycle) -> None:
    """Measure one cycle, or one window of a search, and skip what is not needed.

    An invalid one is skipped with reasons, unless strict; a search's window whose load was too much is an answer.
    """
    execution = llem_cycle.study.execution
    precise = llem_session.results.precise_before(llem_cycle) if llem_cycle.optional else None
    if precise is not None:
        pytest.skip(
            f"precise enough: {execution.headline} ±{execution.target_ci:.2%} (95 %, scatter alone) "
            f"after {precise} cycles"
        )
    answered = llem_session.results.answered_before(llem_cycle) if llem_cycle.step is not None else None
    if answered is not None:
        answer, given_up = answered
        if given_up is not None:
            pytest.fail(message(given_up), pytrace=False)
        pytest.skip(f"not needed: {answer}")
    outcome = outcome_for(request.node, llem_session, llem_cycle)
    figures = llem_session.results.figures(llem_cycle)
    _set_properties(request.node, experiment_properties(figures, execution.headline))
    if outcome.state == "invalid" and llem_session.results.tells_of_load(llem_cycle, outcome):
        pytest.skip(f"more than the SLO allows: {'; '.join(outcome.reasons())}")
    if outcome.state == "invalid" and not llem_session.options.strict:
        unless_none_is_valid(llem_session, llem_cycle, f"invalid: {'; '.join(outcome.reasons())}")
    if outcome.state != "valid":
        pytest.fail(message(outcome), pytrace=False)


def test_gate(request: pytest.FixtureRequest, llem_session: LlemSession, llem_experiment: ExperimentCycle) -> None:
    """Judge one experiment by its budgets and against the baseline, measuring the cycles that are absent."""
    try:
        report = llem_session.results.judge(llem_experiment, llem_session.baseline)
    except StoreError as error:
        _end_if_unwritable(request.node, error)
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    verdicts: list[Property] = [
        ("llem_study", str(report.study)),
        ("llem_experiment", str(report.experiment_id)),
        ("llem_verdict", str(report.status)),
    ]
    if report.first:
        verdicts.append(("llem_first_verdict", "fail"))
    if report.baseline is not None:
        verdicts.append(("llem_baseline", str(report.baseline.name)))
    for row in report.rows:
        kind = "budget" if row.kind == "budget" else "compare"
        verdicts.append((f"llem_{kind}_{row.metric}", str(row.status)))
    figures = llem_session.results.figures(llem_experiment)
    of_experiment = experiment_properties(figures, llem_experiment.study.execution.headline)
    _set_properties(request.node, [*verdicts, *of_experiment])
    if report.failed:
        pytest.fail(report.text(), pytrace=False)
    if report.status != "pass":
        unless_none_is_valid(llem_session, llem_experiment, report.skip_reason())


def outcome_for(item: pytest.Item, session: LlemSession, cycle: ExperimentCycle) -> Outcome:
    """The outcome of a cycle, measured if it has not been yet, which becomes the item's properties."""
    try:
        outcome = session.results.get_or_measure(cycle, retried=True)
    except WriteError as error:
        _end_if_unwritable(item, error)
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    _end_if_unwritable(item, outcome.error)
    _set_properties(item, properties(outcome, item.config.rootpath, cycle.study.execution.headline))
    return outcome


def _end_if_unwritable(item: pytest.Item, error: LlemError | None) -> None:
    """End the run where results cannot be kept any more: what would be measured from here on would be lost."""
    if isinstance(error, WriteError):
        item.session.shouldfail = f"llem: {error.message}"


def unless_none_is_valid(session: LlemSession, cycle: ExperimentCycle, reason: str) -> None:
    """Skip an invalid cycle, but fail the last one of an experiment that has no valid cycle."""
    if session.none_valid(cycle):
        pytest.fail(f"no cycle of this experiment is valid; {reason}", pytrace=False)
    pytest.skip(reason)


def usable(outcome: Outcome, item: pytest.Item, session: LlemSession, cycle: ExperimentCycle) -> Result:
    """The result for a user's test: skipped when invalid, an error when the cycle or all of them failed."""
    marker = item.get_closest_marker("llem_study")
    allow_invalid = bool(marker and marker.kwargs.get("allow_invalid"))
    if outcome.state == "invalid" and not allow_invalid:
        unless_none_is_valid(session, cycle, f"{outcome.key}: invalid: {'; '.join(outcome.reasons())}")
    if outcome.result is None:
        pytest.fail(message(outcome), pytrace=False)
    return outcome.result


def message(outcome: Outcome) -> str:
    """The failure text of an outcome, with paths below the current directory shortened."""
    return outcome.message().replace(f"{Path.cwd()}{os.sep}", "")


def _set_properties(item: pytest.Item, entries: Sequence[Property]) -> None:
    """Set an item's JUnit properties in place of earlier ones of the same name: a plugin may run an item again."""
    names = {name for name, _ in entries}
    item.user_properties[:] = [*(entry for entry in item.user_properties if entry[0] not in names), *entries]


def properties(outcome: Outcome, rootpath: Path, headline: str | None = None) -> list[Property]:
    """The main figures of an outcome as JUnit properties: exact built-in types, which xdist can serialise; no nulls."""
    entries: list[Property] = [
        ("llem_study", str(outcome.key.study)),
        ("llem_experiment", str(outcome.key.item_id)),
        ("llem_status", str(outcome.state)),
        ("llem_artifact", os.path.relpath(outcome.directory, rootpath)),
    ]
    if outcome.source_run is not None:
        entries.append(("llem_source_run", str(outcome.source_run)))
    result = outcome.result
    if result is not None:
        from pytest_llem.results.metrics import metric

        energy, latency, quality = result.energy, result.latency, result.quality
        numbers = {
            **({} if headline is None else {headline: metric(headline).of(result)}),
            "energy_j": energy.energy_j,
            "uncertainty_j": energy.uncertainty_j,
            "joules_per_output_token": energy.joules_per_output_token,
            "joules_per_output_token_uncertainty": energy.joules_per_output_token_uncertainty,
            "avg_power_w": energy.avg_power_w,
            "avg_power_w_uncertainty": energy.avg_power_w_uncertainty,
            "output_tokens_per_s": result.throughput.output_tokens_per_s,
            **({} if quality is None else {name: getattr(quality, name) for name in OF_ANSWERS}),
            "ttft_p50_s": latency.ttft_s.p50 if latency.ttft_s else None,
            "tpot_p50_s": latency.tpot_s.p50 if latency.tpot_s else None,
        }
        entries.append(("llem_meter", str(energy.meter)))
        entries.append(("llem_energy_measured", bool(energy.measured)))
        entries.append(("llem_config_hash", str(outcome.key.config_hash)))
        entries.extend((f"llem_{name}", float(value)) for name, value in numbers.items() if value is not None)
    return entries


def experiment_properties(figures: Mapping[str, MetricSummary], headline: str) -> list[Property]:
    """An experiment's main figures with their expanded uncertainty, which is absent where it is not known."""
    entries: list[Property] = []
    names = (
        headline,
        "joules_per_output_token",
        "output_tokens_per_s",
        "max_rate_under_slo",
        "accuracy",
        "joules_per_correct_answer",
    )
    for name in dict.fromkeys(names):
        figure = figures.get(name)
        if figure is not None:
            entries.append((f"llem_experiment_{name}", float(figure.value)))
            if figure.uncertainty is not None:
                entries.append((f"llem_experiment_{name}_uncertainty", float(figure.uncertainty)))
            if name in OF_ANSWERS and figure.low is not None and figure.high is not None:
                entries.append((f"llem_experiment_{name}_low", float(figure.low)))
                entries.append((f"llem_experiment_{name}_high", float(figure.high)))
    return entries
