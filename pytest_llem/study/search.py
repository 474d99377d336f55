"""A searched setting: a sweep's `{search: {low, high, tolerance, max_windows}}`, and the settings of a window of it.

`written_search` reads it, `canonical` and `rules` look at an experiment's, the session fills loads in that
`results.search` chose. A search is one experiment; what its record holds, but for the number of windows, is part of its
hash. It must import nothing that loading a study needs, as `experiments` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pytest_llem.errors import JsonValue

SEARCH = "search"
"""The key of a searched value, and the path at which an experiment's settings hold the search."""
ARRIVAL = "workload.arrival"
RATE, IN_FLIGHT, CLIENT = f"{ARRIVAL}.rate_per_s", f"{ARRIVAL}.concurrency", "openai.concurrency"
SEARCHED = (RATE, IN_FLIGHT, CLIENT)
"""The settings that can be searched: loads, of which less never serves worse."""
EXAMPLE = "{search: {low: 1, high: 200, tolerance: 5%, max_windows: 8}}"
MAX_WINDOWS = 100
"""Chosen: more than any search needs, and few enough items to collect."""


@dataclass(frozen=True)
class Search:
    """What is searched: the largest value of `setting` from `low` to `high` under which the SLO holds.

    `tolerance` is how wide the answer's interval may be, as a share of it, and `max_windows` how many are measured.
    """

    setting: str
    low: float
    high: float
    tolerance: float = 0.05
    max_windows: int = 8

    @property
    def whole(self) -> bool:
        """Whether loads are whole numbers: requests in flight, not a rate."""
        return self.setting != RATE

    @property
    def unit(self) -> str:
        """What a load is, for people: `9.6 requests/s`."""
        return "requests in flight" if self.whole else "requests/s"

    def as_setting(self) -> dict[str, JsonValue]:
        """The search as a plain value among an experiment's flat settings."""
        return asdict(self)

    @classmethod
    def of(cls, flat: Mapping[str, JsonValue]) -> Search | None:
        """The search among flat settings; `None` for a plain experiment."""
        value = flat.get(SEARCH)
        return cls(**value) if isinstance(value, dict) else None

    def at(self, load: float, flat: Mapping[str, JsonValue], seed: int | None = None) -> dict[str, JsonValue]:
        """The settings that put one load into flat settings. `seed` is that of its arrivals, where they are random."""
        if self.setting == CLIENT:
            return {CLIENT: round(load)}
        written = flat.get(ARRIVAL)
        arrival = dict(written) if isinstance(written, Mapping) else {}
        arrival.setdefault("process", "concurrency" if self.whole else "poisson")
        if seed is not None and arrival["process"] in ("poisson", "gamma"):
            arrival["seed"] = seed
        return {ARRIVAL: {**arrival, self.setting.rpartition(".")[2]: round(load) if self.whole else load}}


def is_search(value: JsonValue) -> bool:
    """Whether a swept value is a search rather than values."""
    return isinstance(value, Mapping) and set(value) == {SEARCH}
