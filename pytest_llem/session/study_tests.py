"""The tests that every study consists of, and what pytest shows of a cycle's outcome.

`collection` gives it to pytest as the module of each study file; `start` and `xdist.reports` use its functions. Names
of tests are part of node ids, and users' CI reads those of the properties, so neither may change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_llem.errors import LlemError, StoreError, WriteError
from pytest_llem.session.experiment_cycle import study_answered

if TYPE_CHECKING:
    from pytest_llem.results.optimize_record import OptimizeRecord
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
    races = llem_cycle.study.optimize is not None
    if races:
        skip_unless_raced(request.node, llem_session, llem_cycle)
    precise = llem_session.results.precise_before(llem_cycle) if llem_cycle.optional and not races else None
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
    if races:
        llem_session.results.races.look(llem_cycle.study)
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


def test_optimum(request: pytest.FixtureRequest, llem_session: LlemSession) -> None:
    """Say which of a study's settings is best, measuring what the race over them needs and has not got.

    It fails where no setting keeps the limits, or none could be measured. Where the answer is not certain enough it is
    skipped, or fails when strict.
    """
    study = study_answered(request.node)
    assert study is not None, "a study's file alone has this test"
    with _unless_unwritable(request.node):
        record = llem_session.results.races.finish(study)
    if record is None:
        _inconclusive(
            llem_session, "fewer than two of the study's settings are selected: there is nothing to choose from"
        )
    _set_properties(request.node, optimum_properties(record))
    told = "\n".join(record.lines())
    if not record.best:
        pytest.fail(told, pytrace=False)
    if record.status != "found":
        _inconclusive(llem_session, told if llem_session.options.strict else record.sentence)


def _inconclusive(session: LlemSession, reason: str) -> NoReturn:
    if session.options.strict:
        pytest.fail(f"inconclusive: {reason}", pytrace=False)
    pytest.skip(f"inconclusive: {reason}")


def skip_unless_raced(item: pytest.Item, session: LlemSession, cycle: ExperimentCycle) -> None:
    """Skip a test of a cycle that the race over its study's settings does not need, with the reason.

    The first one after a setting whose cycles were all invalid fails, as the last of them does without a race.
    """
    if cycle.study.optimize is None or cycle.cycle is None:
        return
    results = session.results
    with _unless_unwritable(item):
        reason = results.races.not_needed(cycle)
    if reason is None:
        return
    before = (replace(cycle, cycle=number) for number in range(1, cycle.cycle))
    needed = [each for each in before if results.races.not_needed(each) is None]
    if needed and needed[-1].cycle == cycle.cycle - 1 and results.none_valid(needed, ("invalid",)):
        pytest.fail(f"no cycle of this experiment is valid; {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def _unless_unwritable(item: pytest.Item) -> Iterator[None]:
    """End the run where results cannot be kept any more, and fail the item."""
    try:
        yield
    except WriteError as error:
        _end_if_unwritable(item, error)
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def outcome_for(item: pytest.Item, session: LlemSession, cycle: ExperimentCycle) -> Outcome:
    """The outcome of a cycle, measured if it has not been yet, which becomes the item's properties."""
    with _unless_unwritable(item):
        outcome = session.results.get_or_measure(cycle, retried=True)
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


def optimum_properties(record: OptimizeRecord) -> list[Property]:
    """What a race found as JUnit properties; what it did not find is absent."""
    entries: list[Property] = [
        ("llem_study", record.study),
        ("llem_optimum_status", record.status),
        ("llem_optimum_set", ", ".join(record.best)),
        ("llem_optimum_cycles", record.measured),
    ]
    if record.recommended is not None:
        entries.append(("llem_optimum", record.recommended))
        value = record.settings[record.recommended].value
        if value is not None:
            entries.append((f"llem_optimum_{record.metric}", value))
    if record.regret_high is not None:
        entries.append(("llem_optimum_regret_high", record.regret_high))
    if record.left_out:
        entries.append(("llem_optimum_left_out", len(record.left_out)))
    if record.rests_on is not None:
        entries.append(("llem_optimum_rests_on", record.rests_on))
    return entries
