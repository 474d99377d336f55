"""Grams of CO2e and money beside joules: per million output tokens, by the factors that a study states in `report`.

The summary, the terminal's table, the report and the exports call it. It is pure. Gates and budgets must not: the
factors are nobody's measurement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pytest_llem.study.report_settings import ReportSettings

GRAMS, MONEY = "gco2e_per_million_output_tokens", "price_per_million_output_tokens"
JOULES_PER_KWH = 3.6e6  # by definition
TOKENS = 1e6  # the unit in which services state prices
SCOPES: Mapping[str, str] = {
    "gpu_board": "the GPU boards",
    "module": "the module",
    "cpu_package": "the CPU packages",
    "cpu_package+dram": "CPU packages and memory",
    "process_estimate": "the process, as estimated",
}


@dataclass(frozen=True)
class ImpactFigure:
    """A figure of an experiment in grams of CO2e, or a currency; its uncertainty is that of the joules behind it."""

    value: float
    uncertainty: float | None
    unit: str


@dataclass(frozen=True)
class Impact:
    """One of the two: its name, its unit, and what joules per output token are multiplied with."""

    name: str
    unit: str
    factor: float

    @property
    def head(self) -> str:
        """The head of a column."""
        return f"{'gCO2e' if self.name == GRAMS else self.unit}/Mtoken"

    def of(self, joules_per_token: float, uncertainty: float | None) -> ImpactFigure:
        """The figure of joules per output token and their uncertainty."""
        return ImpactFigure(joules_per_token * self.factor, uncertainty and uncertainty * self.factor, self.unit)


def impacts(settings: ReportSettings) -> list[Impact]:
    """What a study reports beside joules; empty where it states no factor but PUE."""
    pue = settings.pue or 1.0
    per_joule = TOKENS / JOULES_PER_KWH * pue
    found = []
    if settings.grid_gco2e_per_kwh is not None:
        found.append(Impact(GRAMS, "g", per_joule * settings.grid_gco2e_per_kwh.value))
    if settings.price_per_kwh is not None:
        found.append(Impact(MONEY, settings.price_per_kwh.currency, per_joule * settings.price_per_kwh.value))
    return found


def figures(
    settings: ReportSettings, joules_per_token: float | None, uncertainty: float | None
) -> dict[str, ImpactFigure]:
    """The figures by name; none where joules per output token were not measured."""
    if joules_per_token is None:
        return {}
    return {each.name: each.of(joules_per_token, uncertainty) for each in impacts(settings)}


def made_of(settings: ReportSettings, scopes: Collection[str | None]) -> str:
    """What the figures are made of, with values, sources and the boundary; empty where there are none."""
    grid, price, pue = settings.grid_gco2e_per_kwh, settings.price_per_kwh, settings.pue
    factors = []
    if grid is not None:
        factors.append(f"{grid.value:g} gCO2e/kWh ({grid.source})")
    if price is not None:
        factors.append(f"{price.value:g} {price.currency}/kWh" + (f" ({price.source})" if price.source else ""))
    if not factors:
        return ""
    covered = " and ".join(sorted(SCOPES.get(scope, scope) for scope in scopes if scope)) or "what the meter covers"
    site = (
        f", with cooling and distribution by PUE {pue:g}" if pue is not None else ", without cooling and distribution"
    )
    return (
        f"Per million output tokens (Mtoken), from joules per output token: {'; '.join(factors)}. Boundary: the "
        f"electricity of {covered}{site}; not the rest of the host, the network, nor the making of hardware. "
        "± is that of the joules: the factors are taken as exact"
    )
