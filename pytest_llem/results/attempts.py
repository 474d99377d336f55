"""Measures a cycle once per run: under its lock, with retries, and with a state on disk before and after each attempt.

The session calls `get_or_measure`, and the xdist controller `abandon` after a crash. A terminal state must stay final
for the run: whoever comes later, in whatever process, gets the same outcome from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from filelock import Timeout
from pydantic import ValidationError

from pytest_llem.energy.readings import UNITS, Sample, read_samples
from pytest_llem.errors import InterruptedCycleError, LlemError, StoreError, WorkerCrashedError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import Measurement, read_measurement
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results.derive import compare_work, derive_result, device_peaks, with_temperature_drift
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import refused
from pytest_llem.results.requests_table import CLOCK, requests_table, table_of, write_parquet
from pytest_llem.results.resume import Reuse
from pytest_llem.results.saturation import SATURATED
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import score_cycle
from pytest_llem.results.sections.device import derive_device
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.sections.thermal import derive_thermal
from pytest_llem.results.state import CycleState, Holder, Outcome, StateName, begin, given, read_state, write_state
from pytest_llem.results.store import RunStore, read_error, set_attempt_aside, write_result

Measure = Callable[[int, JobDir], tuple[Job, RunReport]]

HANDOVER_S = 5.0
"""Chosen: a lock of a dead process is free at once; a living one that holds it this long is still measuring."""
ABANDONED = "next holder"
"""Origin of an error that the next process to take the lock wrote for one that had disappeared."""


def get_or_measure(
    store: RunStore, key: CycleKey, measure: Measure, *, retries: int = 0, reuse: Callable[[], Reuse] | None = None
) -> Outcome:
    """The outcome of a cycle, measured now unless this run has it already.

    `measure(attempt, job_dir)` runs one attempt and returns the job and the runner's report, with
    `measurement.json` or `error.json` written; an `LlemError` that it raises is recorded as the attempt's failure, any
    other exception as well and then passed on. An invalid attempt is repeated up to `retries` times, unless its load
    was too high. `reuse` is called before anything is measured: a result that it returns is copied to this run with its
    `source_run`.
    """
    outcome = store.outcome(key)
    if outcome is not None:
        return outcome
    directory = store.directory(key)
    with store.lock(key):
        state = read_state(directory)
        if state is not None and state.state == "running":
            state = _record_crash(directory, state)
        if state is not None:
            return store.outcome_of(key, state)
        earlier = reuse() if reuse is not None else Reuse(None, None)
        if earlier.result is not None:
            source = store.write_reused(key, earlier.result, earlier.directory, earlier.answers)
            state = given(key, earlier.result, source)
            write_state(directory, state)
            return store.outcome_of(key, state)
        state = begin(key, None, earlier.reason)
        write_state(directory, state)
        state = _attempt(store, key, state, measure, retries)
        while _is_repeated(state, retries):
            again = begin(key, state)
            write_state(directory, again)
            set_attempt_aside(directory, state.attempt)
            state = _attempt(store, key, again, measure, retries)
        return store.outcome_of(key, state)


def abandon(store: RunStore, key: CycleKey, error: WorkerCrashedError) -> Outcome:
    """Record that the process measuring a cycle is gone, unless it ended. `StoreError` if another measures it."""
    directory = store.directory(key)
    try:
        with store.lock(key).acquire(timeout=HANDOVER_S):
            state = read_state(directory)
            if state is None or state.state == "running" or _unexplained(directory, state):
                state = _failed(state or begin(key, None), error)
                write_state(directory, state)
                JobDir(directory).write_error(error, origin="controller")
            return store.outcome_of(key, state)
    except Timeout:
        raise StoreError(f"{key}: another process has it in hand") from None


def _attempt(store: RunStore, key: CycleKey, state: CycleState, measure: Measure, retries: int) -> CycleState:
    """Make an attempt whose beginning is recorded. Its end is recorded unless it will be retried.

    Other processes read states without the lock and take an ended one for final.
    """
    job_dir = JobDir(store.directory(key))
    try:
        job, report = measure(state.attempt, job_dir)
        ended = _conclude(store, key, job_dir, state, job, report)
    except LlemError as error:
        job_dir.write_error(error, origin="pytest")
        ended = _failed(state, error)
    except KeyboardInterrupt:
        _record_failure(job_dir, state, InterruptedCycleError("interrupted before the cycle was done"))
        raise
    except BaseException as problem:
        _record_failure(job_dir, state, LlemError(f"{type(problem).__name__}: {problem}"))
        raise
    if not _is_repeated(ended, retries):
        write_state(job_dir.path, ended)
    return ended


def _is_repeated(state: CycleState, retries: int) -> bool:
    """Whether an attempt is made again: a disturbance may have passed, but too high a load is what the study asks."""
    return state.state == "invalid" and state.attempt <= retries and SATURATED not in state.reasons


def _conclude(
    store: RunStore, key: CycleKey, job_dir: JobDir, state: CycleState, job: Job, report: RunReport
) -> CycleState:
    """Derive and write the result of an attempt, or take its error."""
    if job_dir.error.exists() or not job_dir.measurement.exists():
        return _failed(state, read_error(job_dir))
    measurement = read_measurement(job_dir.measurement)
    measured = [window for window in measurement.windows if window.name == MEASURE]
    environment = store.environment
    if report.environment is not None:  # another machine ran the cycle; the commit is that of the study, on this one
        environment = {**report.environment, "git": store.environment.get("git")}
    try:
        result = derive_result(
            job,
            measurement,
            report,
            study=key.study,
            environment=environment,
            device_peak_bytes=device_peaks(job_dir.samples, measured),
            thermal=derive_thermal(job, measurement, job_dir.samples),
            device=derive_device(job, measurement, job_dir.samples),
            scored=score_cycle(job.config.workload, job_dir),
        )
    except ValidationError as problem:  # an engine that counts below zero, for one
        raise refused(job_dir.measurement, problem) from None
    siblings = store.valid_siblings(key)
    result = with_temperature_drift(compare_work(result, siblings), siblings)
    write_power(job_dir.samples, job_dir.power)
    result = _with_requests(result, job, measurement, job_dir.requests)
    write_result(job_dir, result)
    return state.ended(result.status, tuple(reason.code for reason in result.validity.reasons))


def _with_requests(result: Result, job: Job, measurement: Measurement, path: Path) -> Result:
    """Write the table of requests; a result is not lost with it, and then says why there is none."""
    try:
        table = requests_table(measurement.requests, job.config.slo)
    except StoreError as problem:
        note = Note("requests_not_written", problem.message)
        return result.model_copy(update={"warnings": (*result.warnings, note)})
    write_parquet(path, table)
    return result


def _record_failure(job_dir: JobDir, state: CycleState, error: LlemError) -> None:
    if not job_dir.error.exists():
        job_dir.write_error(error, origin="pytest")
    write_state(job_dir.path, _failed(state, error))


def _failed(state: CycleState, error: LlemError) -> CycleState:
    crashed = isinstance(error, WorkerCrashedError)
    name: StateName = "interrupted" if isinstance(error, InterruptedCycleError) else "crashed" if crashed else "failed"
    return state.ended(name, (error.message,))


def _record_crash(directory: Path, state: CycleState) -> CycleState:
    """Record that the process which measured this cycle disappeared."""
    if state.holder is not None and state.holder.lives() and state.holder != Holder.me():
        raise StoreError(
            f"{state.key}: process {state.holder.pid} is measuring it, and its lock does not hold",
            fix="put --llem-out on a file system with working locks",
        )
    pid = state.holder.pid if state.holder else "unknown"
    error = WorkerCrashedError(f"{state.key}: the pytest process that measured it (pid {pid}) died")
    JobDir(directory).write_error(error, origin=ABANDONED)
    ended = _failed(state, error)
    write_state(directory, ended)
    return ended


def _unexplained(directory: Path, state: CycleState) -> bool:
    """Whether the crash was recorded by the next process to take the lock, which did not know its cause."""
    return state.state == "crashed" and read_json(JobDir(directory).error).get("origin") == ABANDONED


POWER_TYPES = {
    "t_ns": pa.int64(),
    "device": pa.string(),
    **dict.fromkeys(("memory_bytes", "bracket_ns", "clock_events"), pa.int64()),
}
POWER_SCHEMA = pa.schema(
    [
        pa.field(name, POWER_TYPES.get(name, pa.float64()), metadata={"unit": UNITS[name]} if UNITS.get(name) else None)
        for name in Sample._fields
    ],
    metadata=CLOCK,
)
"""`power.parquet`: a row per reading of the sampler, with each column's unit in its field's metadata."""


def write_power(samples: Path, power: Path) -> None:
    """Write any readings of `samples.jsonl` to `power.parquet`: a row each, as `Sample`; null where not read."""
    rows = list(read_samples(samples))
    if not rows:
        return
    try:
        table = table_of(rows, POWER_SCHEMA)
    except (ValueError, TypeError) as problem:
        raise StoreError(f"{samples}: {problem}") from None
    write_parquet(power, table)
