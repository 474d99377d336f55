"""`llem gate-power`: simulates how many cycles a gate needs, through the public gate function and at measured noise.

`cli` calls it. It must take noise as gates do: the relative standard deviation of a metric over the cycles that one run
measured, without a linear drift, and between runs that of their geometric means, beyond what their cycles explain.
Cycles are drawn from lognormal distributions: docs/gates.md shows the effect of other shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Any

from pytest_llem.errors import SettingsError
from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.job.wire import encode
from pytest_llem.results.compared_sides import ComparedExperiment, ComparedSide, open_runs
from pytest_llem.results.gates import MIN_CYCLES, judge_runs
from pytest_llem.results.measured_cycles import MeasuredCycles
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.question_rows import sampling_rel
from pytest_llem.results.reading import MeasurementId
from pytest_llem.results.repeatability import read_repeatability
from pytest_llem.results.statistics import RUNS_FOR_ESTIMATE, RunSpread, within_runs
from pytest_llem.results.terminal import counted, show, table

CYCLES = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20)
TRIALS = 4000
"""Chosen: the standard error of a share is at most 0.8 %."""
MOST_RUNS = 100
"""Chosen: more runs in a baseline change no share that is shown, and take minutes to simulate."""


@dataclass(frozen=True)
class GateSetting:
    """The regression that a gate should detect and the noise it meets, as fractions; `alpha` is an error rate.

    `known` is what gates on this machine know of equal runs (`llem aa`). `questions_rel` is the standard error by the
    choice of questions, at least, of which more cycles tell no more.
    """

    noise: float
    limit: float
    regression: float
    between_runs: float = 0.0
    baseline_runs: int = RUNS_FOR_ESTIMATE
    alpha: float = 0.05
    known: RunSpread | None = None
    questions_rel: float = 0.0

    def __post_init__(self) -> None:
        """Raises `SettingsError` for values outside their range, or a regression within the limit."""
        if not 0 <= self.noise < 1 or not 0 <= self.between_runs < 1:
            raise SettingsError("noise is a share between 0 % and 100 %", fix="write for example 2%")
        if self.regression <= self.limit or self.limit <= 0:
            raise SettingsError(
                f"a regression of {self.regression:.3g} does not lie beyond a limit of {self.limit:.3g}",
                fix="ask for a regression above a positive limit: below it a gate does not fail by design",
            )
        if not 1 <= self.baseline_runs <= MOST_RUNS:
            raise SettingsError(f"a baseline is 1 to {MOST_RUNS} runs, not {self.baseline_runs}", fix="use 3 to 10")


@dataclass(frozen=True)
class Power:
    """Shares of gates, 0 to 1: the regression is detected; and on equal runs: undecided, false alarm.

    `waiting` is the share in which the regression is seen, and more baseline runs decide it.
    """

    cycles: int
    found: float
    undecided: float
    false_alarms: float
    waiting: float = 0.0


@dataclass(frozen=True)
class Noise:
    """An experiment's noise over its valid cycles, as fractions; `between_runs` is `None` below three runs."""

    study: str
    experiment_id: str
    runs: int
    cycles: int
    within_run: float
    between_runs: float | None


def power(setting: GateSetting, cycles: int, *, trials: int = TRIALS, seed: int = 0) -> Power:
    """Simulate gates with so many cycles a side, from `trials` pairs of runs; equal seeds give equal answers."""
    rng = random.Random(seed)
    worse = 1 + setting.regression
    found = undecided = alarms = waiting = 0
    for _ in range(trials):
        baselines = [_run(rng, setting, cycles) for _ in range(setting.baseline_runs)]
        current = _run(rng, setting, cycles)
        stated: Any = {"alpha": setting.alpha, "spread": setting.known, "doubt": True}
        stated["questions_rel"] = setting.questions_rel
        equal = judge_runs(baselines, current, setting.limit, **stated)
        undecided += equal.status == "inconclusive"
        alarms += equal.status == "fail"
        regressed = judge_runs(baselines, [value * worse for value in current], setting.limit, **stated)
        found += regressed.status == "fail"
        waiting += regressed.more_runs > 0
    return Power(cycles, found / trials, undecided / trials, alarms / trials, waiting / trials)


def first_day(setting: GateSetting, powers: Sequence[Power], wanted: float) -> Power | None:
    """The power of the cycles that suffice with one baseline run; `None` where `llem aa` knows the noise."""
    if setting.known is not None:
        return None
    return power(replace(setting, baseline_runs=1), needed(powers, wanted) or powers[-1].cycles)


def needed(powers: Sequence[Power], wanted: float) -> int | None:
    """The fewest cycles that detect the regression in a share `wanted` of gates; `None` where no count does."""
    return next((entry.cycles for entry in powers if entry.found >= wanted), None)


def measured_noise(sides: Sequence[ComparedSide], measure: Metric) -> Iterator[Noise]:
    """The noise of each configuration with three valid cycles or more in one of its runs."""
    groups: dict[tuple[str, str], dict[str, dict[MeasurementId, float]]] = {}
    names: dict[tuple[str, str], str] = {}
    for (study, experiment_id), experiment, cycles in _cycles(sides):
        key = (study, experiment.config_hash)
        names[key] = experiment_id
        for which, value in zip(cycles.measurements, cycles.read(measure), strict=False):
            if value is not None and value > 0:
                groups.setdefault(key, {}).setdefault(which.run, {})[which] = math.log(value)
    for key, by_run in groups.items():
        runs = [[run[which] for which in sorted(run)] for run in by_run.values() if len(run) >= MIN_CYCLES]
        if runs:
            within, _ = within_runs(runs)
            between = _between(runs, within) if len(runs) >= RUNS_FOR_ESTIMATE else None
            yield Noise(key[0], names[key], len(runs), sum(map(len, runs)), math.sqrt(within), between)


def not_used(sides: Sequence[ComparedSide], measure: Metric) -> dict[str, str]:
    """By name, the runs of which nothing counts, or nothing towards the noise between runs, and why."""
    configurations = [{(study, each.config_hash) for (study, _), each in side.experiments.items()} for side in sides]
    runs_with = Counter(configuration for of_side in configurations for configuration in of_side)
    found: dict[str, str] = {}
    for side, of_side in zip(sides, configurations, strict=True):
        cycles = [each for _, _, each in _cycles([side])]
        most = max((sum(value > 0 for value in each.values(measure)) for each in cycles), default=0)
        if not cycles:
            found[side.name] = "no cycle is valid"
        elif not most:
            found[side.name] = f"{measure.name}: {cycles[0].why(measure)}"
        elif most < MIN_CYCLES:
            found[side.name] = (
                f"{measure.name}: at most {most} of the {MIN_CYCLES} valid cycles that an experiment needs"
            )
        elif len(sides) > 1 and all(runs_with[configuration] == 1 for configuration in of_side):
            found[side.name] = "none of its experiments is in another run: it tells nothing of the noise between runs"
    return found


def _cycles(
    sides: Sequence[ComparedSide],
) -> Iterator[tuple[tuple[str, str], ComparedExperiment, MeasuredCycles]]:
    for side in sides:
        for key, experiment in side.experiments.items():
            for cycles in experiment.runs:
                yield key, experiment, cycles


def pooled(noises: Sequence[Noise]) -> Noise:
    """One noise for all experiments: root mean squares, weighted by degrees of freedom."""
    within = [(noise.within_run, noise.cycles - noise.runs) for noise in noises]
    between = [(noise.between_runs, noise.runs - 1) for noise in noises if noise.between_runs is not None]
    return Noise(
        study="",
        experiment_id="all",
        runs=max(noise.runs for noise in noises),
        cycles=sum(noise.cycles for noise in noises),
        within_run=_root_mean_square(within),
        between_runs=_root_mean_square(between) if between else None,
    )


def _root_mean_square(weighted: Sequence[tuple[float, int]]) -> float:
    return math.sqrt(sum(value**2 * weight for value, weight in weighted) / sum(weight for _, weight in weighted))


def _between(runs: Sequence[Sequence[float]], within: float) -> float:
    """Standard deviation of the runs' means, without the part that the noise of their cycles explains."""
    means = [fmean(run) for run in runs]
    return math.sqrt(max(0.0, variance(means) - within * fmean([1 / len(run) for run in runs])))


def _run(rng: random.Random, setting: GateSetting, cycles: int) -> list[float]:
    level = rng.lognormvariate(0, setting.between_runs)
    return [level * rng.lognormvariate(0, setting.noise) for _ in range(cycles)]


def lines(
    name: str,
    setting: GateSetting,
    noises: Sequence[Noise],
    unused: Mapping[str, str],
    powers: Sequence[Power],
    wanted: float,
    first: Power | None,
) -> list[str]:
    """The measured noise, the runs that do not count, the table of cycles, and the answer in words."""
    head = ("experiment", "runs", "cycles", "noise in a run", "between runs")
    body = [
        (
            f"{noise.study}[{noise.experiment_id}]" if noise.study else noise.experiment_id,
            str(noise.runs),
            str(noise.cycles),
            _percent(noise.within_run),
            "-" if noise.between_runs is None else _percent(noise.between_runs),
        )
        for noise in (*noises, *([pooled(noises)] if len(noises) > 1 else []))
    ]
    measured = [f"noise of {name}", *table(head, body), *(f"{run}: {why}" for run, why in unused.items()), ""]
    measured = measured if body else []
    noisy = f"noise {_percent(setting.noise)} in a run and {_percent(setting.between_runs)} between runs"
    if noises and not setting.between_runs and all(noise.between_runs is None for noise in noises):
        noisy += f" (not known: name {RUNS_FOR_ESTIMATE} runs or more)"
    runs = f"{setting.baseline_runs} baseline run{'s' * (setting.baseline_runs != 1)}"
    question = f"limit {_percent(setting.limit)}, {noisy}, {runs}"
    if setting.known is not None:
        question += f"; gates know of {_percent(math.sqrt(setting.known.variance))} between runs (llem aa)"
    if setting.questions_rel:
        question += f"; the choice of questions adds a standard error of {_percent(setting.questions_rel)} or more"
    shares = [
        (str(entry.cycles), f"{entry.found:.1%}", f"{entry.undecided:.1%}", f"{entry.false_alarms:.1%}")
        for entry in powers
    ]
    regression = f"a regression of {_percent(setting.regression)}"
    count = needed(powers, wanted)
    answer = (
        f"{count} cycles a side find {regression} in at least {_percent(wanted)} of gates"
        if count is not None
        else f"{regression} is not found in {_percent(wanted)} of gates with up to {powers[-1].cycles} cycles: "
        "lower the noise, save more baseline runs, or ask for less"
    )
    columns = ("cycles", "found", "equal runs undecided", "false alarms")
    days = []
    if first is not None:
        days = [
            f"on the first day, with 1 baseline run, {first.cycles} cycles find it in {first.found:.1%} of gates, "
            f"and {first.waiting:.1%} say that more baseline runs decide it"
        ]
    return [*measured, question, *table(columns, shares), answer, *days]


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def gate_power(options: argparse.Namespace) -> int:
    """Print the measured noise, what gates detect at each number of cycles, and how many suffice."""
    chosen = metric(options.metric)
    if chosen.name == ACCURACY:
        raise SettingsError(
            "accuracy is judged question by question, which more cycles tell no more of",
            fix="ask more questions: docs/gates.md says how many find what",
        )
    noises: list[Noise] = []
    unused: dict[str, str] = {}
    known, questions = None, 0.0
    if options.noise is None:
        if not options.paths:
            raise SettingsError("no noise to go by", fix="name a run, or state it: --noise 2%")
        opened = [open_runs(each, options.baseline_dir) for each in counted(options.paths, "reading")]
        sides = [side for each in opened for side in each]
        noises, unused = list(measured_noise(sides, chosen)), not_used(sides, chosen)
        if not noises:
            reasons = "\n".join(f"{run}: {why}" for run, why in unused.items())
            raise SettingsError(
                f"no noise of {chosen.name} can be measured\n{reasons}",
                fix="name a run with more cycles, another --metric, or state it: --noise 2%",
            )
        (study, _), _, one = next(_cycles(sides))
        every = [each.scores for _, _, each in _cycles(sides)] if chosen.quality else []
        questions = max((sampling_rel(chosen, each, each, alpha=options.alpha) for each in every), default=0.0)
        found = read_repeatability(study, options.baseline_dir)
        known = None if found is None else found.of(chosen.name, one.conditions)
    of_all = pooled(noises) if noises else None
    between_runs = of_all.between_runs if of_all else None
    if between_runs is None:
        between_runs = 0.0 if known is None else math.sqrt(known.variance)
    setting = GateSetting(
        noise=of_all.within_run if of_all else share(options.noise),
        limit=share(options.limit),
        regression=share(options.regression),
        between_runs=between_runs if options.between_runs is None else share(options.between_runs),
        baseline_runs=options.baseline_runs,
        alpha=options.alpha,
        known=known,
        questions_rel=questions,
    )
    wanted = share(options.power)
    if not 0 < wanted < 1:
        raise SettingsError(f"no gate finds a regression in {options.power} of runs", fix="write for example 95%")
    powers = [power(setting, cycles) for cycles in counted(CYCLES, "simulating cycles")]
    first = first_day(setting, powers, wanted)
    if options.format == "json":
        facts = {
            "setting": setting,
            "noise": noises,
            "not_used": unused,
            "power": powers,
            "needed": needed(powers, wanted),
            "first_day": first,
        }
        show(json.dumps(encode(facts), indent=2))
    else:
        show("\n".join(lines(chosen.name, setting, noises, unused, powers, wanted, first)))
    return 0


def share(text: str) -> float:
    """`2%` as 0.02; `SettingsError` for anything but a percentage."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if number == text.strip() or not 0 <= value < float("inf"):
        raise SettingsError(f"{text!r} is no share", fix="write percent, for example 2%")
    return value / 100
