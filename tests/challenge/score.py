"""Scores energies stated for the challenge's traces against what was truly drawn.

`python -m tests.challenge.score` scores this project's meter; `--answers FILE` another tool's, a line per trace:
`{"trace": ..., "energy_j": ..., "uncertainty_j": ...}`. A trace without an answer counts as refused.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pytest_llem.energy import bursts, calibrate
from pytest_llem.energy.calibration import DIRECTORY_VARIABLE, Calibration
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import GpuFacts, Sample, SampleWriter
from pytest_llem.energy.series import TickSeries
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window

DATA = Path(__file__).parent / "data"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- score: begin -->", "<!-- score: end -->"
DRIVER = "challenge"
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A stated energy in joules with its k=2 uncertainty."""

    energy_j: float
    uncertainty_j: float


@dataclass(frozen=True)
class Row:
    """The score of one kind of trace: `answered` of `traces`, and of those the errors relative to the truth."""

    kind: str
    traces: int
    answered: int
    mean_error: float | None
    worst_error: float | None
    median_bound: float | None
    covered: int


def read(name: str, directory: Path = DATA) -> Lines:
    """One of the challenge's files."""
    with gzip.open(directory / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def score(answers: Mapping[str, Answer], truths: Lines) -> list[Row]:
    """A row per kind of trace, in alphabetical order, and one of all of them at the end."""
    rows = []
    for kind in [*sorted({truth["kind"] for truth in truths}), "all"]:
        of_kind = [truth for truth in truths if kind in (truth["kind"], "all")]
        pairs = [(answers[truth["trace"]], truth["energy_j"]) for truth in of_kind if truth["trace"] in answers]
        errors = [abs(answer.energy_j / true_j - 1) for answer, true_j in pairs]
        bounds = [answer.uncertainty_j / true_j for answer, true_j in pairs]
        rows.append(
            Row(
                kind,
                len(of_kind),
                len(pairs),
                fmean(errors) if errors else None,
                max(errors, default=None),
                median(bounds) if bounds else None,
                sum(error <= bound for error, bound in zip(errors, bounds, strict=True)),
            )
        )
    return rows


def own_answers(calibrations: Lines, traces: Lines) -> dict[str, Answer]:
    """What this project's NVML meter states for the traces that it finds valid."""
    answers: dict[str, Answer] = {}
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, {DIRECTORY_VARIABLE: name}):
        for entry in calibrations:
            calibrate.save(calibrated(entry))
        for trace in traces:
            with recorded_meter(trace, Path(name)) as meter:
                quiet = trace["quiet_before_s"], trace["quiet_after_s"]
                edges = trace["start_ns"], trace["end_ns"]
                window = Window("measure", *edges, 0, *quiet, step_s=trace["load_period_s"])
                report = meter.stop([window])
            (measured,) = report.windows
            if not report.invalid and measured.energy_j is not None and measured.uncertainty_j is not None:
                answers[trace["trace"]] = Answer(measured.energy_j, measured.uncertainty_j)
    return answers


def calibrated(entry: Mapping[str, Any]) -> Calibration:
    """This project's calibration from a run of bursts."""
    ticks = ticks_of(entry["steps"])
    period_ns, jitter_ns = calibrate._period(ticks)
    provisional = Calibration(
        uuid=entry["sensor"],
        driver=DRIVER,
        period_ns=period_ns,
        jitter_ns=jitter_ns,
        call_latency_ns=60_000,
        poll_step_ns=calibrate.FAST_STEP_NS,
    )
    return bursts.evaluate(ticks, entry["bursts"], provisional)


def ticks_of(steps: list[list[int]]) -> TickSeries:
    """A trace's steps."""
    low, high, value_mj = zip(*steps, strict=True)
    return TickSeries(low, high, tuple(value / 1e3 for value in value_mj))


@contextmanager
def recorded_meter(trace: Mapping[str, Any], directory: Path) -> Iterator[NvmlMeter]:
    """The meter as it is when its sampler has written this trace."""
    uuid = trace["sensor"] or "not-calibrated"
    out = directory / trace["trace"]
    out.mkdir()
    request = MeterRequest(MeterSettings("nvml"), DeviceSet("cuda", (uuid,)), out)
    writer = SampleWriter(request.samples_path)
    writer.event(0, "sensor", device=uuid, counter=True, power="instant")
    for low, high, value_mj in trace["steps"]:
        writer.sample(Sample((low + high) // 2, uuid, counter_mj=value_mj, bracket_ns=(high - low) // 2))
    for t_ns, watts in trace["power"]:
        writer.sample(Sample(t_ns, uuid, power_w=watts))
    writer.close()
    meter = NvmlMeter(request)
    sampler = SimpleNamespace(
        gpus=(GpuFacts(uuid, "challenge", DRIVER),),
        wait_until_known=lambda t_ns: True,
        cpu_time_s=lambda: None,
        stop=lambda: None,
    )
    with mock.patch.object(meter, "_sampler", sampler):
        yield meter


def table(rows: list[Row]) -> str:
    """The score in Markdown."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    lines = ["| kind | answered | mean error | worst | median bound | bound holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        errors = " | ".join(map(percent, (row.mean_error, row.worst_error, row.median_bound)))
        held = f"{row.covered / row.answered:.1%}" if row.answered else "-"
        lines.append(f"| {row.kind} | {row.answered} of {row.traces} | {errors} | {held} |")
    return "\n".join(lines)


def main(say: Callable[[str], object] = print) -> None:
    """Print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder that tests.challenge.generate made")
    parser.add_argument("--answers", type=Path, help="another tool's answers, JSON lines")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    if options.answers is None:
        answers = own_answers(read("calibrations", options.data), read("traces", options.data))
    else:
        stated = [json.loads(line) for line in options.answers.read_text(encoding="utf-8").splitlines()]
        answers = {line["trace"]: Answer(line["energy_j"], line["uncertainty_j"]) for line in stated}
    scored = table(score(answers, read("truth", options.data)))
    say(scored)
    if options.write_readme:
        head, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{scored}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
