"""The store of one run: every consumer of a result asks it, and nothing is measured twice.

A cycle is measured under a file lock; its state is recorded before each attempt and at its end. A terminal state is
final for the run. Whoever comes later, in whatever process, gets the same outcome from disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_llem.containers.errors import error_from_dict
from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, StoreError, WorkerCrashedError
from pytest_llem.job.files import read_json, write_text
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.report import Note, RunReport
from pytest_llem.machine.environment import gather
from pytest_llem.results.comparability import output_lengths_determined, with_temperature_drift
from pytest_llem.results.derive import derive_result, device_peaks
from pytest_llem.results.layout import MANIFEST, STATE, CycleKey, attempt_directory
from pytest_llem.results.manifest import Manifest, StudyPlan, read_manifest, write_manifest
from pytest_llem.results.outcome import Outcome
from pytest_llem.results.power import write_power
from pytest_llem.results.reading import read_result
from pytest_llem.results.resume import Reuse
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.state import (
    TERMINAL,
    CycleState,
    Holder,
    StateName,
    adopted,
    begin,
    now,
    read_state,
    write_state,
)

Measure = Callable[[int, JobDir], tuple[Job, RunReport]]

LOCKS = ".locks"
HANDOVER_S = 5.0
ABANDONED = "next holder"
"""The origin of an error that was written for a process which is gone, by whoever came to the cycle next."""


@dataclass(frozen=True)
class RunStore:
    """The artifacts of one run."""

    run_dir: Path
    run_id: str
    environment: Mapping[str, JsonValue]

    @classmethod
    def create(
        cls,
        out: Path,
        run_id: str,
        *,
        studies: Iterable[StudyPlan] = (),
        environment: Mapping[str, JsonValue] | None = None,
    ) -> RunStore:
        """Make the run's directory under `out` and its manifest. `StoreError` when the run exists already.

        Host facts are gathered here, once, unless they are given.
        """
        run_dir = out / run_id
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / ".gitignore").exists():
                write_text(out / ".gitignore", "# Written by pytest-llem.\n*\n")
            run_dir.mkdir()
            (run_dir / LOCKS).mkdir()
        except FileExistsError:
            raise StoreError(f"{run_dir}: this run exists already", fix="give the run another id") from None
        except OSError as problem:
            raise StoreError(
                f"{problem.filename or run_dir}: {problem.strerror}", fix="choose a writable directory with --llem-out"
            ) from None
        facts = gather() if environment is None else environment
        write_manifest(
            run_dir, Manifest(run_id=run_id, started_at=now(), environment=dict(facts), studies=tuple(studies))
        )
        return cls(run_dir, run_id, facts)

    @classmethod
    def open(cls, run_dir: Path) -> RunStore:
        """The store of a run that exists; `StoreError` when it does not."""
        manifest = read_manifest(run_dir / MANIFEST)
        return cls(run_dir, manifest.run_id, manifest.environment)

    def directory(self, key: CycleKey) -> Path:
        """Where a cycle's files lie."""
        return self.run_dir / key.directory

    def outcome(self, key: CycleKey) -> Outcome | None:
        """What became of a cycle, `None` while it has no terminal state."""
        directory = self.directory(key)
        state = read_state(directory)
        return _outcome(key, directory, state) if state and state.state in TERMINAL else None

    def get_or_measure(
        self, key: CycleKey, measure: Measure, *, retries: int = 0, reuse: Callable[[], Reuse] | None = None
    ) -> Outcome:
        """The outcome of a cycle, measured now unless this run has it already.

        `measure(attempt, job_dir)` runs one attempt and returns the job and the runner's report, with
        `measurement.json` or `error.json` written; an `LlemError` that it raises is recorded as the attempt's
        failure, any other exception as well and then passed on. An invalid attempt is repeated up to `retries` times.
        `reuse` is asked before anything is measured: a result that it finds is copied here with its `source_run`.
        """
        return self.outcome(key) or self._under_lock(key, measure, retries, reuse)

    def abandon(self, key: CycleKey, error: WorkerCrashedError) -> Outcome:
        """Record that the process which was to measure a cycle is gone, unless the cycle has ended otherwise.

        Raises `StoreError` when another process has the cycle in hand.
        """
        directory = self.directory(key)
        try:
            with self._lock(key).acquire(timeout=HANDOVER_S):
                state = read_state(directory)
                if state is None or state.state == "running" or _found_abandoned(directory, state):
                    state = (state or begin(key, None)).ended("crashed", (error.message,))
                    write_state(directory, state)
                    JobDir(directory).write_error(error, origin="controller")
                return _outcome(key, directory, state)
        except Timeout:
            raise StoreError(f"{key}: another process has it in hand") from None

    def _lock(self, key: CycleKey) -> FileLock:
        lock = self.run_dir / LOCKS / ("_".join(key.directory.parts) + ".lock")
        lock.parent.mkdir(exist_ok=True)
        return FileLock(lock)

    def _under_lock(self, key: CycleKey, measure: Measure, retries: int, reuse: Callable[[], Reuse] | None) -> Outcome:
        directory = self.directory(key)
        with self._lock(key):
            state = read_state(directory)
            if state is not None and state.state == "running":
                state = _abandoned(directory, state)
            if state is not None:
                return _outcome(key, directory, state)
            earlier = reuse() if reuse is not None else Reuse(None, None)
            if earlier.result is not None:
                return _outcome(key, directory, self._adopt(key, directory, earlier.result))
            state = begin(key, None, earlier.reason)
            write_state(directory, state)
            state = self._attempt(key, directory, state, measure, retries)
            while state.state == "invalid" and state.attempt <= retries:
                again = begin(key, state)
                write_state(directory, again)
                _set_aside(directory, state.attempt)
                state = self._attempt(key, directory, again, measure, retries)
            return _outcome(key, directory, state)

    def _adopt(self, key: CycleKey, directory: Path, result: Result) -> CycleState:
        source = result.source_run or result.run_id
        here = result.model_copy(
            update={
                "run_id": self.run_id,
                "source_run": source,
                "experiment": replace(result.experiment, id=key.experiment_id),
            }
        )
        directory.mkdir(parents=True, exist_ok=True)
        write_text(JobDir(directory).result, here.model_dump_json(indent=2) + "\n")
        state = adopted(key, source)
        write_state(directory, state)
        return state

    def _attempt(self, key: CycleKey, directory: Path, state: CycleState, measure: Measure, retries: int) -> CycleState:
        """Make an attempt whose beginning has been recorded; an end after which nothing is retried is recorded too.

        Others read states without the lock, and what they read there as ended they take for final.
        """
        job_dir = JobDir(directory)
        try:
            job, report = measure(state.attempt, job_dir)
            ended = self._conclude(key, job_dir, state, job, report)
        except LlemError as error:
            job_dir.write_error(error, origin="pytest")
            ended = state.ended(_failure(error), (error.message,))
        except KeyboardInterrupt:
            self._record(job_dir, state, InterruptedCycleError("interrupted before the cycle was done"))
            raise
        except BaseException as problem:
            self._record(job_dir, state, LlemError(f"{type(problem).__name__}: {problem}"))
            raise
        if ended.state != "invalid" or ended.attempt > retries:
            write_state(directory, ended)
        return ended

    def _record(self, job_dir: JobDir, state: CycleState, error: LlemError) -> None:
        if not job_dir.error.exists():
            job_dir.write_error(error, origin="pytest")
        write_state(job_dir.path, state.ended(_failure(error), (error.message,)))

    def _conclude(self, key: CycleKey, job_dir: JobDir, state: CycleState, job: Job, report: RunReport) -> CycleState:
        if job_dir.error.exists() or not job_dir.measurement.exists():
            error = read_error(job_dir)
            return state.ended(_failure(error), (error.message,))
        measurement = read_measurement(job_dir.measurement)
        measured = [window for window in measurement.windows if window.name == MEASURE]
        result = derive_result(
            job,
            measurement,
            report,
            study=key.study,
            environment=self._environment(report),
            device_peak_bytes=device_peaks(job_dir.samples, measured),
        )
        siblings = self._valid_siblings(key)
        result = with_temperature_drift(compare_work(result, siblings), siblings)
        write_power(job_dir.samples, job_dir.power)
        write_text(job_dir.result, result.model_dump_json(indent=2) + "\n")
        return state.ended(result.status, tuple(reason.code for reason in result.validity.reasons))

    def _environment(self, report: RunReport) -> Mapping[str, JsonValue]:
        """The host facts of where a cycle ran; the study's commit is this machine's to tell."""
        if report.environment is None:
            return self.environment
        return {**report.environment, "git": self.environment.get("git")}

    def _valid_siblings(self, key: CycleKey) -> dict[int, Result]:
        """The other valid cycles of an experiment so far, by number."""
        found: dict[int, Result] = {}
        for path in self.directory(key).parent.glob(f"c*/{STATE}"):
            state = read_state(path.parent)
            if state is not None and state.state == "valid" and state.cycle != key.cycle:
                found[state.cycle] = read_result(JobDir(path.parent).result)
        return dict(sorted(found.items()))


def compare_work(result: Result, siblings: Mapping[int, Result]) -> Result:
    """Mark a cycle whose repeat holds other work than an earlier valid cycle of its experiment."""
    if not siblings:
        return result
    cycle, work = min(siblings), result.workload
    other = siblings[cycle].workload
    same_input = (other.prompts_hash, other.input_tokens) == (work.prompts_hash, work.input_tokens)
    determined = output_lengths_determined(result.experiment.config)
    if same_input and (other.output_tokens == work.output_tokens or not determined):
        return result
    return invalidated(
        result,
        Note(
            "work_differs",
            f"a repeat holds {work.input_tokens} input and {work.output_tokens} output tokens (prompts "
            f"{work.prompts_hash}); in cycle {cycle} it was {other.input_tokens} and {other.output_tokens} (prompts "
            f"{other.prompts_hash})",
        ),
    )


def invalidated(result: Result, reason: Note) -> Result:
    """The same result, marked invalid for one more reason."""
    validity = replace(result.validity, valid=False, reasons=(*result.validity.reasons, reason))
    return result.model_copy(update={"status": "invalid", "validity": validity})


def read_error(job_dir: JobDir) -> LlemError:
    """The error that a job directory holds; a `WorkerCrashedError` when it holds nothing at all."""
    if not job_dir.error.exists():
        return WorkerCrashedError(
            f"{job_dir.path}: neither a measurement nor an error was written", fix=f"see {job_dir.log}"
        )
    return error_from_dict(read_json(job_dir.error))


def _failure(error: LlemError) -> StateName:
    if isinstance(error, InterruptedCycleError):
        return "interrupted"
    return "crashed" if isinstance(error, WorkerCrashedError) else "failed"


def _outcome(key: CycleKey, directory: Path, state: CycleState) -> Outcome:
    job_dir = JobDir(directory)
    measured = state.state in ("valid", "invalid")
    return Outcome(
        state=state.state,
        key=key,
        directory=directory,
        result=read_result(job_dir.result) if measured else None,
        error=None if measured else read_error(job_dir),
        attempts=state.attempt,
        log_tail=() if state.state == "valid" else tuple(job_dir.log_tail()),
        source_run=state.source_run,
    )


def _abandoned(directory: Path, state: CycleState) -> CycleState:
    """Record that the process which measured this cycle is gone without a word."""
    if state.holder is not None and state.holder.lives() and state.holder != Holder.me():
        raise StoreError(
            f"{state.key}: process {state.holder.pid} is measuring it, and its lock does not hold",
            fix="put --llem-out on a file system with working locks",
        )
    pid = state.holder.pid if state.holder else "unknown"
    error = WorkerCrashedError(f"{state.key}: the pytest process that measured it (pid {pid}) died")
    JobDir(directory).write_error(error, origin=ABANDONED)
    ended = state.ended("crashed", (error.message,))
    write_state(directory, ended)
    return ended


def _found_abandoned(directory: Path, state: CycleState) -> bool:
    """Whether somebody who knew less has recorded already that the cycle was abandoned."""
    return state.state == "crashed" and read_json(JobDir(directory).error).get("origin") == ABANDONED


def _set_aside(directory: Path, attempt: int) -> None:
    """Move a superseded attempt's files out of the way of the next."""
    aside = attempt_directory(directory, attempt)
    aside.mkdir()
    for path in list(directory.iterdir()):
        if path.name != STATE and not path.name.startswith("attempt-"):
            shutil.move(str(path), aside / path.name)
