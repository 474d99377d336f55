"""Runs whose answers were scored, made by hand: derived once through the package, then copied with other scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

from pytest_llem.job.answers import Answered
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.results.baselines import Baseline, baseline_of
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import Scored
from pytest_llem.results.state import Outcome
from pytest_llem.scoring.registry import scorer_of
from tests.unit.results.conftest import REPORT, Bench

KEY = CycleKey("study", "dtype:float32", "0123456789abcdef", 1)
NOISE = (1.0, 1.01, 0.99)
MS = 1_000_000


@cache
def template(questions: int, isolation: str = "process") -> Result:
    """A valid cycle of 10 W that asked each question once, and had every answer right."""
    bench = Bench()
    job = bench.job(KEY)
    workload = WorkloadSettings("questions.jsonl", questions, 8, 2, 0, score="exact", answer_column="answer")
    job = replace(job, config=replace(job.config, workload=workload))
    scorer = scorer_of(workload)
    assert scorer is not None
    asked = [f"q{index}" for index in range(questions)]
    answers = [Answered(each, "yes", 1, "yes", "0" * 64, "stop", 8, 2, score=1.0) for each in asked]
    times = [(index * MS, index * MS + MS) for index in range(questions)]
    records = tuple(
        RequestRecord(0, index, 8, 2, start, end, "stop", (end - 1, end)) for index, (start, end) in enumerate(times)
    )
    measurement = replace(bench.measurement(), requests=records, repeats=bench.measurement().repeats[:1], invalid=())
    report = replace(REPORT, isolation=isolation)
    scored = Scored(scorer, answers)
    result = derive_result(job, measurement, report, study=KEY.study, environment={}, scored=scored)
    valid = replace(result.validity, valid=True, reasons=())
    return result.model_copy(update={"status": "valid", "validity": valid})


def scored_run(
    run: str,
    cycles: Sequence[Sequence[float]],
    *,
    watts: float = 10.0,
    isolation: str = "process",
    output_tokens: int | None = None,
    questions: str | None = None,
    scorer_version: str = "1",
) -> list[Outcome]:
    """A run with the scores of each cycle; `questions` stands in for their hash."""
    outcomes = []
    for cycle, scores in enumerate(cycles, 1):
        whole = template(len(scores), isolation)
        assert whole.quality is not None
        assert whole.energy.energy_j is not None
        energy_j = whole.energy.energy_j * watts / 10 * NOISE[cycle % 3]
        correct = sum(scores)
        quality = replace(
            whole.quality,
            scores=tuple(scores),
            correct=correct,
            accuracy=fmean(scores),
            joules_per_correct_answer=energy_j / correct if correct else None,
            reason=None if correct else "no answer is right, and so none has a cost",
            scorer_version=scorer_version,
            questions_hash=questions or whole.quality.questions_hash,
        )
        tokens = output_tokens or whole.workload.output_tokens
        result = whole.model_copy(
            update={
                "run_id": run,
                "cycle": cycle,
                "quality": quality,
                "energy": replace(whole.energy, energy_j=energy_j, joules_per_output_token=energy_j / (tokens or 1)),
                "workload": replace(whole.workload, output_tokens=tokens),
            }
        )
        outcomes.append(Outcome("valid", replace(KEY, cycle=cycle), Path(), result, None, 1, ()))
    return outcomes


def results_of(outcomes: Sequence[Outcome]) -> Results:
    """What the run measured."""
    return Results(tuple(outcome.result for outcome in outcomes if outcome.result is not None))


def saved(*runs: Sequence[Outcome]) -> Baseline:
    """The runs as a baseline."""
    return baseline_of("before", Results(tuple(result for run in runs for result in results_of(run))))


def answers(questions: int, wrong: int = 0, at: int = 0) -> list[float]:
    """Right answers but for so many wrong ones, from a place on."""
    return [0.0 if at <= place < at + wrong else 1.0 for place in range(questions)]
