"""The files of one run: its directory and manifest, a lock per cycle, and each cycle's state, result and outcome.

The session and `attempts` use it. It must measure nothing and decide nothing; the file layout is published
(docs/results.md) and stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

import pytest_llem.containers.errors  # noqa: F401 (error.json may hold one of these: from_dict knows what was imported)
from pytest_llem.errors import JsonValue, LlemError, StoreError, WorkerCrashedError, from_dict
from pytest_llem.job.answers import Answered, write_answers
from pytest_llem.job.files import log_tail, read_json, write_bytes, write_text
from pytest_llem.job.job import JobDir
from pytest_llem.machine.environment import gather
from pytest_llem.results.layout import MANIFEST, STATE, CycleKey
from pytest_llem.results.manifest import Manifest, StudyPlan, read_manifest, write_manifest
from pytest_llem.results.reading import read_result
from pytest_llem.results.schema import Result
from pytest_llem.results.state import TERMINAL, CycleState, Outcome, now, read_state

LOCKS = ".locks"


@dataclass(frozen=True)
class RunStore:
    """The artifacts of one run; `environment` holds the host facts of this machine."""

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
        """Create a run's directory and manifest; gathers host facts unless given. `StoreError` if the run exists."""
        run_dir = out / run_id
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / ".gitignore").exists():
                write_text(out / ".gitignore", "# Written by pytest-llem.\n*\n")
            run_dir.mkdir()
            (run_dir / LOCKS).mkdir()
        except FileExistsError as problem:
            if not out.is_dir():
                raise StoreError(f"{problem.filename}: not a directory", fix="name a folder for results") from None
            raise StoreError(f"{run_dir}: this run exists already", fix="give the run another id") from None
        except OSError as problem:
            raise StoreError(
                f"{problem.filename or run_dir}: {problem.strerror}", fix="choose a writable directory with --llem-out"
            ) from None
        facts = gather() if environment is None else environment
        write_manifest(run_dir, Manifest(run_id, now(), dict(facts), tuple(studies)))
        return cls(run_dir, run_id, facts)

    @classmethod
    def open(cls, run_dir: Path) -> RunStore:
        """The store of an existing run; `StoreError` when there is none."""
        manifest = read_manifest(run_dir / MANIFEST)
        return cls(run_dir, manifest.run_id, manifest.environment)

    def directory(self, key: CycleKey) -> Path:
        """The directory of a cycle's files."""
        return self.run_dir / key.directory

    def lock(self, key: CycleKey) -> FileLock:
        """The file lock under which a cycle is measured and its state is changed."""
        lock = self.run_dir / LOCKS / ("_".join(key.directory.parts) + ".lock")
        lock.parent.mkdir(exist_ok=True)
        return FileLock(lock)

    def outcome(self, key: CycleKey) -> Outcome | None:
        """The outcome of a cycle, `None` while it has no terminal state."""
        state = read_state(self.directory(key))
        return self.outcome_of(key, state) if state and state.state in TERMINAL else None

    def outcome_of(self, key: CycleKey, state: CycleState) -> Outcome:
        """The outcome of a cycle in this terminal state, with its result or its error."""
        job_dir = JobDir(self.directory(key))
        measured = state.state in ("valid", "invalid")
        return Outcome(
            state=state.state,
            key=key,
            directory=job_dir.path,
            result=read_result(job_dir.result) if measured else None,
            error=None if measured else read_error(job_dir),
            attempts=state.attempt,
            log_tail=() if state.state == "valid" else tuple(log_tail(job_dir.log)),
            source_run=state.source_run,
        )

    def valid_siblings(self, key: CycleKey) -> dict[int, Result]:
        """The other valid cycles of an experiment so far, by number: one that confirms is held against all."""
        siblings: dict[int, Result] = {}
        folders = {self.directory(each).parent for each in (key, replace(key, confirms=False))}
        for path in (path for folder in folders for path in folder.glob(f"c*/{STATE}")):
            state = read_state(path.parent)
            if state is not None and state.state == "valid" and state.cycle != key.cycle:
                siblings[state.cycle] = read_result(JobDir(path.parent).result)
        return dict(sorted(siblings.items()))

    def write_reused(
        self, key: CycleKey, result: Result, earlier: Path | None = None, answers: Sequence[Answered] | None = None
    ) -> str:
        """Write an earlier run's result as this cycle's, and return the id of the run that measured it.

        The table of its requests and its answers in the directory `earlier` come along, as the result's own rows.
        """
        source = result.source_run or result.run_id
        experiment = replace(result.experiment, id=key.item_id)
        job_dir = JobDir(self.directory(key))
        job_dir.path.mkdir(parents=True, exist_ok=True)
        update = {"run_id": self.run_id, "source_run": source, "experiment": experiment}
        for kept in () if earlier is None else (JobDir(earlier).requests, JobDir(earlier).answers):
            if kept.is_file():
                write_bytes(job_dir.path / kept.name, kept.read_bytes(), durable=False)
        if answers is not None:
            write_answers(job_dir.answers, answers)
        write_result(job_dir, result.model_copy(update=update))
        return source


def write_result(job_dir: JobDir, result: Result) -> None:
    """Write `result.json` atomically."""
    write_text(job_dir.result, result.model_dump_json(indent=2) + "\n")


def read_error(job_dir: JobDir) -> LlemError:
    """The error in a job directory; a `WorkerCrashedError` when there is neither an error nor a measurement."""
    if not job_dir.error.exists():
        return WorkerCrashedError(
            f"{job_dir.path}: neither a measurement nor an error was written", fix=f"see {job_dir.log}"
        )
    return from_dict(read_json(job_dir.error))


def set_attempt_aside(directory: Path, attempt: int) -> None:
    """Move a superseded attempt's files to `attempt-N`, so that the next one starts in an empty directory."""
    aside = directory / f"attempt-{attempt}"
    aside.mkdir()
    for path in list(directory.iterdir()):
        if path.name != STATE and not path.name.startswith("attempt-"):
            shutil.move(str(path), aside / path.name)
