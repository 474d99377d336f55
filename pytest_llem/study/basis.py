"""What metrics are made of that a study may not have: limits of an SLO, a searched load, scores, and times of tokens.

The loader asks it about gates and the headline, which would else be undecided for ever, and say so only after
everything was measured. A study without such metrics must not pay for it: it may have a hundred thousand experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import MAX_RATE, metric_name
from pytest_llem.study.canonical import LIMITS
from pytest_llem.study.experiments import Experiment
from pytest_llem.study.limits import Comparison
from pytest_llem.study.model import Gates
from pytest_llem.study.search import EXAMPLE, RATE

SCORED = ("workload.score", "workload.task")
"""Settings of which either has answers scored."""
TOKEN_LATENCIES = ("ttft", "tpot", "itl")
"""What the names of latencies begin with that take the moments at which tokens come."""
MAX_SHOWN_IDS = 5
"""Chosen: enough ids to recognise the pattern of a failing sweep, few enough for one line."""


@dataclass(frozen=True)
class _Basis:
    is_for: Callable[[str], bool]
    is_there: Callable[[Experiment], bool]
    lacking: str
    fix: str


def _shows_tokens(experiment: Experiment) -> bool:
    settings = experiment.flat_settings
    if settings.get("engine") == "openai":
        return settings.get("openai.stream") is not False
    return settings.get("engine") != "transformers" or settings.get("transformers.num_beams") in (None, 1)


_BASES = (
    _Basis(
        lambda metric: metric_name(metric).slo,
        lambda experiment: bool(experiment.flat_settings.keys() & LIMITS),
        "counts requests that keep the limits of slo, and there are none for",
        "set them, for example slo: {ttft_s: 0.5, at: 99%}",
    ),
    _Basis(
        lambda metric: metric == MAX_RATE,
        lambda experiment: experiment.search is not None,
        "is the answer of a search, and no load is searched in",
        f"search one: sweep: {{{RATE}: {EXAMPLE}}}",
    ),
    _Basis(
        lambda metric: metric_name(metric).quality,
        lambda experiment: any(map(experiment.flat_settings.get, SCORED)),
        "counts right answers, and none are scored in",
        "score them, for example workload: {answer_column: answer, score: exact}",
    ),
    _Basis(
        lambda metric: metric.partition("_")[0] in TOKEN_LATENCIES,
        _shows_tokens,
        "takes the moments at which tokens come, and nobody sees these in",
        "leave openai.stream on and transformers.num_beams at 1, or take a latency e2el_... instead",
    ),
)


def lacking(
    experiments: Sequence[Experiment], headline: JsonValue, needed: Iterable[tuple[str, str]] = ()
) -> Iterator[tuple[str, str, str]]:
    """Settings on a metric whose basis experiments lack, each with the problem and its remedy.

    A gate needs it in every experiment that it judges, what is `needed` (settings with their metric) in all, and the
    `headline` that a study writes in one.
    """
    everywhere = list(needed)
    gates = {id(each.gates): each.gates for each in experiments}
    for basis in _BASES:
        asked = {
            key: [setting for setting, metric in (*_judged(one), *everywhere) if basis.is_for(metric)]
            for key, one in gates.items()
        }
        is_headline = headline is not None and basis.is_for(str(headline))
        if not is_headline and not any(asked.values()):
            continue
        without = [experiment for experiment in experiments if not basis.is_there(experiment)]
        found: dict[str, list[str]] = {}
        for experiment in without:
            for setting in asked[id(experiment.gates)]:
                found.setdefault(setting, []).append(experiment.id)
        if is_headline and len(without) == len(experiments):
            found["execution.headline"] = [experiment.id for experiment in without]
        for setting, ids in found.items():
            few = ", ".join(ids[:MAX_SHOWN_IDS]) + ", ..." * (len(ids) > MAX_SHOWN_IDS)
            yield setting, f"{setting} {basis.lacking} {few}", basis.fix


def _judged(gates: Gates) -> Iterator[tuple[str, str]]:
    """The settings of gates, each with its metric."""
    for limit in gates.expect:
        yield f"expect.{limit.metric}", limit.metric
    for change in (gates.compare or Comparison()).fail_if:
        yield f"compare.fail_if.{change.metric}", change.metric
