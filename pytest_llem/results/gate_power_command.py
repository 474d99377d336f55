"""`llem gate-power`: how many cycles find a regression, at a run's noise or a stated one."""

from __future__ import annotations

import argparse
import json
import sys

from pytest_llem.errors import SettingsError
from pytest_llem.job.wire import encode
from pytest_llem.results.commands import read_all
from pytest_llem.results.gate_power import CYCLES, Noise, Setting, lines, measured_noise, needed, pooled, power
from pytest_llem.results.gates import MIN_CYCLES
from pytest_llem.results.metrics import metric
from pytest_llem.results.progress import counted


def gate_power(options: argparse.Namespace) -> int:
    """Print the measured noise, what gates find with how many cycles, and how many suffice."""
    found = metric(options.metric)
    noises: list[Noise] = []
    if options.noise is None:
        if not options.paths:
            raise SettingsError("no noise to go by", fix="name a run, or state it: --noise 2%")
        noises = list(measured_noise(read_all(options.paths), found))
        if not noises:
            raise SettingsError(
                f"{found.name}: no experiment has {MIN_CYCLES} valid cycles that measured it",
                fix="name a run with more cycles, another --metric, or state it: --noise 2%",
            )
    of_all = pooled(noises) if noises else None
    setting = Setting(
        noise=of_all.within_run if of_all else share(options.noise),
        limit=share(options.limit),
        regression=share(options.regression),
        between_runs=share(options.between_runs)
        if options.between_runs is not None
        else ((of_all.between_runs if of_all else None) or 0.0),
        baseline_runs=options.baseline_runs,
        alpha=options.alpha,
    )
    powers = [power(setting, cycles) for cycles in counted(CYCLES, "simulating cycles")]
    wanted = share(options.power)
    if options.format == "json":
        facts = {"setting": setting, "noise": noises, "power": powers, "needed": needed(powers, wanted)}
        sys.stdout.write(json.dumps(encode(facts), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(lines(found.name, setting, noises, powers, wanted)) + "\n")
    return 0


def share(text: str) -> float:
    """`2%` as 0.02; `SettingsError` for anything else."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if number == text.strip() or not 0 <= value < float("inf"):
        raise SettingsError(f"{text!r} is no share", fix="write percent, for example 2%")
    return value / 100
