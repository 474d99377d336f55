"""What a search found, as files: each window as evidence, the answer as a result of its cycle, and `search.json`.

`session.searching` calls it after each window. A cycle of a search is a cycle like any other from then on: gates,
summaries, baselines and the report read the result of the window that answered. `search_record` has the format of
`search.json`.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from pytest_llem.errors import LlemError
from pytest_llem.job.files import write_json
from pytest_llem.job.job import JobDir
from pytest_llem.job.report import Note
from pytest_llem.job.wire import encode
from pytest_llem.results.layout import RESULT, SEARCH, STATE, CycleKey
from pytest_llem.results.metrics import metrics_of
from pytest_llem.results.performance_schema import SearchSection
from pytest_llem.results.saturation import SATURATED
from pytest_llem.results.schema import Result
from pytest_llem.results.search import LargestLoad, LoadWindow, NextLoad, share_interval, verdict
from pytest_llem.results.search_record import (
    NO_ANSWER,
    SEARCH_VERSION,
    OverCycles,
    SearchedLoad,
    SearchedWindow,
    SearchRecord,
    read_search,
)
from pytest_llem.results.state import CycleState, Outcome, given, now, write_state
from pytest_llem.results.statistics import CONFIDENCE, mean_interval
from pytest_llem.results.store import LOCKS, RunStore, write_result
from pytest_llem.study.search import Search

FAILED = "failed_requests"
OVERLOAD = ("timeout", "stalled", "dropped", "refused", "http_429", "http_5xx")
"""Classes of failed requests that too high a load makes; others say that the requests were wrong."""
EVIDENCE = (SATURATED, FAILED)
"""Reasons against a result that tell of its load all the same."""


@dataclass(frozen=True)
class MeasuredWindow:
    """A window that was measured: why it had its load, what came of it, and what that tells."""

    reason: str
    outcome: Outcome
    window: LoadWindow


def window_of(search: Search, load: float, outcome: Outcome) -> LoadWindow:
    """What an outcome tells of its load: nothing where it is invalid for other reasons."""
    result = outcome.result
    if result is None:
        return LoadWindow(load, load, unusable=" ".join((outcome.state, *outcome.reasons()[:1])))
    reasons = {reason.code: reason.message for reason in result.validity.reasons}
    failures = [name for name, count in result.workload.failures.items() if count]
    too_much = SATURATED in reasons or (FAILED in reasons and bool(failures) and set(failures) <= {*OVERLOAD})
    others = [f"{code}: {text}" for code, text in reasons.items() if code not in EVIDENCE]
    slo = result.slo
    if not too_much and (reasons or slo is None or slo.good is None):
        told = others or [f"{code}: {text}" for code, text in reasons.items()]
        why = told[0] if told else (slo.reason if slo is not None else None) or "no request was judged by the SLO"
        return LoadWindow(load, load, unusable=why)
    return LoadWindow(
        load,
        load if search.whole or slo is None or slo.offered_per_s is None else slo.offered_per_s,
        good=(slo.good if slo is not None else None) or 0,
        requests=slo.requests if slo is not None else 0,
        effective=(slo.effective_requests if slo is not None else None) or 0.0,
        overloaded=too_much,
        served_per_s=_served_per_s(result) if SATURATED in reasons else None,
    )


def _served_per_s(result: Result) -> float | None:
    """What was served, in units of the load: of sessions those that begin, each with all of its turns."""
    work, served = result.workload, result.throughput.requests_per_s
    if served is None or work.sessions is None:
        return served
    return served * work.sessions / work.requests if work.requests else None


def tells_of_load(search: Search, outcome: Outcome) -> bool:
    """Whether an outcome is an answer to its load: that it served it, or that it was too much."""
    return window_of(search, search.low, outcome).unusable is None


def conclude(
    store: RunStore, key: CycleKey, search: Search, answer: LargestLoad, windows: Sequence[MeasuredWindow]
) -> Outcome:
    """The outcome of a search's cycle: that of the window that answered, written by whoever comes first."""
    with store.lock(key):
        known = store.outcome(key)
        if known is not None:
            return known
        directory = store.directory(key)
        results = [each.outcome.result for each in windows]
        lowest = sorted((each.window.load, index) for index, each in enumerate(windows) if results[index] is not None)
        chosen = answer.met if answer.met is not None else lowest[0][1] if lowest else None
        base = results[chosen] if chosen is not None else None
        if chosen is None or base is None:
            last = windows[-1].outcome
            error = last.error or LlemError(answer.reason)
            JobDir(directory).write_error(error, origin="pytest")
            failed = CycleState(**vars(key), state="failed", attempts=(), changed_at=now(), reasons=(error.message,))
            write_state(directory, failed)
            return store.outcome_of(key, failed)
        result = _with_answer(base, key, search, answer, windows)
        _share_files(windows[chosen].outcome.directory, directory)
        write_result(JobDir(directory), result)
        state = given(key, result, windows[chosen].outcome.source_run)
        write_state(directory, state)
        return store.outcome_of(key, state)


def _with_answer(
    base: Result, key: CycleKey, search: Search, answer: LargestLoad, windows: Sequence[MeasuredWindow]
) -> Result:
    reasons: tuple[Note, ...] = ()
    warnings = base.warnings
    text = answer_text(search, answer)
    if answer.met is None:
        code = "search_given_up" if answer.ending == "given_up" else "no_load_under_slo"
        reasons = (Note(code, text),)
    elif answer.ending != "found":
        code = "search_open_ended" if answer.ending == "at_least" else "search_not_converged"
        warnings = (*warnings, Note(code, text))
    rate = answer.load
    if search.whole and answer.met is not None:
        rate = base.throughput.requests_per_s
    section = SearchSection(
        setting=search.setting,
        low=search.low,
        high=search.high,
        tolerance=search.tolerance,
        ending=answer.ending,
        reason=answer.reason,
        answer=answer.load,
        answer_low=answer.low,
        answer_high=answer.high,
        met=_offered(windows, answer.met),
        not_met=_offered(windows, answer.not_met),
        step=None if answer.met is None else answer.met + 1,
        windows=len(windows),
        max_rate_per_s=rate,
    )
    return base.model_copy(
        update={
            "search": section,
            "experiment": replace(base.experiment, id=key.experiment_id),
            "status": "invalid" if reasons else "valid",
            "validity": replace(base.validity, valid=not reasons, reasons=reasons),
            "warnings": warnings,
        }
    )


def _offered(windows: Sequence[MeasuredWindow], index: int | None) -> float | None:
    return None if index is None else windows[index].window.offered


def _share_files(window: Path, cycle: Path) -> None:
    """The files of the window that answered as the cycle's own, without taking room twice where links can be made."""
    cycle.mkdir(parents=True, exist_ok=True)
    for path in window.iterdir():
        target = cycle / path.name
        if path.is_file() and path.name not in (STATE, RESULT) and not target.exists():
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)


def answer_text(search: Search, answer: LargestLoad) -> str:
    """The answer in a sentence: `the largest load under the SLO is 9.61 requests/s (9.37 to 9.82)`."""
    if answer.load is None:
        return f"no load from {search.low:g} to {search.high:g} {search.unit} was seen to keep the SLO: {answer.reason}"
    if answer.ending == "at_least":
        return f"the largest load under the SLO is at least {answer.load:.4g} {search.unit}: {answer.reason}"
    ends = f"{answer.low:.4g} to {answer.high:.4g}"
    left = "" if answer.ending == "found" else f"; {answer.reason}"
    return f"the largest load under the SLO is {answer.load:.4g} {search.unit} ({ends}{left})"


def write_search(
    store: RunStore,
    key: CycleKey,
    search: Search,
    at: float,
    windows: Sequence[MeasuredWindow],
    step: NextLoad | LargestLoad,
) -> None:
    """Bring the cycle's part of `search.json` up to date; other processes may write the parts of other cycles."""
    directory = store.directory(key).parent
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SEARCH
    with FileLock(store.run_dir / LOCKS / f"{'_'.join(key.directory.parts[:-1])}_search.lock"):
        cycles = {**read_search(path).cycles} if path.exists() else {}
        known = cycles.get(str(key.cycle))
        if known is not None and len(known.windows) > len(windows):
            return  # by a process that has come further
        cycles[str(key.cycle)] = _cycle(store, search, at, windows, step)
        record = SearchRecord(
            schema_version=SEARCH_VERSION,
            study=key.study,
            experiment_id=key.experiment_id,
            config_hash=key.config_hash,
            **asdict(search),
            unit=search.unit,
            at=at,
            answer=_over_cycles([each for each in cycles.values() if each.answer is not None]),
            cycles={name: cycles[name] for name in sorted(cycles, key=int)},
        )
        write_json(path, encode(record))


def _cycle(
    store: RunStore, search: Search, at: float, windows: Sequence[MeasuredWindow], step: NextLoad | LargestLoad
) -> SearchedLoad:
    answer = step if isinstance(step, LargestLoad) else None
    return SearchedLoad(
        ending=answer.ending if answer else None,
        text=answer_text(search, answer) if answer else f"goes on: next {step.reason}",
        answer=answer.load if answer else None,
        answer_low=answer.low if answer else None,
        answer_high=answer.high if answer else None,
        met=answer.met + 1 if answer and answer.met is not None else None,
        not_met=answer.not_met + 1 if answer and answer.not_met is not None else None,
        windows=tuple(_window(store, at, each, number) for number, each in enumerate(windows, start=1)),
    )


def _window(store: RunStore, at: float, measured: MeasuredWindow, number: int) -> SearchedWindow:
    window, outcome = measured.window, measured.outcome
    judged = window.unusable is None and window.requests > 0
    low, high = share_interval([window]) if judged else (None, None)
    results = [] if outcome.result is None else [outcome.result]
    values = {name: each.of(result) for result in results for name, each in metrics_of(results).items()}
    return SearchedWindow(
        step=number,
        reason=measured.reason,
        load=window.load,
        offered=window.offered if window.unusable is None else None,
        verdict=verdict(window, at),
        saturated=window.served_per_s is not None,
        served_per_s=window.served_per_s,
        requests=window.requests if judged else None,
        good=window.good if judged else None,
        share=window.share,
        share_low=low,
        share_high=high,
        unusable=window.unusable,
        state=outcome.state,
        directory=outcome.directory.relative_to(store.run_dir).as_posix(),
        metrics={name: value for name, value in values.items() if value is not None},
    )


def _over_cycles(ended: Sequence[SearchedLoad]) -> OverCycles:
    """The geometric mean of the cycles' answers with its 95 % interval; of one cycle, that of its windows.

    Where one of them has no upper bound, neither has their mean.
    """
    loads = [each.answer for each in ended if each.answer is not None]
    if len(loads) < 2:
        return next((OverCycles(each.answer, each.answer_low, each.answer_high, 1) for each in ended), NO_ANSWER)
    interval = mean_interval(loads, (1 - CONFIDENCE) / 2)
    load = math.exp(interval.centre)
    if any(each.answer_high is None for each in ended):
        return OverCycles(load, load, None, len(loads))
    return OverCycles(load, interval.low, interval.high, len(loads))
