"""What a history keeps: blocks of a run of one study, the run first, then an experiment a line.

`adding` makes them, `files` writes and reads them, `series` puts them in order. A published format (docs/history.md):
fields may be added with defaults, never renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
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

    @cached_property
    def at(self) -> str:
        """The time that orders runs, in UTC: its start, and never before its commit, however wrong a clock is."""
        return max(utc(self.started_at), utc(self.committed_at) if self.committed_at else "")


def utc(moment: str) -> str:
    """A time of ISO 8601 in UTC to the second, so that texts are in the order of times; without an offset it is UTC.

    Raises `ValueError` for any other text.
    """
    parsed = datetime.fromisoformat(f"{moment[:-1]}+00:00" if moment.endswith("Z") else moment)  # Z: not Python 3.10
    known = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    try:
        return known.astimezone(timezone.utc).isoformat(timespec="seconds")
    except OverflowError:
        raise ValueError(f"{moment!r} is out of range") from None


@dataclass(frozen=True)
class MetricEntry:
    """A metric of one experiment in one run: the mean of its cycles with both one-sided bounds, and each cycle.

    The mean is geometric, as in gates, where all cycles are positive. Bounds are at 5 % each, from the scatter of the
    cycles and the least that runs are taken to differ; `None` for a single cycle, and where one is not positive. What
    all runs on a board share, such as its gain, is not in them.
    """

    value: float
    low: float | None
    high: float | None
    cycles: tuple[float, ...]


@dataclass(frozen=True)
class HistoryEntry:
    """One experiment of a run: a line. `conditions` and `settings` are whole here, however the file shares them.

    `fingerprint` is that of the environment. `verdicts` are those of its own gates in that run, by metric: the worst
    where a metric has several; `regressed` are the metrics whose comparison with a baseline failed. `measurements`,
    `gain_uncertainty_rel` and `scores` are as in a baseline. A condition or setting that is absent is `None`.
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
    regressed: tuple[str, ...] = ()

    @cached_property
    def conditions_text(self) -> str:
        """The conditions as one text, the same for the same conditions."""
        known = {name: value for name, value in self.conditions.items() if value is not None}
        return json.dumps(known, sort_keys=True)

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
