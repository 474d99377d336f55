"""The end of a run: manifest, summaries, gates and what they share, the baseline asked for, what the terminal is told.

`RunResults` calls it once, in the process that ends the run. What could not be written must not be lost with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pytest_llem.errors import StoreError
from pytest_llem.job.files import noted
from pytest_llem.results.baselines import Saved, save_baseline
from pytest_llem.results.carry_over import CarryOver, CycleMark, carry_overs, mark
from pytest_llem.results.device_axes import device_axes
from pytest_llem.results.device_optimum import Optimum, optima
from pytest_llem.results.gate_report import GateReport, gate_files, write_gate
from pytest_llem.results.layout import MANIFEST, CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan, read_manifest, rebuild_manifest
from pytest_llem.results.optimize_record import OptimizeRecord, read_records
from pytest_llem.results.preregister import registered_lines
from pytest_llem.results.reading import Results
from pytest_llem.results.run_verdict import RunFinding, run_findings, with_common
from pytest_llem.results.search_record import SearchRecord, read_searches
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import ExperimentSummary, summarise, with_impact, write_summary
from pytest_llem.session.run import RunOptions


@dataclass(frozen=True)
class Conclusion:
    """A finished run: a row per experiment, the gates' verdicts and what they share, and the baseline saved, if any.

    `left` are cycles that have not ended, of those `planned`: never started, interrupted, or lost with their process.
    `registered` holds registered studies against their registrations, a line each. `problems` says what could not be
    written; the run must not pass then.
    """

    plans: tuple[StudyPlan, ...]
    planned: int
    left: int
    rows: tuple[ExperimentSummary, ...]
    gates: tuple[GateReport, ...]
    findings: tuple[RunFinding, ...]
    searches: tuple[SearchRecord, ...]
    races: tuple[OptimizeRecord, ...]
    optima: tuple[Optimum, ...]
    carried: tuple[CarryOver, ...]
    saved: Saved | None
    registered: tuple[str, ...]
    problems: tuple[str, ...]


def conclude(store: RunStore, options: RunOptions, *, interrupted: bool, stopped: bool) -> Conclusion:
    """Bring manifest and summaries up to date; save the baseline asked for, without results of failed gates.

    Of a run that was `stopped` before its last item, the next round of a race is left to measure.
    """
    run_dir = store.run_dir
    problems: list[str] = []
    manifest = read_manifest(run_dir / MANIFEST)
    races = tuple(read_records(run_dir))
    next_rounds = {race.study: race for race in races if stopped}
    plans = tuple(_with_next_round(plan, next_rounds.get(plan.name)) for plan in manifest.studies)
    with noted(problems):
        manifest = rebuild_manifest(run_dir, studies=plans, finished=True, interrupted=interrupted)
    keys = [item.key for item in manifest.items]
    axes = {plan.name: plan.study_axes() for plan in manifest.studies}
    marks: dict[CycleKey, CycleMark | None] = {}  # taken while outcomes are read, which are not kept

    def outcome_of(key: CycleKey) -> Outcome | None:
        outcome = store.outcome(key)
        if outcome is not None and outcome.result is not None:
            marks[key] = mark(outcome.result, manifest)
        return outcome

    try:
        rows = tuple(summarise(keys, outcome_of, options.baseline_dir, manifest.studies))
    except StoreError:  # a file of `llem aa` that cannot be read must not cost the run its summary
        rows = tuple(summarise(keys, outcome_of, plans=manifest.studies))
    rows = tuple(with_impact(rows, manifest.studies))
    carried = tuple(carry_overs(run_dir, manifest, marks.values()))
    found = tuple(optimum for plan in manifest.studies for optimum in _optima(store, plan, keys))
    judged = gate_files(run_dir)
    findings = tuple(run_findings(judged.values()))
    gates = []
    with noted(problems):
        write_summary(run_dir, list(rows), findings, axes, found, carried, manifest.studies, races)
    for directory, report in judged.items():
        gates.append(with_common(report, findings))
        if gates[-1] != report:
            with noted(problems):
                write_gate(directory, gates[-1])
    saved = None
    if options.save_baseline:
        outcomes = [outcome for key in keys if (outcome := store.outcome(key)) is not None]
        absent = [outcome.key for outcome in outcomes if outcome.result is None]
        with noted(problems, "the baseline is not saved: "):
            saved = save_baseline(
                options.save_baseline,
                [outcome.result for outcome in outcomes if outcome.result is not None],
                options.baseline_dir,
                failing={
                    *((key.study, key.experiment_id) for key in absent),
                    *((gate.study, gate.experiment_id) for gate in gates if gate.status == "fail"),
                },
                plans=manifest.studies,
            )
    left = sum(item.state in ("pending", "running", "interrupted", "crashed") for item in manifest.items)
    return Conclusion(
        plans=manifest.studies,
        planned=len(manifest.items),
        left=left,
        rows=rows,
        gates=tuple(gates),
        findings=findings,
        searches=tuple(read_searches(run_dir)),
        races=races,
        optima=found,
        carried=carried,
        saved=saved,
        registered=tuple(registered_lines(manifest)),
        problems=tuple(dict.fromkeys(problems)),
    )


def _with_next_round(plan: StudyPlan, race: OptimizeRecord | None) -> StudyPlan:
    """The plan with the cycles of a race's next round, which nobody knew when the run began."""
    if race is None:
        return plan
    number = race.rounds + 1
    needed = (PlannedCycle(id, race.settings[id].config_hash, number) for id in race.needed)
    return replace(plan, cycles=tuple(dict.fromkeys((*plan.cycles, *needed))))


def _optima(store: RunStore, plan: StudyPlan, keys: Iterable[CycleKey]) -> list[Optimum]:
    axes = plan.study_axes()
    if not device_axes(axes.axes):
        return []  # results are read again for it
    outcomes = (store.outcome(key) for key in keys if key.study == plan.name)
    results = [outcome.result for outcome in outcomes if outcome is not None and outcome.result is not None]
    return optima(Results(tuple(results)), axes, plan.headline)
