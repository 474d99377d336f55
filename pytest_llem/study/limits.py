"""Budgets and comparisons as a study writes them: `"<= 0.5"`, `5%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pytest_llem.errors import SettingsError

Operator = Literal["<=", "<", ">=", ">"]

_BUDGET = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\Z")
_PERCENT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*%\s*\Z")


@dataclass(frozen=True)
class Budget:
    """A bound on a metric, without a baseline: `metric op limit`, the limit in the metric's unit."""

    metric: str
    op: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.limit:g}"


@dataclass(frozen=True)
class FailIf:
    """A change against the baseline that fails, as a fraction: 0.05 is +5 %, -0.05 is -5 %.

    For a metric where higher is better the change that fails is negative. `resolution` is the smallest change that
    matters, a fraction, and stated where the limit is 0 or points the harmless way.
    """

    metric: str
    limit: float
    resolution: float | None = None

    def __str__(self) -> str:
        return f"{self.metric}: {self.limit:+.4%}".rstrip("0%").rstrip(".") + "%"


@dataclass(frozen=True)
class Comparison:
    """How an experiment is compared with a baseline: every limit, and the error rate of each."""

    fail_if: tuple[FailIf, ...] = ()
    alpha: float = 0.05


def check_metric(name: str) -> None:
    """Raises `SettingsError` with a suggestion when no metric has this name."""
    from pytest_llem.results.metrics import metric

    metric(name)


def parse_budget(metric: str, text: object) -> Budget:
    """`"<= 0.5"` as a budget. Raises `SettingsError`."""
    check_metric(metric)
    match = _BUDGET.match(text) if isinstance(text, str) else None
    if match is None:
        raise SettingsError(
            f"{metric}: {text!r} is not a budget", fix=f'write an operator and a number: "<= {_n(text)}"'
        )
    op: Operator = match.group(1)  # type: ignore[assignment]
    return Budget(metric, op, float(match.group(2)))


def _n(text: object) -> str:
    return f"{text:g}" if isinstance(text, (int, float)) and not isinstance(text, bool) else "0.5"


def parse_change(metric: str, text: object) -> float:
    """`5%` as 0.05. Raises `SettingsError`; a bare number is refused because its unit would be a guess."""
    match = _PERCENT.match(text) if isinstance(text, str) else None
    value = float(match.group(1)) / 100 if match else None
    if value is None or not -1 < value < 1000:
        number = _n(text) if not isinstance(text, str) else text.strip() or "5"
        raise SettingsError(
            f"{metric}: {text!r} is not a change", fix=f"write percent: {metric}: {number.rstrip('%')}%"
        )
    return value


def parse_fail_if(metric: str, text: object, resolution: object = None) -> FailIf:
    """One limit of `compare.fail_if` or `--llem-fail-if`. Raises `SettingsError`."""
    check_metric(metric)
    smallest = None if resolution is None else parse_change(f"resolution of {metric}", resolution)
    if smallest is not None and smallest <= 0:
        raise SettingsError(f"resolution of {metric}: {resolution!r} is not positive", fix="write for example 1%")
    limit = parse_change(metric, text)
    if smallest is None and _allowed_worsening(metric, limit) <= 0:
        from pytest_llem.results.metrics import METRICS

        direction = "higher" if METRICS[metric].higher_is_better else "lower"
        raise SettingsError(
            f"{metric}: {text} allows no worsening at all ({direction} is better)",
            fix=f"turn the sign, or state the smallest change that matters: resolution: {{{metric}: 1%}}",
        )
    return FailIf(metric, limit, smallest)


def _allowed_worsening(metric: str, limit: float) -> float:
    from pytest_llem.results.metrics import METRICS

    return 1 / (1 + limit) - 1 if METRICS[metric].higher_is_better else limit
