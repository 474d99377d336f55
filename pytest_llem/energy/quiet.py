"""A counter's course over a quiet time, carried to the edge of a window by weighted least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

from pytest_llem.energy.series import TickSeries

FLOOR_J = 0.003
"""Steps are whole millijoules and idle power is never perfectly steady: no step is known better than this."""
SCATTER_LIMIT = 3.0
MIN_CURVED = 5


@dataclass(frozen=True)
class QuietFit:
    """The counter at the edge with its k=2 uncertainty in joules, and the power there in watts.

    `scatter` is how far the steps lie from the fitted course, in units of what their brackets explain.
    """

    energy_j: float
    uncertainty_j: float
    power_w: float
    scatter: float

    @property
    def quiet(self) -> bool:
        """Whether the power was steady, or drifted evenly."""
        return self.scatter <= SCATTER_LIMIT and self.power_w >= 0


def fit(ticks: TickSeries, indices: Sequence[int], edge_ns: int) -> QuietFit:
    """Fit energy = a + b t + c t^2 with t from the edge; the drift c only with five steps or more,
    or where four lie on no straight course.

    Each step weighs by its bracket: a uniform distribution of that width, times the power. Needs three steps.
    """
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / (
        (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    )
    origin_j = ticks.energy_j[indices[0]]
    times = [(ticks.mid_ns[i] - edge_ns) / 1e9 for i in indices]
    values = [ticks.energy_j[i] - origin_j for i in indices]
    sigmas = [FLOOR_J + mean_w * ticks.half_width_ns(i) / 1e9 / sqrt(3) for i in indices]
    straight, curved = _solve(times, values, sigmas, 2), _solve(times, values, sigmas, 3)
    apart_j = abs(curved.coefficients[0] - straight.coefficients[0])
    drifts = len(indices) == MIN_CURVED - 1 and straight.scatter > SCATTER_LIMIT
    if len(indices) >= MIN_CURVED or drifts:
        chosen, bound_j = curved, hypot(2 * curved.sigmas[0], apart_j / 2)
    else:
        # A drift that so few steps cannot show may still be there: the two courses differ by what it could amount to.
        chosen, bound_j = straight, 2 * straight.sigmas[0] + apart_j
    return QuietFit(origin_j + chosen.coefficients[0], bound_j, chosen.coefficients[1], chosen.scatter)


def steady_power(ticks: TickSeries, indices: Sequence[int]) -> tuple[float, float] | None:
    """Mean power in watts over these steps, with its k=2 uncertainty; `None` where the steps show no even course."""
    centre_ns = (ticks.mid_ns[indices[0]] + ticks.mid_ns[indices[-1]]) // 2
    course = fit(ticks, indices, centre_ns)
    if not course.quiet:
        return None
    span_s = (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / span_s
    edges_s = hypot(*(ticks.half_width_ns(i) / 1e9 for i in (indices[0], indices[-1]))) / sqrt(3)
    return mean_w, 2 * hypot(mean_w * edges_s, sqrt(2) * FLOOR_J) / span_s


@dataclass(frozen=True)
class _Solution:
    coefficients: tuple[float, ...]
    sigmas: tuple[float, ...]
    scatter: float


def _solve(times: Sequence[float], values: Sequence[float], sigmas: Sequence[float], order: int) -> _Solution:
    """Weighted polynomial fit; standard deviations grow with the scatter where that exceeds the brackets."""
    weights = [1 / sigma**2 for sigma in sigmas]
    normal = [
        [sum(w * t ** (row + column) for w, t in zip(weights, times, strict=True)) for column in range(order)]
        for row in range(order)
    ]
    right = [sum(w * t**row * v for w, t, v in zip(weights, times, values, strict=True)) for row in range(order)]
    inverse = _inverted(normal)
    coefficients = [sum(a * b for a, b in zip(row, right, strict=True)) for row in inverse]
    residuals = [
        (v - sum(c * t**power for power, c in enumerate(coefficients))) / sigma
        for t, v, sigma in zip(times, values, sigmas, strict=True)
    ]
    freedom = len(times) - order
    scatter = sqrt(sum(r * r for r in residuals) / freedom) if freedom > 0 else 1.0
    grown = max(1.0, scatter)
    return _Solution(tuple(coefficients), tuple(grown * sqrt(max(0.0, inverse[i][i])) for i in range(order)), scatter)


def _inverted(matrix: list[list[float]]) -> list[list[float]]:
    """Gauss-Jordan with pivoting, for two or three rows."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]
