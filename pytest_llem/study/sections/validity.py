"""The section `measurement.validity`: from where on a measurement is invalid. It never changes what is measured.

The names and defaults are those of `energy.validity.Thresholds`: a test holds both together.
"""

from __future__ import annotations

from pydantic import Field

from pytest_llem.study.sections.section import NonNegativeFloat, PositiveFloat, Section


class Validity(Section):
    """Limits of what counts as valid, for all experiments of the study."""

    uncertainty_rel: PositiveFloat = Field(
        0.25, description="Largest uncertainty of the measure windows, as a share of their energy."
    )
    gap_periods: PositiveFloat = Field(4.0, description="Longest gap between two counter steps, in periods.")
    gap_s: PositiveFloat = Field(1.0, description="Longest gap between two readings of a sensor without a counter.")
    residual_memory_bytes: NonNegativeFloat = Field(
        2.0**30, description="Device memory that may be in use before the engine is loaded."
    )
    throttled_thermal_rel: NonNegativeFloat = Field(
        0.01, description="Share of the measured time with clocks held down by heat."
    )
    throttled_power_rel: NonNegativeFloat = Field(
        1.1, description="The same by the power limit; above 1 is never, as a limit is a repeatable condition."
    )
    clocks_rel: NonNegativeFloat = Field(0.3, description="Variation of the SM clock while measured.")
    suspended_s: NonNegativeFloat = Field(0.01, description="Seconds that the machine may have slept.")
    temperature_drift_c: NonNegativeFloat = Field(
        10.0, description="Difference in temperature between cycles that is warned of."
    )
    failed_requests_rel: NonNegativeFloat = Field(
        0.0, description="Share of the requests that may fail; failed ones are in no average either way."
    )
