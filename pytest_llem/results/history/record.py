"""What a history keeps: a file per run and study, whose first line is the run and each further one an experiment.

`files` writes and reads it; `series` puts it in order. A published format (docs/history.md): fields may be added with
defaults, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pytest_llem.errors import JsonValue
from pytest_llem.results.baselines import BaselineRun
from pytest_llem.results.gates import Status

HISTORY_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True)
class HistoryRun:
    """What all experiments of a run of one study share; times are ISO 8601 with their offset, what is unknown `None`.

    `started_at` is by the runner's clock, `committed_at` by that of who committed. `repository` is the address of the
    web page, without credentials. `conditions` and `settings` are those that all experiments share.
    """

    run_id: str
    study: str
    started_at: str
    commit: str | None = None
    committed_at: str | None = None
    dirty: bool | None = None
    repository: str | None = None
    hostname: str | None = None
    pytest_llem: str | None = None
    conditions: Mapping[str, JsonValue] = field(default_factory=dict)
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    schema_version: int = HISTORY_VERSION

    @property
    def at(self) -> str:
        """The time that orders runs: its start, and never before its commit, however wrong the runner's clock is."""
        return max(self.started_at, self.committed_at or "")


@dataclass(frozen=True)
class MetricEntry:
    """A metric of one experiment in one run: the mean of its cycles with both one-sided bounds, and each cycle.

    The bounds are those of a gate's budget, each at 5 %; `None` where so few cycles have none.
    """

    value: float
    low: float | None
    high: float | None
    cycles: tuple[float, ...]


@dataclass(frozen=True)
class HistoryEntry:
    """One experiment of a run: a line. `conditions` and `settings` are whole here, however the file shares them.

    `fingerprint` is that of the environment. `verdicts` are those of its own gates in that run, by metric.
    `measurements`, `gain_uncertainty_rel` and `scores` are as in a baseline.
    """

    run: HistoryRun
    experiment_id: str
    config_hash: str
    fingerprint: str | None
    conditions: Mapping[str, JsonValue]
    settings: Mapping[str, JsonValue]
    metrics: Mapping[str, MetricEntry]
    gain_uncertainty_rel: float | None = None
    measurements: tuple[str, ...] = ()
    scores: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, Status] = field(default_factory=dict)

    @cached_property
    def as_baseline(self) -> BaselineRun:
        """The same as a run of a baseline, which gates take."""
        return BaselineRun(
            run_id=self.run.run_id,
            saved_at=self.run.started_at,
            provenance={
                "measured_at": self.run.started_at,
                "hostname": self.run.hostname,
                "git": {"commit": self.run.commit, "dirty": self.run.dirty} if self.run.commit else None,
                "pytest_llem": self.run.pytest_llem,
                "fingerprint": self.fingerprint,
            },
            conditions=self.conditions,
            gain_uncertainty_rel=self.gain_uncertainty_rel,
            values={name: entry.cycles for name, entry in self.metrics.items()},
            measurements=self.measurements,
            scores=self.scores,
        )
