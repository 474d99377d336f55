"""`llem aa`: runs a study several times over, and says how often this machine's gates fail on equal runs.

`cli` calls it. What it finds is kept by `repeatability` and used by gates from then on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import write_json
from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.job.wire import encode
from pytest_llem.results.comparability import CORRELATED, common_conditions
from pytest_llem.results.gate_rows import judge_change
from pytest_llem.results.gates import MIN_CYCLES
from pytest_llem.results.layout import repeatability_file, run_directories
from pytest_llem.results.metrics import Metric, is_energy, metric, metrics_of
from pytest_llem.results.reading import Results, load_all, measurement_id
from pytest_llem.results.repeatability import MIN_RUNS, Repeatability, Runs, Spread, estimate, machine
from pytest_llem.results.schema import Result
from pytest_llem.results.state import now
from pytest_llem.results.terminal import show, silent, table
from pytest_llem.study.limits import FailIf, parse_fail_if
from pytest_llem.study.loader import load_study
from pytest_llem.study.written_optimize import refuse_race

TRIALS = 4000
"""Chosen: the standard error of a simulated rate is at most 0.8 %."""


@dataclass(frozen=True)
class Rates:
    """How often gates are wrong on equal runs.

    `pairs` of a run as baseline and another as the current one, with `gates` of which `failed` and `undecided`;
    `failed_pairs` have at least one failed gate. `simulated` is the share of failed gates among many drawn with the
    measured spread.
    """

    metric: str
    limit: str
    pairs: int
    failed_pairs: int
    gates: int
    failed: int
    undecided: int
    simulated: float


def rates(
    measure: Metric, limit: FailIf, experiments: Sequence[Runs], spread: Spread, alpha: float, *, correlated: bool
) -> Rates:
    """How often gates fail on equal runs: each run against each other one, and simulated with `spread`."""
    names = sorted(set.intersection(*(set(runs) for runs in experiments)))
    gates = failed = undecided = failed_pairs = 0
    for baseline, current in permutations(names, 2):
        statuses = [
            judge_change(
                measure,
                limit.relative_to(fmean(runs[baseline])),
                [runs[baseline]],
                runs[current],
                alpha,
                correlated=correlated,
                spread=spread.of_runs,
            ).status
            for runs in experiments
        ]
        gates += len(statuses)
        failed += statuses.count("fail")
        undecided += statuses.count("inconclusive")
        failed_pairs += "fail" in statuses
    level = fmean(value for runs in experiments for run in runs.values() for value in run)
    cycles = min(len(run) for runs in experiments for run in runs.values())
    rng = random.Random(0)
    alarms = 0
    for _ in range(TRIALS):
        before, after = ([draw * level for draw in _drawn(rng, spread, cycles)] for _ in range(2))
        relative = limit.relative_to(fmean(before))
        verdict = judge_change(measure, relative, [before], after, alpha, correlated=correlated, spread=spread.of_runs)
        alarms += verdict.status == "fail"
    return Rates(
        metric=measure.name,
        limit=str(limit).partition(": ")[2],
        pairs=len(names) * (len(names) - 1),
        failed_pairs=failed_pairs,
        gates=gates,
        failed=failed,
        undecided=undecided,
        simulated=alarms / TRIALS,
    )


def _drawn(rng: random.Random, spread: Spread, cycles: int) -> list[float]:
    level = rng.lognormvariate(0, math.sqrt(spread.of_runs.variance))
    return [level * rng.lognormvariate(0, spread.within_run) for _ in range(cycles)]


def values_of(measure: Metric, results: Sequence[Result]) -> list[Runs]:
    """The positive values of a metric by experiment and the run that measured, where it has three cycles or more."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        value = measure.of(result)
        if value is not None and value > 0:
            found.setdefault(result.experiment.config_hash, {}).setdefault(measurement_id(result).run, []).append(value)
    kept = ({name: run for name, run in runs.items() if len(run) >= MIN_CYCLES} for runs in found.values())
    return [runs for runs in kept if runs]


def measured_by_all(experiments: Sequence[Runs]) -> bool:
    """Whether three runs or more have three values or more of each experiment."""
    return bool(experiments) and len(set.intersection(*(set(runs) for runs in experiments))) >= MIN_RUNS


def measure_runs(study: Path, count: int, out: Path, arguments: Sequence[str]) -> list[Path]:
    """Run a study so many times in a pytest of its own; the new runs' directories.

    Raises `SettingsError` when pytest could not run it. What its own gates say does not matter here.
    """
    before = set(run_directories(out)) if out.exists() else set()
    for number in range(1, count + 1):
        sys.stderr.write(f"llem aa: run {number} of {count}\n")
        command = [sys.executable, "-m", "pytest", f"--llem-study={study}", f"--llem-out={out}", *arguments]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            raise SettingsError(f"run {number} ended with exit code {code}", fix="see what pytest says above")
    return [run for run in run_directories(out) if run not in before]


def aa(options: argparse.Namespace) -> int:
    """Measure or read the runs, keep what they differ by, and print the rates of wrong gates."""
    if options.runs < MIN_RUNS:
        raise SettingsError(f"--runs {options.runs}: {MIN_RUNS} are needed at least", fix="use --runs 5")
    study = load_study(options.study)
    refuse_race(study, "llem aa")
    paths = options.from_runs or measure_runs(options.study, options.runs, options.out, shlex.split(options.pytest))
    results = load_all(paths, silent).valid.of_study(study.name)
    if not results:
        where = ", ".join(map(str, paths))
        raise SettingsError(f"no valid result of study {study.name!r} in {where}", fix="name runs of this study")
    limits = {
        limit.metric: (limit, experiment.compare.alpha)
        for experiment in study.experiments
        if experiment.compare is not None
        for limit in experiment.compare.fail_if
    } or {study.execution.headline: (parse_fail_if(study.execution.headline, options.limit), options.alpha)}
    by_question = limits.pop(ACCURACY, None)
    correlated = results[0].runner.isolation in CORRELATED

    values = {name: values_of(metric(name), results) for name in dict.fromkeys((*metrics_of(results), *limits))}
    # What has no limit is kept too, where all runs measured it: for `llem compare` and printed uncertainties.
    spreads = {name: estimate(found) for name, found in values.items() if name in limits or measured_by_all(found)}
    wrong = [
        rates(metric(name), limit, values[name], spreads[name], alpha, correlated=correlated)
        for name, (limit, alpha) in limits.items()
    ]
    kept = Repeatability(
        study=study.name,
        made_at=now(),
        runs=tuple(sorted({measurement_id(result).run for result in results})),
        conditions=machine(common_conditions(results)),
        metrics=spreads,
    )
    path = repeatability_file(study.name, options.baseline_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, encode(kept))
    if options.format == "json":
        facts = {"file": str(path), "repeatability": kept, "rates": wrong}
        show(json.dumps(encode(facts), indent=2))
    else:
        groups = Results(tuple(results)).by_experiment().values()
        used = all(kept.covers(common_conditions(group)) for group in groups)
        who = "gates on this machine use it" if used else "no gate uses it, because the experiments' devices differ"
        notes = [f"kept in {path}: {who}"]
        if by_question is not None:
            notes.append("accuracy is judged question by question, against the noise of the runs that it compares")
        if any(is_energy(name) for name in limits) and not all(result.energy.measured for result in results):
            notes.append("energy is estimated, not measured: gates do not judge it, unless `compare` allows that")
        show("\n".join([*lines(kept, wrong), *notes]))
    return 0


def lines(kept: Repeatability, wrong: Sequence[Rates]) -> Iterator[str]:
    """What was found, for a terminal."""
    yield f"{kept.study}: {len(kept.runs)} equal runs"
    head = ("metric", "in a run", "whole runs", "each experiment", "limit", "failed", "pairs", "undecided", "simulated")
    body = []
    for rate in wrong:
        spread = kept.metrics[rate.metric]
        body.append(
            (
                rate.metric,
                f"{spread.within_run:.2%}",
                "-" if spread.common is None else f"{spread.common:.2%}",
                f"{spread.between_runs:.2%}",
                rate.limit,
                f"{rate.failed} of {rate.gates}",
                f"{rate.failed_pairs} of {rate.pairs}",
                f"{rate.undecided} of {rate.gates}",
                f"{rate.simulated:.2%}",
            )
        )
    yield from table(head, body)
    yield "in a run, whole runs, each experiment: standard deviations of cycles, of what a run shares, of the rest"
    yield "failed, undecided: gates, each run as the baseline of each other; pairs: of runs, with a failed gate"
    yield "simulated: failed gates among many that were drawn with this spread"
