"""Joules per right answer from the engine's answers to the figure: a planted key, and a meter that knows the power."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.job.config import IdleSettings, MeasurementSettings, WarmupSettings, WorkloadSettings
from pytest_llem.job.job import JobDir, MeterSettings
from pytest_llem.job.report import RunReport
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import score_cycle
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import COVERAGE
from pytest_llem.results.summary import summarise
from tests.unit.worker.powered import IDLE_W, LOAD_W, PoweredEngine, TrueMeter
from tests.unit.worker.scripted import make_job, run

QUESTIONS, WRONG, DROPPED = 20, range(12, 19), 19
S_PER_LETTER = 0.0002


class Quiz(PoweredEngine):
    """Adds two numbers letter by letter, is wrong about some, talks longer about these, and drops one request."""

    reset_s = 0.002

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        said = [self._said(request) for request in requests]
        self.repeat_s = S_PER_LETTER * sum(len(text or "") for text in said)
        done = super().generate(requests, progress)
        return [
            replace(
                one,
                output_ids=tuple(map(ord, text or "")),
                finish_reason="error" if text is None else "stop",
                error="HTTP 503" if text is None else None,
            )
            for one, text in zip(done, said, strict=True)
        ]

    @staticmethod
    def _said(request: Request) -> str | None:
        one, other = (int(word) for word in "".join(map(chr, request.token_ids)).split(" + "))
        if one == DROPPED:
            return None
        return str(one + other) if one not in WRONG else f"about {one + other}, I think"


def cycle(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> Result:
    rows = [{"q": f"{one} + {one * one}", "a": one + one * one} for one in range(QUESTIONS)]
    (path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    engine = Quiz()
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: engine)
    monkeypatch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: TrueMeter(engine))
    workload = WorkloadSettings(
        str(path / "questions.jsonl"),
        QUESTIONS,
        None,
        40,
        0,
        column="q",
        answer_column="a",
        score="exact",
        ignore_eos=False,
    )
    settings = MeasurementSettings(0.15, WarmupSettings(1, 1), IdleSettings(0.001, 0.0))
    meter = MeterSettings("auto", thresholds={"failed_requests_rel": 0.1})
    job = replace(make_job(measurement=settings, workload=workload), cycle=number, meter=meter)
    measurement = run(job, path)
    scored = score_cycle(workload, JobDir(path))
    report = RunReport("local", "default", "process")
    return derive_result(job, measurement, report, study="s", environment={}, scored=scored)


def test_a_right_answer_costs_its_share_of_all_that_was_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wrong answers, the request that failed and every repeat count in both numbers."""
    results = []
    for number in (1, 2, 3):
        (tmp_path / str(number)).mkdir()
        results.append(cycle(monkeypatch, tmp_path / str(number), number))
    for result in results:
        quality, repeats = result.quality, result.workload.repeats
        assert {reason.code for reason in result.validity.reasons} <= {"cpu_contended"}, "other work may run beside"
        assert quality is not None
        assert (quality.questions, quality.answers, quality.correct) == (20, 20 * repeats, 12.0 * repeats)
        assert repeats > 1
        assert quality.scores == (1.0,) * 12 + (0.0,) * 8
        assert result.energy.energy_j is not None
        assert IDLE_W < (result.energy.avg_power_w or 0) <= LOAD_W
        assert quality.joules_per_correct_answer == pytest.approx(result.energy.energy_j / (12 * repeats))
    known = {
        key: Outcome("valid", key, tmp_path, result, None, 1, ())
        for result in results
        for key in (CycleKey("s", "id", "hash", result.cycle),)
    }
    (row,) = summarise(known, known.get)
    accuracy, cost = row.metrics["accuracy"], row.metrics["joules_per_correct_answer"]
    assert (accuracy.value, accuracy.n) == (0.6, 3)
    assert [accuracy.low, accuracy.high] == pytest.approx(binomial_interval(12, 20, COVERAGE))
    assert cost.low is not None
    assert cost.high is not None
    assert cost.low < cost.value < cost.high
    assert cost.high - cost.value > cost.value - cost.low, "few right answers may be fewer still"
