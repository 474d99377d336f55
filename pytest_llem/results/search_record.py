"""`search.json`: what a search for the largest load under an SLO found, window by window.

`searched` writes it; the report and the session's summary show it. Its fields are published (docs/load.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.job.wire import read_versioned
from pytest_llem.results.layout import SEARCH
from pytest_llem.results.served import State, share_text
from pytest_llem.results.terminal import significant

SEARCH_VERSION = 1
"""Raised when a field of `search.json` is renamed, removed or changes its meaning."""
STATES: Mapping[str, State] = {"met": "reached", "not_met": "not reached", "undecided": "undecided"}
"""The words of a window's verdict; those of a level."""


@dataclass(frozen=True)
class SearchedWindow:
    """One window: why it had its load, how it was served, and what that says of the SLO.

    `load` is its setting, `offered` what arrived. `verdict` is met, not_met, undecided, or unusable for the reason of
    that name. `metrics` are those of its result.
    """

    step: int
    reason: str
    load: float
    offered: float | None
    verdict: str
    saturated: bool
    served_per_s: float | None
    requests: int | None
    good: int | None
    share: float | None
    share_low: float | None
    share_high: float | None
    unusable: str | None
    state: str
    directory: str
    metrics: Mapping[str, float]

    @property
    def came(self) -> float:
        """The load that arrived; its setting where nothing tells."""
        return self.load if self.offered is None else self.offered

    @property
    def level(self) -> State | None:
        """What became of its load; `None` where it tells nothing."""
        return "saturated" if self.saturated else STATES.get(self.verdict)

    @property
    def decided(self) -> str:
        """What its verdict rests on, as a sentence's end."""
        if self.unusable is not None:
            return self.unusable
        if self.saturated and self.served_per_s is not None:
            return f"{significant(self.served_per_s)} requests/s were served of {significant(self.load)}"
        if self.share is None or self.share_low is None or self.share_high is None:
            return "requests failed of too much load"
        return f"{share_text(self.share, self.share_low, self.share_high, self.requests or 0)} good"


@dataclass(frozen=True)
class SearchedLoad:
    """One cycle of a search: its answer with a 95 % interval, and its windows; `met` and `not_met` are two of them."""

    ending: str | None
    text: str
    answer: float | None
    answer_low: float | None
    answer_high: float | None
    met: int | None
    not_met: int | None
    windows: tuple[SearchedWindow, ...]


@dataclass(frozen=True)
class OverCycles:
    """The mean of the cycles' answers with its interval."""

    load: float | None
    low: float | None
    high: float | None
    cycles: int


NO_ANSWER = OverCycles(None, None, None, 0)


@dataclass(frozen=True)
class SearchRecord:
    """A search: what was asked for, and what each cycle found."""

    schema_version: int
    study: str
    experiment_id: str
    config_hash: str
    setting: str
    low: float
    high: float
    tolerance: float
    max_windows: int
    unit: str
    at: float
    answer: OverCycles
    cycles: Mapping[str, SearchedLoad]

    @property
    def name(self) -> str:
        """What tells it from the study's other searches: its id without the setting that all of them search."""
        return self.experiment_id.rpartition("-")[0] or self.experiment_id

    @property
    def line(self) -> str:
        """The answer in a line: `21.5 requests/s (20.8 .. 22.1), 6 of 8 windows`."""
        used = [len(cycle.windows) for cycle in self.cycles.values()]
        windows = f"{sum(used)} of {self.max_windows * len(used)} windows"
        if self.answer.load is None:
            texts = dict.fromkeys(cycle.text for cycle in self.cycles.values())
            return f"{'; '.join(texts)}, {windows}"
        low, high = self.answer.low, self.answer.high
        least = "at least " if high is None else ""
        ends = "" if low is None or high is None else f" ({significant(low)} .. {significant(high)})"
        mean = f", mean of {self.answer.cycles} cycles" if self.answer.cycles > 1 else ""
        return f"{least}{significant(self.answer.load)} {self.unit}{ends}{mean}, {windows}"


def read_search(path: Path) -> SearchRecord:
    """One search; `StoreError` where its file is broken."""
    return read_versioned(SearchRecord, path, SEARCH_VERSION, "search")


def read_searches(run_dir: Path) -> list[SearchRecord]:
    """The searches of a run, sorted by their directories; `StoreError` for one that is broken."""
    return [read_search(path) for path in sorted(run_dir.glob(f"*/*/{SEARCH}"))]
