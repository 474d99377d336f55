"""A searched setting: a sweep's `{search: {low, high, tolerance, max_windows}}`, and the settings of a window of it.

`sweep` reads it, `canonical` and `rules` look at an experiment's, the session fills loads in that `results.search`
chose. A search is one experiment; what its record holds, but for the number of windows, is part of its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.study.declared import BadValueError
from pytest_llem.study.document import kind
from pytest_llem.study.problems import suggest_or_list

SEARCH = "search"
"""The key of a searched value, and the path at which an experiment's settings hold the search."""
ARRIVAL = "workload.arrival"
RATE, IN_FLIGHT, CLIENT = f"{ARRIVAL}.rate_per_s", f"{ARRIVAL}.concurrency", "openai.concurrency"
SEARCHED = (RATE, IN_FLIGHT, CLIENT)
"""The settings that can be searched: loads, of which less never serves worse."""
EXAMPLE = "{search: {low: 1, high: 200, tolerance: 5%, max_windows: 8}}"
MAX_WINDOWS = 100
"""Chosen: more than any search needs, and few enough items to collect."""
MIN_TOLERANCE, MAX_TOLERANCE = 0.01, 1.0
"""Chosen: finer than any server is repeatable, and a factor of two."""


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


def parse_search(path: str, value: JsonValue) -> Search:
    """The search that a study writes for a setting. `BadValueError`, whose keys start below the setting."""
    if path not in SEARCHED:
        raise BadValueError(f"{path} cannot be searched", f"search one of {', '.join(SEARCHED)}")
    given = value[SEARCH] if isinstance(value, Mapping) else None
    if not isinstance(given, Mapping):
        raise BadValueError(f"a search is a mapping, got {kind(given)}", f"write {path}: {EXAMPLE}", (SEARCH,))
    known = ("low", "high", "tolerance", "max_windows")
    for name in given:
        if name not in known:
            raise BadValueError(f"unknown key {name!r} of a search", suggest_or_list(str(name), known), (SEARCH, name))
    for name in ("low", "high"):
        if given.get(name) is None:
            raise BadValueError(f"a search needs {name}", f"write {path}: {EXAMPLE}", (SEARCH,))
    low, high = (_load(name, given[name], whole=path != RATE) for name in ("low", "high"))
    if low >= high:
        text = f"low {low:g} is not below high {high:g}"
        raise BadValueError(text, "give two loads between which the answer lies", (SEARCH, "low"))
    windows = given.get("max_windows", Search.max_windows)
    if isinstance(windows, bool) or not isinstance(windows, int) or not 1 <= windows <= MAX_WINDOWS:
        raise BadValueError(f"{windows!r} is no number of windows", f"give 1 to {MAX_WINDOWS}", (SEARCH, "max_windows"))
    return Search(path, low, high, _tolerance(given.get("tolerance", Search.tolerance)), windows)


def _load(name: str, value: JsonValue, *, whole: bool) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1e12
    if not number or (whole and not isinstance(value, int)):
        wanted = "a whole number from 1 on" if whole else "a number above 0"
        raise BadValueError(f"{name} {value!r} is not {wanted}", f"give {wanted}", (SEARCH, name))
    return value if whole else float(value)  # type: ignore[arg-type,return-value]  # a number, as just seen


def _tolerance(value: JsonValue) -> float:
    """A share as `5%` or 0.05."""
    share: float | None = None
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            share = float(value.strip()[:-1]) / 100
        except ValueError:
            share = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(value)
    if share is None or not MIN_TOLERANCE <= share <= MAX_TOLERANCE:
        raise BadValueError(f"tolerance {value!r} is no share from 1% to 100%", "write 5%", (SEARCH, "tolerance"))
    return share
