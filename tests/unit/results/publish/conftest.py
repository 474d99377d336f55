"""A run of a study with two axes, whose figures are known."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import Bench, Worker, bench, key, worker

__all__ = ["Bench", "Worker", "bench", "key", "worker"]

if TYPE_CHECKING:
    MakeWorker = Callable[..., Worker]

Dtype = Literal["float32", "bfloat16"]
WATTS: dict[tuple[int, Dtype], float] = {
    (1, "float32"): 10.0,
    (1, "bfloat16"): 9.9,
    (8, "float32"): 5.0,
    (8, "bfloat16"): 3.0,
}
"""By batch size and dtype: the two of batch size 1 cannot be told apart, and the last is the best."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cycles of each experiment, of which one is invalid; to be read only."""
    bench = Bench()
    return measured(tmp_path_factory.mktemp("out"), bench, lambda key, *given: Worker(bench, key, *given))


def measured(
    out: Path,
    bench: Bench,
    worker: MakeWorker,
    *,
    estimated: bool = False,
    name: str = "r1",
    host: Mapping[str, JsonValue] | None = None,
    model: str = "builtin:tiny-llama",
    study: str = "sizes_50%",
) -> Path:
    """The run, by a sensor or estimated."""
    store = RunStore.create(out, name, environment={"hostname": "node17", **(host or {})})
    for number, ((size, dtype), watts) in enumerate(WATTS.items()):
        for cycle in range(1, 4):
            cell = CycleKey(study, f"batch_size:{size}-dtype:{dtype}", f"{number:08x}", cycle)
            measurement = bench.measurement(watts * (1 + cycle / 100))
            assert measurement.energy is not None
            if estimated:
                energy = replace(measurement.energy, measured=False, meter="estimate", source="a model")
                measurement = replace(measurement, energy=energy)
            if (size, dtype, cycle) == (8, "float32", 3):
                measurement = replace(measurement, invalid=(Note("throttled", "2 s of thermal throttling"),))
            get_or_measure(store, cell, configured(worker(cell, measurement), name, size, dtype, model))
    rebuild_manifest(store.run_dir, finished=True)
    return store.run_dir


def configured(
    inner: Worker, run_id: str, size: int, dtype: Dtype, model: str
) -> Callable[[int, JobDir], tuple[Job, RunReport]]:
    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        inner.run_id = run_id
        job, report = inner(attempt, job_dir)
        lines = [f'{{"t_ns": {step * 10**7}, "device": "cpu", "power_w": {size + step % 3}}}' for step in range(400)]
        job_dir.samples.write_text("\n".join(lines) + "\n")
        config = replace(job.config, settings={"batch_size": size}, dtype=dtype, model=model)
        return replace(job, config=config), report

    return measure


def compiled(source: Path, directory: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None and os.environ.get("LLEM_REQUIRE_LATEX") == "1":
        pytest.fail("LLEM_REQUIRE_LATEX=1, and pdflatex is not installed")
    if program is None:
        pytest.skip("pdflatex is not installed: .ci/system-packages.sh has it")
    command = [program, "-halt-on-error", "-interaction=nonstopmode", str(source.relative_to(directory))]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (directory / source.with_suffix(".pdf").name).stat().st_size > 10_000
    assert not re.findall(r"(?:LaTeX|siunitx) Warning: (?!Label|There were undefined)[^\n]*", done.stdout)
