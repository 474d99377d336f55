"""The section `report` of a study: what turns joules into grams of CO2e and money, for readers alone.

`parts` checks it, `schema` and `published` publish it, the manifest keeps it, and `results.impact` reckons with it. It
must stay out of gates, budgets and hashes: no measurement depends on it, and values change from year to year.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pytest_llem.job.setting import Limits, Name, about, setting

# Chosen: above any grid (lignite alone is about 1,100 g/kWh) and any tariff, so that another unit is noticed.
GramsPerKwh = Annotated[float, Limits(gt=0, le=10_000)]
PricePerKwh = Annotated[float, Limits(gt=0, le=10_000)]


@dataclass(frozen=True)
class Grid:
    """How much greenhouse gas a kilowatt-hour stands for, and who says so."""

    value: GramsPerKwh = field(metadata=about("Grams of CO2 equivalent per kilowatt-hour.", [350]))
    source: Name = field(metadata=about("Where the value is from: publisher, grid, year, and what it includes."))


@dataclass(frozen=True)
class Price:
    """What a kilowatt-hour costs."""

    value: PricePerKwh = field(metadata=about("Price of a kilowatt-hour.", [0.3]))
    currency: Annotated[str, Limits(pattern=r"^[A-Z]{3}$", message="expected a currency's three letters, like EUR")] = (
        field(metadata=about("Three letters (ISO 4217).", ["EUR"]))
    )
    source: Name | None = setting(None, "Where the value is from.")


@dataclass(frozen=True)
class ReportSettings:
    """Grams and money beside joules, in reports and tables; no gate, budget or hash knows of them."""

    grid_gco2e_per_kwh: Grid | None = setting(
        None, "Grams of CO2 equivalent per kilowatt-hour, with its source.", [{"value": 350, "source": "..."}]
    )
    pue: Annotated[float, Limits(ge=1, le=10)] | None = setting(
        None, "Power usage effectiveness of the data centre: its energy over that of its computers.", [1.2]
    )
    price_per_kwh: Price | None = setting(None, "Price of a kilowatt-hour.", [{"value": 0.3, "currency": "EUR"}])
