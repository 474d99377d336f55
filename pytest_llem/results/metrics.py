"""The metrics of a result by name: where each of `job.metric_names` lies in it, and those of other packages.

Gates, baselines, summaries, tables and the report find metrics here. What a name means must stay: baselines hold it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import cast

from pytest_llem.errors import LlemWarning, visible
from pytest_llem.job.metric_names import (
    JOULES_PER_CORRECT,
    JOULES_PER_GOOD,
    LATENCIES,
    MAX_RATE,
    METRIC_NAMES,
    SLO_MET_SHARE,
    MetricName,
    latency_percentile,
    metric_name,
    package_of,
    percentile_name,
    percentile_of,
    registered_metrics,
)
from pytest_llem.job.percentiles import STANDARD, least_values, written
from pytest_llem.results.performance_schema import Distribution
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import ratio

Getter = Callable[[Result], "float | None"]


@dataclass(frozen=True)
class Metric(MetricName):
    """A metric: `of` gives its value in a result, `None` where it was not measured; it must depend on that alone.

    `name` is that of its entry point, `unit` such as `J`, `1/s` or `J*s`, and `1` for none. `energy` says that a meter
    has a part in it: a comparison then needs the same sensors on both sides, and estimates are not judged.

    Of a metric of energy that another package adds, `uncertainty` is that of its sensor (k=2, in the metric's unit).
    Without it the figure's uncertainty is `None`, and no budget can be judged; comparisons can.

    `formula`, `source` (the tool or paper that defines it) and `absent` (when it is `None`) are for readers.
    """

    of: Getter = field(kw_only=True)
    uncertainty: Getter | None = field(default=None, kw_only=True)


def metric(name: str) -> Metric:
    """The metric called `name`; `SettingsError` with a suggestion for any other name."""
    return shipped(name) or METRICS[metric_name(name).name]


def is_energy(name: str) -> bool:
    """Whether a metric comes from a meter, whose conditions must then match for a comparison."""
    return metric(name).energy


def _peak_memory(result: Result) -> float | None:
    peaks = [device.peak_allocated_bytes for device in result.memory.devices]
    return None if not peaks or None in peaks else float(sum(peak or 0 for peak in peaks))


_GETTERS: dict[str, Getter] = {
    "joules_per_output_token": lambda r: r.energy.joules_per_output_token,
    "output_tokens_per_s": lambda r: r.throughput.output_tokens_per_s,
    "energy_j": lambda r: r.energy.energy_j,
    "avg_power_w": lambda r: r.energy.avg_power_w,
    MAX_RATE: lambda r: r.search.max_rate_per_s if r.search else None,
    "energy_above_idle_j": lambda r: r.energy.energy_above_idle_j,
    "idle_power_w": lambda r: r.energy.idle_power_w,
    "joules_per_total_token": lambda r: r.energy.joules_per_total_token,
    "joules_per_request": lambda r: r.energy.joules_per_request,
    "joules_per_session": lambda r: r.energy.joules_per_session,
    "wh_per_1000_queries": lambda r: r.energy.wh_per_1000_queries,
    "tokens_per_joule": lambda r: r.energy.tokens_per_joule,
    "cached_input_share": lambda r: ratio(r.tokens.cached_input, r.tokens.input),
    "total_tokens_per_s": lambda r: r.throughput.total_tokens_per_s,
    "requests_per_s": lambda r: r.throughput.requests_per_s,
    "peak_memory_bytes": _peak_memory,
    "mfu": lambda r: r.compute.mfu,
    "load_s": lambda r: r.timing.get("load_s"),
}


def _getter(entry: MetricName) -> Getter:
    """A metric's own getter, else that of a field of `slo` or `quality`, or a statistic of a latency: `ttft_p50_s`."""
    name = entry.name
    section, _, statistic = name.removesuffix("_s").partition("_")

    def latency(result: Result) -> float | None:
        distribution: Distribution | None = getattr(result.latency, f"{section}_s")
        return None if distribution is None else distribution.statistics.get(statistic.replace("_", "."))

    def goodput(result: Result) -> float | None:
        value: float | None = getattr(result.slo, "share" if name == SLO_MET_SHARE else name, None)
        return value

    def quality(result: Result) -> float | None:
        value: float | None = getattr(result.quality, name, None)
        return value

    return _GETTERS.get(name) or (goodput if entry.slo else quality if entry.quality else latency)


SHIPPED = {name: Metric(**vars(entry), of=_getter(entry)) for name, entry in METRIC_NAMES.items()}
"""The metrics of this package, which every table has as columns."""


@cache
def shipped(name: str) -> Metric | None:
    """The metric of this package called `name`: of `SHIPPED`, or any percentile of a latency. `None` for others."""
    chosen = None if name in SHIPPED else latency_percentile(name)
    return SHIPPED.get(name) if chosen is None else Metric(**vars(chosen), of=_getter(chosen))


def metrics_of(results: Iterable[Result]) -> dict[str, Metric]:
    """Every metric that the results may have: those of `METRICS`, and the percentiles that their study chose."""
    percentiles = (percentile for result in results for percentile in result.latency.percentiles)
    return {name: METRICS[name] for name in names_with(percentiles)}


def names_with(percentiles: Iterable[float]) -> list[str]:
    """The names of all metrics in the order of tables, among them these percentiles of each latency."""
    chosen = sorted(set(percentiles).difference(STANDARD))
    further = [percentile_name(short, percentile) for short in LATENCIES for percentile in chosen]
    return [*SHIPPED, *further, *registered_metrics()]


class Metrics(Mapping[str, Metric]):
    """The metrics by name: those of this package, then those of other packages, found when one is first asked for.

    Percentiles that a study may choose are found by their names, and not listed: see `metrics_of`.
    """

    def __getitem__(self, name: str) -> Metric:
        return shipped(name) or _guarded(registered_metrics()[name])

    def __iter__(self) -> Iterator[str]:
        return iter((*SHIPPED, *registered_metrics()))

    def __len__(self) -> int:
        return len(SHIPPED) + len(registered_metrics())


METRICS = Metrics()


def _guarded(entry: MetricName) -> Metric:
    """A package's metric that is `None` where its function fails: what else a result says must not be lost by it."""
    given = cast("Metric", entry)  # `registered_metrics` saw that it is one

    def guarded(of: Getter, what: str) -> Getter:
        def value(result: Result) -> float | None:
            found, why = _evaluated(of, result)
            if why != NOT_MEASURED and (named := (entry.name, what, why.partition(":")[0])) not in _TOLD:
                _TOLD.add(named)
                _warn(f"the {what} {entry.name!r} of {package_of(entry.name)} is left out: {why}", result)
            return found

        return value

    stated = given.uncertainty and guarded(given.uncertainty, "uncertainty of the metric")
    return replace(given, of=guarded(given.of, "metric"), uncertainty=stated)


_TOLD: set[tuple[str, str, str]] = set()
"""What was said of metrics that fail: each kind of failure once, and not for every result."""


def _warn(text: str, first: Result) -> None:
    """Say it; where warnings are errors, it is a result that counts, and not this."""
    of = f"run {first.run_id}, {first.study}, {first.experiment.id}, cycle {first.cycle}"
    with suppress(LlemWarning):
        warnings.warn(visible(f"{text} (first in {of})"), LlemWarning, stacklevel=4)


def _evaluated(of: Getter, result: Result) -> tuple[float | None, str]:
    """The value of a package's function, or why there is none."""
    try:
        value = of(result)
        number = None if value is None else float(value)
    except Exception as problem:  # noqa: BLE001  (it may be anybody's)
        return None, f"it raised {type(problem).__name__}: {problem}"
    if number is not None and not math.isfinite(number):
        return None, f"it is {number}"
    return number, NOT_MEASURED


def is_at_least(measure: MetricName, result: Result) -> bool:
    """Whether a result's figure is only known to be at least that: a search's whose bracket ends below its answer."""
    return measure.name == MAX_RATE and result.search is not None and result.search.ending == "at_least"


def is_beyond_numbers(measure: MetricName, result: Result) -> bool:
    """Whether nothing was counted that the figure is per: joules for a good request, or a right answer, of none."""
    counted = (result.slo and result.slo.good) if measure.slo else result.quality and result.quality.correct
    per = measure.name in (JOULES_PER_GOOD, JOULES_PER_CORRECT)
    return per and counted == 0 and result.energy.energy_j is not None


NOT_MEASURED = "this run did not measure it"
NO_SEARCH = "the experiment searches no load: sweep: {workload.arrival.rate_per_s: {search: {low: 1, high: 200}}}"
NO_SCORE = "the experiment scores no answers: workload: {score: exact, answer_column: answer}"
NO_SLO = "it counts requests that kept the limits of slo, and the experiment sets none"


def why_absent(name: str, result: Result) -> str:
    """Why a valid result has no such metric, in words for a user."""
    measure = shipped(name)
    if measure is None:
        return _evaluated(cast("Metric", registered_metrics()[name]).of, result)[1]
    if name == MAX_RATE:
        return NO_SEARCH if result.search is None else result.search.reason
    if measure.slo:
        return NO_SLO if result.slo is None else result.slo.reason or NOT_MEASURED
    if measure.quality:
        return NO_SCORE if result.quality is None else result.quality.reason or NOT_MEASURED
    short, percentile = percentile_of(name) or (None, 50.0)
    found: Distribution | None = getattr(result.latency, f"{short}_s", None)
    if found is None or found.n is None or percentile == 50:
        return NOT_MEASURED
    if f"p{written(percentile)}" not in found.statistics:
        return f"the study that measured it has no {written(percentile)} among its percentiles"
    return (
        f"{name} takes at least {least_values(percentile)} values, and there were {found.n}: more workload.prompts, "
        "or a longer measurement.min_duration_s"
    )
