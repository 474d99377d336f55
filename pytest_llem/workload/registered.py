"""Data sets that other packages add: a function of the workload's settings that gives texts, or rows that hold them.

`texts` reads them like files. The pytest side reads them for its workers too, which then need not have the package; so
a name must mean the same wherever it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, cast

from pytest_llem.job.config import SYNTHETIC, WorkloadSettings
from pytest_llem.job.registered import blamed, load, registered, unusable

GROUP = "pytest_llem.datasets"
ALIASES = {"aienergyscore": {"dataset": "EnergyStarAI/text_generation", "column": "text", "split": "train"}}
"""Data sets by the name of the method that fixes them. AI Energy Score documents 1,000 prompts at batch size 1; its
energy is that of the accelerators over preprocessing, prefill and decode, per 1,000 prompts."""

DataSet = Callable[[WorkloadSettings], "Iterable[str | Mapping[str, Any]]"]


@cache
def data_sets() -> Mapping[str, EntryPoint]:
    """The registered data sets by name, none imported. `SettingsError` for a name that is taken, or reads as a path."""
    points = registered(GROUP, "data set", (SYNTHETIC, *ALIASES))
    for name, point in points.items():
        if any(sign in name for sign in "./"):
            raise unusable(point, "data set", "a name with . or / is that of a file, or lies on the hub")
    return points


def rows(settings: WorkloadSettings) -> Iterator[tuple[str, Any]]:
    """The rows of a registered data set, each with where it stands. `SettingsError` for whatever its package raises."""
    point = data_sets()[settings.dataset]
    function = cast("DataSet", load(point, "data set"))
    with blamed(point, "data set"):
        for number, row in enumerate(function(settings)):
            yield f"{settings.dataset}[{number}]", dict(row) if isinstance(row, Mapping) else row
