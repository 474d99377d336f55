"""`llem score`: scores stored answers again, shows what that changes, and with `--write` keeps it in the run.

`cli` calls it. What was measured must not change, and what was scored before stays beside the new scores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

from pytest_llem.errors import JsonValue, LlemError, SettingsError, StoreError
from pytest_llem.job.answers import read_answers, write_answers
from pytest_llem.job.config import ExperimentConfig, ScoreBy, WorkloadSettings
from pytest_llem.job.files import expanded, write_bytes
from pytest_llem.job.job import JobDir
from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.carry_over import carry_overs, mark
from pytest_llem.results.gate_report import gate_files
from pytest_llem.results.layout import MANIFEST, CycleKey, runs_at
from pytest_llem.results.manifest import read_manifest
from pytest_llem.results.reading import load_rows, measurement_id
from pytest_llem.results.rescored import Rescored, rescored
from pytest_llem.results.run_verdict import run_findings
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import to_keep
from pytest_llem.results.store import RunStore, write_result
from pytest_llem.results.summary import MetricSummary, summarise, summarise_metrics, with_impact, write_summary
from pytest_llem.results.terminal import counted, fitted_table, quantity, show

SHOWN = 5
"""Chosen: so many questions with other scores tell what a scorer does; `--format json` has all."""
HEAD = ("experiment", "scorer", "questions", "right", "accuracy", "95 % interval", "per right answer", "changed")


def score(options: argparse.Namespace) -> int:
    """`llem score`: print a row per experiment. `LlemError` where answers cannot be scored: then nothing is written."""
    wanted = None if options.score is None else parsed(options.score)
    by_run = [(run, _of_run(run, wanted)) for path in options.paths for run in runs_at(path) or [path]]
    if not any(cycles for _, cycles in by_run):
        names = ", ".join(map(str, options.paths))
        raise StoreError(f"{names}: no answers were scored here", fix="measure with workload.score, which keeps them")
    if options.write:
        for run, _ in by_run:
            if not (run / MANIFEST).is_file():
                raise SettingsError(f"{run}: --write brings the summary of a whole run up to date", fix="name the run")
    groups = [group for _, cycles in by_run for group in _by_experiment(cycles)]
    if options.format == "json":
        encoded = [_encoded(group, options.baseline_dir) for group in groups]
        show(json.dumps(encoded, indent=2, allow_nan=False))
    else:
        show("\n".join(_lines(groups, options.baseline_dir)))
    for run, cycles in by_run if options.write else ():
        _write(run, cycles, options.baseline_dir)
        told = f"written to {run}; what was scored before is in result-N.json and answers-N.jsonl of each cycle"
        if any(row.metric in (ACCURACY, JOULES_PER_CORRECT) for gate in gate_files(run).values() for row in gate.rows):
            told += "\nits gates and junit.xml stand as they were: llem compare judges the new scores"
        if options.format == "text":
            show(told)
    return 0


def parsed(text: str) -> str | ScoreBy:
    """What `--score` names; a relative file is one of the working directory."""
    kind, colon, rest = text.partition(":")
    if not colon:
        return text
    if kind == "regex":
        return ScoreBy(regex=rest)
    if kind == "python":
        file, _, function = rest.rpartition(":")
        return ScoreBy(python=f"{expanded(file).absolute() if file else ''}:{function}")
    fix = "use a scorer's name, regex:EXPRESSION or python:FILE:FUNCTION"
    raise SettingsError(f"--score={text}: unknown kind {kind!r}", fix=fix)


def _of_run(run: Path, wanted: str | ScoreBy | None) -> list[Rescored]:
    results = load_rows(run)
    scored = [result for result in results if result.quality is not None]
    return [
        _rescored(result, results.directories[measurement_id(result)], wanted) for result in counted(scored, "scoring")
    ]


def _rescored(result: Result, directory: Path, wanted: str | ScoreBy | None) -> Rescored:
    """A cycle with new scores, by the scorer of its study unless another is wanted."""
    settings = _settings(result)
    settings = settings if wanted is None else replace(settings, score=wanted, task=None)
    try:
        return rescored(result, directory, settings)
    except LlemError as problem:
        where = f"{result.study}[{result.experiment.id}-c{result.cycle}]"
        raise problem.restated(f"{where}: {problem.message}") from None


def _settings(result: Result) -> WorkloadSettings:
    return decode(ExperimentConfig, cast("JsonValue", result.experiment.config)).workload


def _by_experiment(cycles: Sequence[Rescored]) -> list[list[Rescored]]:
    groups: dict[tuple[str, str], list[Rescored]] = defaultdict(list)
    for each in cycles:
        groups[each.result.study, each.result.experiment.id].append(each)
    return list(groups.values())


def _metrics(group: Sequence[Rescored], baseline_dir: Path) -> dict[str, MetricSummary]:
    """Metrics over the valid cycles of an experiment."""
    return summarise_metrics([each.result for each in group if each.result.validity.valid], baseline_dir)


def _lines(groups: Sequence[Sequence[Rescored]], baseline_dir: Path) -> list[str]:
    """The table, and below it what changed in each experiment."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    several = len({each.result.run_id for group in groups for each in group}) > 1
    for group in groups:
        first, metrics = group[0], _metrics(group, baseline_dir)
        name = f"{first.result.study}[{first.result.experiment.id}]" + (f" {first.result.run_id}" if several else "")
        accuracy, joules = metrics.get(ACCURACY), metrics.get(JOULES_PER_CORRECT)
        changed: dict[tuple[str, float | None, float], list[str]] = defaultdict(list)
        for change in (change for each in group for change in each.changed):
            changed[change.question, change.before, change.after].append(f"c{change.cycle}")
        rows.append(
            (
                name,
                first.quality.scorer,
                f"{first.quality.questions}",
                _right(group),
                "-" if accuracy is None else f"{accuracy.value:.1%}",
                _interval(accuracy),
                "-" if joules is None else quantity(joules.value, "J", joules.uncertainty),
                f"{len({question for question, _, _ in changed})}",
            )
        )
        reasons = {each.quality.reason for each in group if each.quality.reason is not None}
        if not any(each.result.validity.valid for each in group):
            reasons.add("no cycle is valid")
        notes += [f"{name}: {reason}" for reason in sorted(reasons)]
        for (question, before, after), cycles in list(changed.items())[:SHOWN]:
            notes.append(f"{name}: {question} {_shown(before)} -> {_shown(after)} in {', '.join(cycles)}")
        if len(changed) > SHOWN:
            notes.append(f"{name}: {len(changed) - SHOWN} more; --format json has all")
    return [*fitted_table(HEAD, rows, left=2), *notes]


def _interval(accuracy: MetricSummary | None) -> str:
    if accuracy is None or accuracy.low is None or accuracy.high is None:
        return "-"
    return f"{accuracy.low:.1%} to {accuracy.high:.1%}"


def _right(group: Sequence[Rescored]) -> str:
    """Right answers of all answers of the valid cycles."""
    valid = [each.quality for each in group if each.result.validity.valid]
    right = math.fsum(each.correct or 0.0 for each in valid)
    return f"{right:g} of {sum(each.answers for each in valid)}"


def _shown(score: float | None) -> str:
    return "not scored" if score is None else f"{score:.3g}"


def _encoded(group: Sequence[Rescored], baseline_dir: Path) -> dict[str, JsonValue]:
    """An experiment as JSON; the figures are those of `summary.json`."""
    first, metrics = group[0], _metrics(group, baseline_dir)
    return {
        "run": first.result.run_id,
        "study": first.result.study,
        "experiment": first.result.experiment.id,
        "scorer": first.quality.scorer,
        "scorer_version": first.quality.scorer_version,
        "questions": first.quality.questions,
        "metrics": {
            name: encode(metrics[name]) if name in metrics else None for name in (ACCURACY, JOULES_PER_CORRECT)
        },
        "cycles": [
            {
                "cycle": each.result.cycle,
                "valid": each.result.validity.valid,
                "answers": each.quality.answers,
                "correct": each.quality.correct,
                "reason": each.quality.reason,
            }
            for each in group
        ],
        "changed": [encode(change) for each in group for change in each.changed],
    }


def _write(run: Path, cycles: Sequence[Rescored], baseline_dir: Path) -> None:
    """Write the new scores into a run, each cycle's earlier ones beside them first, then its summaries."""
    store = RunStore.open(run)
    for each in cycles:
        result = each.result
        key = CycleKey(result.study, result.experiment.id, result.experiment.config_hash, result.cycle)
        with store.lock(key):
            job_dir = JobDir(each.directory)
            number = next(n for n in count(1) if not (each.directory / f"result-{n}.json").exists())
            earlier = to_keep(_settings(result), read_answers(job_dir.answers))
            write_answers(job_dir.answers.with_stem(f"{job_dir.answers.stem}-{number}"), earlier)
            write_bytes(job_dir.result.with_stem(f"{job_dir.result.stem}-{number}"), job_dir.result.read_bytes())
            write_answers(job_dir.answers, each.answers)
            write_result(job_dir, result)
    manifest = read_manifest(run / MANIFEST)
    axes = {plan.name: plan.study_axes() for plan in manifest.studies}
    summarised = summarise([item.key for item in manifest.items], store.outcome, baseline_dir, manifest.studies)
    rows = list(with_impact(summarised, manifest.studies))
    outcomes = [outcome for item in manifest.items if (outcome := store.outcome(item.key)) is not None]
    marks = [mark(outcome.result, manifest) for outcome in outcomes if outcome.result is not None]
    carried = carry_overs(run, manifest, marks)
    write_summary(run, rows, run_findings(gate_files(run).values()), axes, carried=carried, plans=manifest.studies)
