"""`llem ab`: measures two sides in turn, cycle by cycle, and judges their ratio by pairs.

`cli` calls it. A side is a study under options and an interpreter of its own, so that settings, images and environments
can be compared; each cycle is a pytest of its own, which resumes the side's earlier ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import write_json
from pytest_llem.job.wire import encode
from pytest_llem.results.comparability import common_conditions, compared_settings, settings_differences
from pytest_llem.results.gate_report import GateReport, gates_line, word
from pytest_llem.results.gates import MIN_CYCLES
from pytest_llem.results.judging import SIDES, judge_in_turn
from pytest_llem.results.layout import run_directories
from pytest_llem.results.reading import Results, load
from pytest_llem.results.terminal import show
from pytest_llem.study.experiments import Study
from pytest_llem.study.limits import Comparison, parse_fail_if, parse_limit, usual_limit
from pytest_llem.study.loader import load_study
from pytest_llem.study.written_optimize import refuse_race


@dataclass(frozen=True)
class Side:
    """One of the two: its study, the options and interpreter of its pytest, and where its runs go."""

    name: str
    study: str
    options: tuple[str, ...]
    python: str
    out: str

    def measure(self, cycle: int) -> None:
        """Measure one more cycle of each experiment. Raises `SettingsError` when pytest could not run."""
        sys.stderr.write(f"llem ab: {self.name}, cycle {cycle}\n")
        command = [self.python, "-m", "pytest", f"--llem-study={self.study}", f"--llem-out={self.out}"]
        command += [f"--llem-cycles={cycle}", "--llem-resume", "-k", "test_experiment", *self.options]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            raise SettingsError(
                f"{self.name}, cycle {cycle}: pytest ended with exit code {code}", fix="see what it says above"
            )

    def results(self) -> Results:
        """The valid cycles of the newest run, which holds the earlier ones as well."""
        return load(run_directories(Path(self.out))[0]).valid


@dataclass(frozen=True)
class InTurn:
    """`ab.json`: what the sides were, what differs between them, and the verdicts."""

    a: Side
    b: Side
    cycles: int
    differs: Mapping[str, Sequence[str]]
    missing: Sequence[str]
    reports: Sequence[GateReport]


def ab(options: argparse.Namespace) -> int:
    """Measure both sides in turn; 1 when the second is worse than the first by more than a limit."""
    if options.cycles < MIN_CYCLES:
        raise SettingsError(f"--cycles {options.cycles}: {MIN_CYCLES} are needed at least", fix="use --cycles 5")
    out = options.out / f"ab-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    second = options.study_b or options.study
    a = Side("A", str(options.study), tuple(shlex.split(options.a)), options.a_python or sys.executable, str(out / "a"))
    b = Side("B", str(second), tuple(shlex.split(options.b)), options.b_python or sys.executable, str(out / "b"))
    if (a.study, a.options, a.python) == (b.study, b.options, b.python):
        raise SettingsError("both sides are the same", fix="state --a, --b, --b-python or a second study; or: llem aa")
    studies = [load_study(Path(side.study)) for side in (a, b)]
    for side, study in zip((a, b), studies, strict=True):
        if study.execution.target_ci is not None:
            raise SettingsError(f"{side.study}: target_ci adds cycles to one side only", fix="remove it for llem ab")
        refuse_race(study, "llem ab")
    ids = [[experiment.id for experiment in study.experiments] for study in studies]
    if set(ids[0]).isdisjoint(ids[1]):
        names = " and ".join(f"{side.study} has {', '.join(each[:3])}" for side, each in zip((a, b), ids, strict=True))
        raise SettingsError(f"no experiment is on both sides: {names}", fix="name them alike: id, or name of the study")
    comparison = comparison_of(studies, options)

    for cycle in range(1, options.cycles + 1):
        # A, B, B, A: what drifts evenly falls on both alike.
        for side in (a, b) if cycle % 2 else (b, a):
            side.measure(cycle)
    found = judged(a, b, options.cycles, comparison, strict=options.strict)
    write_json(out / "ab.json", encode(found))
    if options.format == "json":
        show(json.dumps(encode(found), indent=2))
    else:
        show("\n".join([*lines(found), f"kept in {out / 'ab.json'}"]))
    return int(failed(found, strict=options.strict))


def comparison_of(studies: Sequence[Study], options: argparse.Namespace) -> Comparison:
    """What the options state, else the second side's study or the first's; without limits, 5 % of the headline."""
    stated = next((e.compare for study in reversed(studies) for e in study.experiments if e.compare), Comparison())
    headline = parse_fail_if(name := studies[-1].execution.headline, usual_limit(name))
    return Comparison(
        tuple(parse_limit(text) for text in options.fail_if) or stated.fail_if or (headline,),
        stated.alpha if options.alpha is None else options.alpha,
        (*stated.allow, *options.allow),
    )


def failed(found: InTurn, *, strict: bool) -> bool:
    """Whether B is worse by more than a limit or, when strict, something could not be judged: one side alone, too."""
    return any(report.failed for report in found.reports) or (strict and bool(found.missing))


def judged(a: Side, b: Side, cycles: int, comparison: Comparison, *, strict: bool) -> InTurn:
    """The verdicts on what both sides measured. Raises `SettingsError` when they have no experiment in common."""
    before, now = (
        {experiment: group for (_, experiment), group in side.results().by_experiment().items()} for side in (a, b)
    )
    shared = [experiment for experiment in before if experiment in now]
    if not shared:
        raise SettingsError("no experiment has valid cycles on both sides", fix="ids must be the same; see the runs")
    differs = {experiment: _differs(before[experiment], now[experiment]) for experiment in shared}
    reports = [judge_in_turn(before[each].items, now[each].items, comparison, strict=strict) for each in shared]
    missing = sorted(set(before) ^ set(now))
    return InTurn(a, b, cycles, differs, missing, reports)


def _differs(before: Results, now: Results) -> list[str]:
    old, new = common_conditions(before.items), common_conditions(now.items)
    ran = [f"{name} {old[name]} -> {new[name]}" for name in SIDES if old[name] != new[name]]
    if before[0].experiment.config_hash == now[0].experiment.config_hash:
        return ran
    settings = settings_differences(compared_settings(before[0]), compared_settings(now[0]))
    said = {text.partition(" ")[0] for text in ran}  # what ran says more than what was asked: `unset -> bfloat16`
    return [*(text for text in settings if text.partition(" ")[0] not in said), *ran]


def lines(found: InTurn) -> Iterator[str]:
    """The verdicts with what differs, for a terminal."""
    yield f"A, then B, in turn: {found.cycles} cycles each"
    for report in found.reports:
        yield ""
        yield f"{report.study}[{report.experiment_id}]: {word(report.status)}"
        yield report.text()
        yield from (f"differs: {text}" for text in found.differs[report.experiment_id])
    if found.missing:
        yield f"valid on one side only: {', '.join(found.missing)}"
    yield ""
    yield gates_line(found.reports)
