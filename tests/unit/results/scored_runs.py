"""Runs whose answers are scored, made through the real code: a worker's files, then scores and sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_llem.job.answers import Answered, text_hash, write_answers
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.report import RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import Bench, S, Worker

SCORED = WorkloadSettings("questions.jsonl", 3, 8, 4, 0, ignore_eos=False, score="exact", answer_column="answer")


def answered(texts: Sequence[str | None], *, reason: str = "stop", key: str = "Paris") -> list[Answered]:
    """An answer to each question; `None` for a request that failed."""
    return [
        Answered(
            question=f"q{place}",
            target=key,
            repeats=2,
            text=text,
            sha256=None if text is None else text_hash(text),
            finish_reason="error" if text is None else reason,
            input_tokens=8,
            output_tokens=4,
            error="the server went away" if text is None else None,
        )
        for place, text in enumerate(texts)
    ]


def scored_run(
    out: Path,
    experiments: Mapping[str, tuple[float, Sequence[Answered]]],
    *,
    settings: WorkloadSettings = SCORED,
    cycles: int = 3,
    run: str = "run-1",
) -> Path:
    """A run with the watts and the answers of each experiment in each of its cycles; returns its directory."""
    bench = Bench()
    store = RunStore.create(out, run)
    for place, (name, (watts, answers)) in enumerate(experiments.items()):
        for cycle in range(1, cycles + 1):
            key = CycleKey("study", name, f"{place:08x}", cycle)
            measured = bench.measurement(watts * (1 + cycle / 1000))
            worker = Worker(bench, key, replace(measured, requests=_requests(answers)))
            worker.run_id = run
            worker.settings = replace(worker.settings, thresholds={"failed_requests_rel": 0.5})
            get_or_measure(store, key, _scored(worker, settings, answers))
    rebuild_manifest(store.run_dir, finished=True)
    return store.run_dir


def _requests(answers: Sequence[Answered]) -> tuple[RequestRecord, ...]:
    """The requests of two repeats that gave these answers."""
    return tuple(
        RequestRecord(
            repeat,
            index,
            answer.input_tokens,
            answer.output_tokens,
            (2 + repeat) * S,
            (3 + repeat) * S,
            answer.finish_reason,
            tuple((2 + repeat) * S + step * S // 10 for step in range(1, answer.output_tokens + 1)),
            error=answer.error,
        )
        for repeat in range(2)
        for index, answer in enumerate(answers)
    )


def _scored(
    inner: Worker, settings: WorkloadSettings, answers: Sequence[Answered]
) -> Callable[[int, JobDir], tuple[Job, RunReport]]:
    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        job, report = inner(attempt, job_dir)
        write_answers(job_dir.answers, answers)
        return replace(job, config=replace(job.config, workload=settings)), report

    return measure
