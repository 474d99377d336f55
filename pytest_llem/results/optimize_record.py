"""`optimize.json`: where a study's race for its best setting stands, with the history of every setting.

The session writes it after each round; terminal, summary and report show it. Its fields are published
(docs/optimize.md). What it says follows from results alone, so that a run that is repeated from them writes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import slug, write_json
from pytest_llem.job.metric_names import known_metric
from pytest_llem.job.wire import encode, read_versioned
from pytest_llem.results.layout import OPTIMIZE
from pytest_llem.results.racing.answer import Fate, Race
from pytest_llem.results.store import LOCKS
from pytest_llem.results.terminal import significant
from pytest_llem.study.optimize import Optimize

OPTIMIZE_VERSION = 1
"""Raised when a field of `optimize.json` is renamed, removed or changes its meaning."""
SHOWN = 6
"""Settings that a line names. Chosen: more fill the screen, and the file has all."""


@dataclass(frozen=True)
class RacedSetting:
    """A setting: its values on the axes of the sweep, its figure over its valid cycles, and what became of it."""

    config_hash: str
    levels: Mapping[str, JsonValue]
    value: float | None
    valid: int
    fate: Fate


@dataclass(frozen=True)
class OptimizeRecord:
    """A race: what was asked for, where it stands after so many `rounds`, and its settings in the study's order.

    `needed` are the settings that the next round would measure; `left_out` those that did not take part, with the
    reason. `meter_rel` is the largest relative standard uncertainty that settings do not share, of the meter and of
    runs that cycles were taken over from, `null` if unknown. `measured` of the `grid`'s cycles were looked at: those of
    all settings, `max_cycles` each. `course` is how many settings each round measured.
    """

    schema_version: int
    study: str
    metric: str
    goal: str
    subject_to: tuple[str, ...]
    confidence: float
    regret: float
    max_cycles: int
    assume: str | None
    status: str
    sentence: str
    recommended: str | None
    regret_high: float | None
    best: tuple[str, ...]
    rests_on: str | None
    rounds: int
    needed: tuple[str, ...]
    meter_rel: float | None
    measured: int
    grid: int
    settings: Mapping[str, RacedSetting]
    left_out: Mapping[str, str] = field(default_factory=dict)
    course: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        study: str,
        goal: Optimize,
        race: Race,
        course: tuple[int, ...],
        settings: Mapping[str, RacedSetting],
        meter_rel: float | None,
        left_out: Mapping[str, str],
    ) -> OptimizeRecord:
        """The record of a race that stands there."""
        return cls(
            schema_version=OPTIMIZE_VERSION,
            study=study,
            metric=goal.metric,
            goal=goal.verb,
            subject_to=tuple(map(str, goal.subject_to)),
            confidence=goal.confidence,
            regret=goal.regret,
            max_cycles=goal.max_cycles,
            assume=goal.assume,
            status=race.status,
            sentence=race.sentence,
            recommended=race.recommended,
            regret_high=race.regret_high,
            best=race.best,
            rests_on=race.rests_on,
            rounds=race.rounds,
            needed=tuple(id for id in settings if id in race.needed),
            meter_rel=meter_rel,
            measured=sum(course),
            grid=len(settings) * goal.max_cycles,
            settings=settings,
            left_out=dict(left_out),
            course=course,
        )

    def answer(self) -> dict[str, JsonValue]:
        """The record without the history of its settings, for `summary.json`."""
        plain = {name: value for name, value in vars(self).items() if name not in ("schema_version", "settings")}
        out = {id: each.fate.reason for id, each in self.settings.items() if each.fate.state == "infeasible"}
        answer = encode({**plain, "infeasible": out})
        assert isinstance(answer, dict)
        return answer

    def lines(self) -> list[str]:
        """The answer for people, a line each."""
        metric = known_metric(self.metric)
        unit = "" if metric is None or metric.unit == "1" else f" {metric.unit}"
        lines = [f"best setting, {self.asked}: {self._answer(unit)}", self.sentence]
        if self.status != "infeasible" and len(self.best) > 1 and self.rounds:
            lines.append(f"the best is one of: {_names(self.best)}")
        for state in ("infeasible", "failed"):
            ids = [id for id, each in self.settings.items() if each.fate.state == state]
            if ids:
                reasons = dict.fromkeys(self.settings[id].fate.reason for id in ids)
                lines.append(f"{state}: {_names(ids)}" + (f": {next(iter(reasons))}" if len(reasons) == 1 else ""))
        apart = None if self.meter_rel is None else math.sqrt(2) * 2 * self.meter_rel
        if self.status == "undecided" and (apart is None or apart > self.regret):
            size = "an unknown share" if apart is None else f"{apart:.2g}, as a share,"
            lines.append(
                "the meter, or runs that cycles were taken over from, may set two settings apart by "
                f"{size} which no number of cycles decides"
            )
        if self.rests_on is not None:
            lines.append(f"this rests on what the study assumes: {self.rests_on}")
        kept_out = [*dict.fromkeys(self.left_out.values())]
        for why in kept_out[:SHOWN]:
            lines.append(f"left out: {_names([id for id, each in self.left_out.items() if each == why])}: {why}")
        if len(kept_out) > SHOWN:
            lines.append(f"left out for {len(kept_out) - SHOWN} more reasons: summary.json has them")
        among = f" among {len(self.settings)} of {len(self.settings) + len(self.left_out)} settings"
        lines.append(
            f"{self.measured} of {self.grid} cycles ({self.measured / self.grid:.0%}) in {self.rounds} round"
            + "s" * (self.rounds != 1)
            + among * bool(self.left_out)
        )
        return lines

    @property
    def asked(self) -> str:
        """What the best setting is best in, and what it must keep."""
        return " subject to ".join(filter(None, (f"{self.goal} {self.metric}", ", ".join(self.subject_to))))

    def _answer(self, unit: str) -> str:
        if self.status == "infeasible" or self.recommended is None:
            return "not known yet" if self.status == "running" else "none"
        value = self.settings[self.recommended].value
        figure = "" if value is None else f" ({significant(value)}{unit})"
        return f"{self.recommended}{figure}" + {"running": ", so far", "undecided": ", not certain"}.get(
            self.status, ""
        )


def _names(ids: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def path_of(run_dir: Path, study: str) -> Path:
    """Where a study's record lies."""
    return run_dir / slug(study) / OPTIMIZE


def write_record(run_dir: Path, record: OptimizeRecord) -> None:
    """Write where a race stands, unless another process of the run has written a later round."""
    path = path_of(run_dir, record.study)
    with FileLock(run_dir / LOCKS / f"{slug(record.study)}_{OPTIMIZE}.lock"):
        if path.exists() and read_record(path).rounds > record.rounds:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, encode(record))


def read_record(path: Path) -> OptimizeRecord:
    """One race; `StoreError` where its file is broken."""
    return read_versioned(OptimizeRecord, path, OPTIMIZE_VERSION, "optimize")


def read_records(run_dir: Path) -> list[OptimizeRecord]:
    """The races of a run, sorted by their directories; `StoreError` for one that is broken."""
    return [read_record(path) for path in sorted(run_dir.glob(f"*/{OPTIMIZE}"))]
