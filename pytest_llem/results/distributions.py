"""Student's t and the incomplete beta function, which the standard library lacks.

Whoever states an interval calls them: `statistics`, `proportion`, change points and bisecting among others. They are
checked against tables, and quantiles are kept, since simulations ask for the same ones again.
"""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=1024)
def student_quantile(share: float, degrees: float) -> float:
    """The `share` quantile (above one half) of Student's t, by bisection; `degrees` need not be whole."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, degrees: float) -> float:
    """Student's distribution function for t >= 0, through the incomplete beta function (DLMF 8.17.22, Lentz)."""
    return 1 - incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, the distribution function of Beta(a, b) at x."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    value = c = 1.0
    d = 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return value
