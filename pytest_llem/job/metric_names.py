"""The names of metrics, each with its unit and what is said of it, which is printed as docs/metrics.md.

`study` checks budgets and gates against them; `results.metrics` says how each is read. A published name stays, because
studies and baselines hold it. `condition_names` has those of conditions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint

from pytest_llem.errors import SettingsError
from pytest_llem.job.percentiles import least_values, written
from pytest_llem.job.registered import load, package, registered, unusable

UNIT = r"1?/?[A-Za-z](?:[\w/*]*[A-Za-z])?"
"""A unit as a limit may have it: `J`, `1/s`, `/s`, `J*s`, `gCO2e/km`."""


@dataclass(frozen=True)
class MetricName:
    """One number of a result: what it is, its unit, and which direction is better.

    `energy` says that it comes from a meter: a comparison then needs the same sensors on both sides. `formula` is how
    it follows from a result, `source` the tool or paper that defines it, `absent` when it is `None`, all in Markdown.
    `slo` says that it counts by the limits of the experiment's `slo`: it needs some, and a comparison equal ones.
    `quality` says that it counts right answers: it needs `workload.score`, and a comparison the same questions,
    whatever the lengths of their answers.
    """

    name: str
    unit: str
    higher_is_better: bool
    description: str
    energy: bool
    formula: str | None = None
    source: str | None = None
    absent: str | None = None
    slo: bool = False
    quality: bool = False


_HERE = "pytest-llem, [energy and its uncertainty](energy.md)"
_VLLM = "[vllm bench serve](https://docs.vllm.ai/en/stable/api/vllm/benchmarks/serve/), `{}`"
_INFERENCEX = "[InferenceX](https://github.com/SemiAnalysisAI/InferenceX), `{}`"
_AI_ENERGY_SCORE = (
    "[AI Energy Score](https://huggingface.github.io/AIEnergyScore), GPU energy. Data set, batch and board are part of "
    "its number: [the export](results.md#export-formats) lists what differs"
)
_PEAK = "https://docs.pytorch.org/docs/stable/generated/torch.cuda.max_memory_allocated.html"
_NO_METER = "no meter read the whole of each measure window"
_NO_TOKENS = f"{_NO_METER}, or no token was generated"
_NO_REQUESTS = f"{_NO_METER}, or no request succeeded"
_NO_IDLE = "no meter read an idle window (`measurement.idle`), or all that it tells is a process's share"
_GOODPUT_PAGE = "load.md#slos-and-goodput"
_NEVER = "never in a valid result"
_NO_TIMES = "the engine does not tell when {} came"

_LATENCIES = {
    "ttft": (
        "Time to first token",
        "first token - start of the request",
        _NO_TIMES.format("the first token of one of the answers"),
    ),
    "tpot": (
        "Time per output token after the first",
        "(last token - first token) / (output tokens - 1)",
        _NO_TIMES.format("the first token of one of the answers") + ", or none has two tokens",
    ),
    "itl": (
        "Inter-token latency",
        "token - the token before it, over all tokens of all answers",
        _NO_TIMES.format("each single token"),
    ),
    "e2el": ("End-to-end latency", "end of the answer - start of the request", "no request succeeded"),
}
LATENCIES = tuple(_LATENCIES)
_STANDARD = ("mean", "p50", "p90", "p99")
_CHUNKS = "; over arrivals there, one of which may bring several tokens (here `latency.itl_chunk_s`)"
_CHOSEN = re.compile(rf"({'|'.join(_LATENCIES)})_p(\d+(?:[._]\d+)?)(?:_s)?")


def _latency(short: str, statistic: str) -> MetricName:
    """The mean of a latency, or the percentile that is written after the `p`."""
    (what, formula, absent), percentile = _LATENCIES[short], statistic.removeprefix("p")
    which = computed = {"mean": "mean", "p50": "median"}.get(statistic, f"{percentile}{_ending(percentile)} percentile")
    if which not in ("mean", "median"):
        computed += ", by linear interpolation"
        absent += f"; fewer than {least_values(float(percentile)):,} values"
    source = _VLLM.format(f"{'median' if statistic == 'p50' else statistic}_{short}_ms") + _CHUNKS * (short == "itl")
    name = f"{short}_{statistic.replace('.', '_')}_s"
    return MetricName(name, "s", False, f"{what}, {which}", False, f"{computed} of {formula}", source, absent)


def _ending(percentile: str) -> str:
    """The ending of a number as an ordinal: 91st, 92nd, 95th, 99.9th."""
    teens = len(percentile) == 2 and percentile.startswith("1")
    return "th" if teens or "." in percentile else {"1": "st", "2": "nd", "3": "rd"}.get(percentile[-1], "th")


SLO_MET_SHARE = "slo_met_share"
JOULES_PER_GOOD = "joules_per_good_request"
MAX_RATE = "max_rate_under_slo"
_NO_SLO = "the study sets no `slo`, or the engine does not tell a time that it limits"
# name, unit, higher is better, description, energy; formula, source, absent
_GOODPUT = (
    MetricName(
        *("goodput_requests_per_s", "1/s", True, "Throughput of good requests", False),
        "requests that succeeded and kept every limit of `slo` / the time of `output_tokens_per_s`",
        _VLLM.format("request_goodput") + " of `--goodput`",
        _NO_SLO,
        slo=True,
    ),
    MetricName(
        *("goodput_output_tokens_per_s", "1/s", True, "Output token throughput of good requests", False),
        "output tokens of good requests / the time of `output_tokens_per_s`",
        "pytest-llem, as `goodput_requests_per_s`",
        _NO_SLO,
        slo=True,
    ),
    MetricName(
        *(JOULES_PER_GOOD, "J", False, "Energy per good request", True),
        "`energy_j` / good requests: energy of requests that were too late, or failed, is part of it",
        f"pytest-llem, [SLOs and goodput]({_GOODPUT_PAGE})",
        f"{_NO_SLO}; {_NO_METER}, or no request was good",
        slo=True,
    ),
    MetricName(
        *("good_requests_per_joule", "1/J", True, "Good requests per joule", True),
        "good requests / `energy_j`",
        f"pytest-llem, [SLOs and goodput]({_GOODPUT_PAGE})",
        f"{_NO_SLO}; {_NO_METER}",
        slo=True,
    ),
    MetricName(
        *(SLO_MET_SHARE, "1", True, "Share of good requests", False),
        "good requests / all requests that were due, failed ones included",
        f"pytest-llem, [SLOs and goodput]({_GOODPUT_PAGE})",
        _NO_SLO,
        slo=True,
    ),
)
_SEARCHED = MetricName(
    *(MAX_RATE, "1/s", True, "Largest rate of requests under the SLO", False),
    "the rate at which the share of good requests is `slo.at`, by all windows of a search; where a number of requests "
    "in flight is searched, the rate served at the largest",
    "pytest-llem, [the largest load under an SLO](load.md#the-largest-load-under-an-slo)",
    "the experiment is no search, or none of its windows kept the SLO",
    slo=True,
)
ACCURACY = "accuracy"
JOULES_PER_CORRECT = "joules_per_correct_answer"
_QUALITY_PAGE = "pytest-llem, [joules per correct answer](quality.md)"
_NOT_SCORED = "the study scores no answers (`workload.score`), or their scorer failed"
_QUALITY = (
    MetricName(
        *(ACCURACY, "1", True, "Accuracy of the answers", False),
        "sum of the scores of all answers of the measure windows / those answers; a request that failed scores 0",
        _QUALITY_PAGE,
        _NOT_SCORED,
        quality=True,
    ),
    MetricName(
        *(JOULES_PER_CORRECT, "J", False, "Energy per correct answer", True),
        "`energy_j` / sum of the scores of all answers of the measure windows: wrong answers cost as well",
        _QUALITY_PAGE,
        f"{_NOT_SCORED}; {_NO_METER}, or no answer was right",
        quality=True,
    ),
)
# name, unit, higher is better, description, energy; formula, source, absent
_NAMES = (
    MetricName(
        *("joules_per_output_token", "J", False, "Energy per output token", True),
        "`energy_j` / output tokens of the measure windows",
        _INFERENCEX.format("joules_per_output_token"),
        _NO_TOKENS,
    ),
    MetricName(
        *("output_tokens_per_s", "1/s", True, "Output token throughput", False),
        "output tokens / time of the measure windows, without that in which caches were emptied",
        _VLLM.format("output_throughput"),
        _NEVER,
    ),
    MetricName(
        *("energy_j", "J", False, "Energy of the measure windows", True),
        "sum over measure windows and leased devices, less idle power while caches were emptied",
        _HERE,
        _NO_METER,
    ),
    MetricName(
        *("avg_power_w", "W", False, "Mean power of the measure windows", True),
        "`energy_j` / time of the measure windows: of all leased devices together",
        f"{_INFERENCEX.format('avg_total_gpu_power_w')} (its `avg_power_w` is that of a single GPU)",
        _NO_METER,
    ),
    MetricName(
        *("energy_above_idle_j", "J", False, "Energy above idle", True),
        "`energy_j` - `idle_power_w` × time of the measure windows; may be below 0 where the load is close to idle",
        _HERE,
        "either of the two is",
    ),
    MetricName(
        *("idle_power_w", "W", False, "Idle power, model loaded", True),
        "energy / time of the idle window after the load, or that of an earlier cycle under the same conditions",
        _HERE,
        _NO_IDLE,
    ),
    MetricName(
        *("joules_per_total_token", "J", False, "Energy per token", True),
        "`energy_j` / (input + output tokens of the measure windows)",
        _INFERENCEX.format("joules_per_total_token"),
        _NO_METER,
    ),
    MetricName(
        *("joules_per_request", "J", False, "Energy per request", True),
        "`energy_j` / successful requests of the measure windows",
        _INFERENCEX.format("joules_per_successful_query"),
        _NO_REQUESTS,
    ),
    MetricName(
        *("wh_per_1000_queries", "Wh", False, "Energy per 1000 requests", True),
        "`joules_per_request` × 1000 / 3600",
        _AI_ENERGY_SCORE,
        _NO_REQUESTS,
    ),
    MetricName(
        *("tokens_per_joule", "1/J", True, "Output tokens per joule", True),
        "1 / `joules_per_output_token`",
        "pytest-llem, for where higher has to be better",
        _NO_TOKENS,
    ),
    MetricName(
        *("total_tokens_per_s", "1/s", True, "Token throughput", False),
        "(input + output tokens) / the time of `output_tokens_per_s`",
        _VLLM.format("total_token_throughput"),
        _NEVER,
    ),
    MetricName(
        *("requests_per_s", "1/s", True, "Request throughput", False),
        "successful requests / the time of `output_tokens_per_s`",
        _VLLM.format("request_throughput"),
        _NEVER,
    ),
    MetricName(
        *("peak_memory_bytes", "B", False, "Peak allocated memory, summed over devices", False),
        "sum over devices of the most that the engine's allocator held during the measure windows",
        f"PyTorch, [`max_memory_allocated`]({_PEAK})",
        "on the CPU, or where the engine does not tell of one of its devices",
    ),
    MetricName(
        *("mfu", "1", True, "Model FLOPs utilisation", False),
        "FLOPs of the successful requests / time / published peak of the boards for the dtype of the products",
        "PaLM, [arXiv 2204.02311](https://arxiv.org/abs/2204.02311), there of training",
        "on the CPU, or where architecture, board or way of quantising are not known here",
    ),
    MetricName(
        *("load_s", "s", False, "Time to load the engine", False),
        "from the start of the load until nothing runs on the devices any more",
        "pytest-llem, [the measurement protocol](protocol.md)",
        "the engine was loaded already (`isolation: load`)",
    ),
    *(_latency(short, statistic) for short in _LATENCIES for statistic in _STANDARD),
    *_GOODPUT,
    MetricName(
        *("joules_per_session", "J", False, "Energy per session", True),
        "`energy_j` / sessions of the measure windows whose every replayed turn succeeded; that per turn is "
        "`joules_per_request`",
        _HERE,
        f"{_NO_METER}, or a request is no turn of a session, or no session is whole",
    ),
    MetricName(
        *("cached_input_share", "1", True, "Share of prompt tokens from the prefix cache", False),
        "input tokens that a prefix cache held / input tokens of the measure windows",
        "pytest-llem, [Caches](load.md#caches)",
        "the engine does not tell of every answer",
    ),
    _SEARCHED,
    *_QUALITY,
)

METRIC_NAMES = {entry.name: entry for entry in _NAMES}
"""The metrics of this package alone by name, in the order of tables: `metric_name` and `known_metric` find others.

Percentiles that a study chooses are none of them: `latency_percentile` has those, by any name such as `ttft_p95_s`.
"""

HEADLINE = "joules_per_output_token"
"""Default of `execution.headline`."""
METRICS_GROUP = "pytest_llem.metrics"
COLUMNS = (
    "run_id", "source_run", "study", "experiment", "config_hash", "cycle", "attempt", "created_at", "valid", "reasons",
    "warnings", "model", "engine", "engine_version", "dtype", "runner", "device_kind", "device_count", "meter",
    "measured", "scope", "uncertainty_j", "input_tokens", "output_tokens", "repeats", "measure_s", "accuracy_low",
    "accuracy_high", "joules_per_correct_answer_uncertainty", "gpu_power_limit_w", "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz", "gpu_clock_events",
)  # fmt: skip
"""Columns of every table beside the metrics, whose names no metric may have."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_UNIT = re.compile(rf"1|{UNIT}")


@cache
def registered_metrics() -> Mapping[str, MetricName]:
    """The metrics that other packages add, by name. Raises `SettingsError` for one that is broken, or has a taken name.

    All are imported at once: a run sums up every metric, and a broken one must be found before anything is measured.
    """
    points = registered(METRICS_GROUP, "metric", {*METRIC_NAMES, *COLUMNS})
    return {name: _checked(point, load(point, "metric")) for name, point in points.items()}


def package_of(name: str) -> str:
    """The package that adds a metric, with its version."""
    return package(registered(METRICS_GROUP, "metric", ())[name])


def _checked(point: EntryPoint, found: object) -> MetricName:
    if not isinstance(found, MetricName) or not callable(getattr(found, "of", None)):
        raise unusable(point, "metric", f"it is a {type(found).__name__}, not a pytest_llem.Metric")
    if found.name != point.name or not _NAME.fullmatch(found.name):
        raise unusable(point, "metric", f"its name is {found.name!r}: use the entry point's, of a-z, 0-9 and _")
    if _CHOSEN.fullmatch(found.name):
        raise unusable(point, "metric", f"its name is {found.name!r}, which is that of a percentile of this package")
    if not _UNIT.fullmatch(found.unit):
        raise unusable(point, "metric", f"its unit is {found.unit!r}: write one such as J*s or 1/km, and 1 for none")
    return found


def percentile_name(short: str, percentile: float) -> str:
    """The name of the metric that is this percentile of a latency: `ttft_p99_9_s`."""
    return f"{short}_p{written(percentile).replace('.', '_')}_s"


def percentile_of(name: str) -> tuple[str, float] | None:
    """The latency (`ttft`) and the percentile of it that a metric is by its name; `None` for other metrics."""
    match = _CHOSEN.fullmatch(name)
    if match is None:
        return None
    short, percentile = match[1], float(match[2].replace("_", "."))
    return (short, percentile) if 0 < percentile < 100 and name == percentile_name(short, percentile) else None


@cache
def latency_percentile(name: str) -> MetricName | None:
    """The metric that is a percentile of a latency by its name, `None` for another name."""
    found = percentile_of(name)
    return None if found is None else _latency(found[0], f"p{written(found[1])}")


def metric_name(name: str) -> MetricName:
    """The metric called `name`; `SettingsError` with a suggestion for any other name."""
    shipped = METRIC_NAMES.get(name) or latency_percentile(name)
    if shipped is not None:
        return shipped
    others = registered_metrics()
    if name not in others and (near := _CHOSEN.fullmatch(name)):
        percentile = float(near[2].replace("_", "."))
        fix = f"did you mean {percentile_name(near[1], percentile)!r}?" if 0 < percentile < 100 else None
        fix = fix or f"name one above 0 and below 100, such as {near[1]}_p99_9_s"
        raise SettingsError(f"unknown metric {name!r}", fix=fix, details={"metric": name})
    require_listed("metric", name, (*METRIC_NAMES, *others), f" (or install the package that adds {name!r})")
    return others[name]


def known_metric(name: str) -> MetricName | None:
    """The metric called `name`, `None` for one of a package that is not installed: an earlier run may name it."""
    return METRIC_NAMES.get(name) or latency_percentile(name) or registered_metrics().get(name)


def require_listed(kind: str, name: str, names: Sequence[str], more: str = "") -> None:
    """Raises `SettingsError` with a suggestion for a name that is not among these."""
    if name not in names:
        close = get_close_matches(name, names, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
        raise SettingsError(f"unknown {kind} {name!r}", fix=fix + more, details={kind: name})
