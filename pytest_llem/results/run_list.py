"""`llem list`: the runs of a results folder, what became of each, its gates and its headline.

`cli` calls `list_all` by name. Keys of the JSON stay; the table is for people and fits their terminal. Results are not
read: a headline is that of `summary.csv`, which a run writes at its end.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import open_regular
from pytest_llem.job.metric_names import HEADLINE, MetricName, known_metric
from pytest_llem.job.wire import encode
from pytest_llem.results.gate_report import read_gates
from pytest_llem.results.layout import runs_at
from pytest_llem.results.manifest import Manifest, RunState, current_manifest, run_state, shard_of
from pytest_llem.results.state import TERMINAL
from pytest_llem.results.terminal import PREFIXED, counted, middle_cut, plus_minus, quantity, show, significant, table

UNLIMITED = 10_000
"""Columns where nothing says how wide the reader's screen is. Chosen: no table is wider."""
ESTIMATED = "*"
"""Marks a headline of energy that was estimated."""
LEAST_STUDIES = 10
"""Characters that stay of studies' names. Chosen: both ends of a name are still recognised."""


@dataclass(frozen=True)
class Headline:
    """The headline of a study: the best and the worst of its experiments, `uncertainty` where there is one alone.

    `estimated`: it is one of energy, which no sensor measured in one of them.
    """

    study: str
    metric: str
    unit: str
    experiments: int
    best: float
    worst: float
    uncertainty: float | None
    estimated: bool = False

    def __str__(self) -> str:
        return self._figures() + ESTIMATED * self.estimated

    def _figures(self) -> str:
        if self.experiments == 1:
            if self.unit in PREFIXED:
                return quantity(self.best, self.unit, self.uncertainty)
            return plus_minus(self.best, self.uncertainty)
        if self.unit in PREFIXED:
            first, second = (quantity(value, self.unit).split(" ") for value in (self.best, self.worst))
            return f"{first[0]}{f' {first[1]}' if first[1] != second[1] else ''} .. {' '.join(second)}"
        return f"{significant(self.best)} .. {significant(self.worst)}"


@dataclass(frozen=True)
class ListedRun:
    """One run. `states` counts its cycles, `gates` its verdicts; `finished_at` is `None` where pytest had no end.

    `ended` counts the cycles that need not be measured again to complete the run: not an interrupted one.
    """

    run_id: str
    directory: str
    state: RunState
    started_at: str
    finished_at: str | None
    studies: tuple[str, ...]
    shard: str | None
    planned: int
    ended: int
    valid: int
    reused: int
    states: Mapping[str, int]
    gates: Mapping[str, int]
    headlines: tuple[Headline, ...]
    hostname: str | None
    command: tuple[str, ...]


def list_all(options: argparse.Namespace) -> int:
    """`llem list`: print the runs of a folder, or the run that it is; `StoreError` when there are none.

    It is raised for runs with broken files as well, after the others are printed.
    """
    directories = runs_at(options.out)
    if not directories:
        raise StoreError(
            f"{options.out}: no runs here", fix="name the folder that --llem-out wrote to, or measure a study first"
        )
    runs: list[ListedRun] = []
    broken: list[str] = []
    for directory in counted(directories, "reading runs"):
        try:
            runs.append(listed(directory))
        except StoreError as error:
            broken.append(error.message)
    if options.json:
        show(json.dumps(encode(runs), indent=2))
    elif runs:
        show("\n".join(lines(runs, shutil.get_terminal_size((UNLIMITED, 24)).columns)))
    if broken:
        raise StoreError("\n".join(broken), fix="remove the run, or the file where the run can do without it")
    return 0


def listed(run_dir: Path) -> ListedRun:
    """What a run's directory says. Raises `StoreError` for a file in it that is broken."""
    manifest = current_manifest(run_dir)
    states = Counter[str](item.state for item in manifest.items)
    return ListedRun(
        run_id=manifest.run_id,
        directory=str(run_dir),
        state=run_state(manifest),
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        studies=tuple(dict.fromkeys([*(study.name for study in manifest.studies), *(i.study for i in manifest.items)])),
        shard=str(shard_of(manifest) or "") or None,
        planned=len(manifest.items),
        ended=sum(states[state] for state in TERMINAL if state != "interrupted"),
        valid=states["valid"],
        reused=sum(item.source_run is not None for item in manifest.items),
        states=states,
        gates=Counter(row.status for report in read_gates(run_dir) for row in report.rows),
        headlines=tuple(_headlines(run_dir / "summary.csv", manifest)),
        hostname=str(manifest.environment.get("hostname") or "") or None,
        command=manifest.invocation.command if manifest.invocation else (),
    )


def _headlines(path: Path, manifest: Manifest) -> Iterator[Headline]:
    try:
        if path.exists():
            with open_regular(path) as stream:
                yield from _of_summary(csv.reader(codecs.getreader("utf-8")(stream)), manifest)
    except (OSError, LookupError, ValueError, csv.Error) as problem:
        raise StoreError(f"{path}: no summary of a run: {problem}") from None


def _of_summary(summary: Iterator[Sequence[str]], manifest: Manifest) -> Iterator[Headline]:
    """A headline per study of a summary's rows, of which no more than that is kept: a large study has thousands."""
    names = next(summary, [])
    column = {name: number for number, name in enumerate(names)}
    metrics = {study.name: known_metric(study.headline or HEADLINE) for study in manifest.studies}
    stated: dict[tuple[str, MetricName], list[tuple[float, str]]] = {}
    estimated: set[tuple[str, MetricName]] = set()
    for row in summary:
        metric = metrics.get(row[column["study"]])  # None: of a package that is not installed here
        if metric is not None and row[column[f"{metric.name}_value"]]:
            value, uncertainty = (row[column[f"{metric.name}_{what}"]] for what in ("value", "uncertainty"))
            stated.setdefault((row[column["study"]], metric), []).append((float(value), uncertainty))
            if metric.energy and row[column["measured"]] == "False":
                estimated.add((row[column["study"]], metric))
    for (study, metric), pairs in stated.items():
        values = [value for value, _ in pairs]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{metric.name} is not finite")
        best, worst = (max(values), min(values)) if metric.higher_is_better else (min(values), max(values))
        uncertainty = pairs[0][1] if len(pairs) == 1 else ""
        yield Headline(
            study=study,
            metric=metric.name,
            unit=metric.unit,
            experiments=len(values),
            best=best,
            worst=worst,
            uncertainty=float(uncertainty) if uncertainty else None,
            estimated=(study, metric) in estimated,
        )


def _moment(text: str) -> str:
    """Date and minute in the local time zone; a text that is no time, of a file by somebody else, as it is."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return text


def lines(runs: Sequence[ListedRun], width: int) -> list[str]:
    """The runs as a table that fits; a last line names the columns that do not."""
    headlines = [headline for run in runs for headline in run.headlines]
    metrics = {each.metric for each in headlines}
    headline = _heading(*metrics) if len(metrics) == 1 else "headline"
    figures = [[_figure(each, named=len(metrics) > 1) for each in run.headlines] for run in runs]
    columns = {
        "run": [run.run_id for run in runs],
        "state": [_state(run) for run in runs],
        "studies": [", ".join(run.studies) + (f" (shard {run.shard})" if run.shard else "") or "-" for run in runs],
        "valid": [f"{run.valid}/{run.planned}" for run in runs],
        "gates": [_gates(run.gates) for run in runs],
        headline: [", ".join(of_run) or "-" for of_run in figures],
        "when": [_moment(run.started_at) for run in runs],
    }
    left_out: list[str] = []
    if set(columns["gates"]) == {"-"} and _width(columns) > width:
        del columns["gates"]  # it says nothing, and is not missed
    for name in filter(columns.__contains__, ("when", "valid", "studies", "gates", headline)):
        excess = _width(columns) - width
        if excess <= 0:
            break
        longest = max(map(len, columns[name]))
        if name == "gates":
            columns[name] = [_worst(run.gates) for run in runs]
        elif name == headline:
            columns[name] = [", ".join([*of_run[:1], *("…" for _ in of_run[1:2])]) or "-" for of_run in figures]
        elif name == "studies" and longest - excess >= LEAST_STUDIES:
            columns[name] = [middle_cut(cell, longest - excess) for cell in columns[name]]
        else:
            left_out.append(name)
            del columns[name]
    shown = table(list(columns), list(zip(*columns.values(), strict=True)), left=len(columns))
    if left_out:
        shown.append(f"no room for: {', '.join(left_out)} (a wider terminal has it, and --json)")
    if headline in columns and any(each.estimated for each in headlines):
        shown.append(f"{ESTIMATED} energy is NOT measured but estimated")
    return shown


def _figure(headline: Headline, *, named: bool) -> str:
    """A headline with its metric's name where others stand beside it."""
    return f"{_heading(headline.metric)} {headline}" if named else str(headline)


def _heading(metric: str) -> str:
    """`joules_per_output_token` as `J/token`, as other tables have it; without a unit that the values have."""
    words = metric.replace("output_", "").replace("joules_per_", "J/").replace("_per_s", "/s").replace("_", " ")
    return words.removesuffix(" j").removesuffix(" w").removesuffix(" s")


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(len(name), *map(len, cells)) for name, cells in columns.items()) + 2 * (len(columns) - 1)


def _state(run: ListedRun) -> str:
    if run.state == "complete":
        invalid = run.planned - run.valid
        return f"{run.state}, {invalid} invalid" if invalid else run.state
    count = run.states.get("failed", 0) + run.states.get("crashed", 0) if run.state == "failed" else run.ended
    return f"{run.state} {count}/{run.planned}"


def _gates(gates: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in _verdicts(gates).items()) or "-"


def _worst(gates: Mapping[str, int]) -> str:
    counts = _verdicts(gates)
    worst = next(iter(counts), None)
    return "-" if worst is None else f"{counts[worst]} of {sum(counts.values())} {worst}"


def _verdicts(gates: Mapping[str, int]) -> dict[str, int]:
    """Verdicts as pytest counts their items, the worst first: what cannot be judged is a skip."""
    skipped = gates.get("inconclusive", 0) + gates.get("not_comparable", 0)
    counts = {"fail": gates.get("fail", 0), "skip": skipped, "pass": gates.get("pass", 0)}
    return {verdict: count for verdict, count in counts.items() if count}
