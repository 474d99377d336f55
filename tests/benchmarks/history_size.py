"""How large a history is, and how long it takes to read: python -m tests.benchmarks.history_size [--write-docs]

Runs of 27 metrics in five cycles with noise of 1 %, as a study of a GPU has them. Reading is compared with what
Python's `json` takes for the same lines; on a busy machine, which has no cache to itself, it is up to twice as much.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_llem.job.metric_names import METRIC_NAMES
from pytest_llem.results.history.adding import metric_entry
from pytest_llem.results.history.files import history_file, read_history, written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun
from pytest_llem.results.history.series import series
from pytest_llem.results.terminal import markdown_table
from tests.figures import write_figures

DOCS = Path(__file__).resolve().parents[2] / "docs" / "history.md"
METRICS = [*METRIC_NAMES][:27]
CYCLES = 5
SHARED = {f"condition_{number}": "0123456789" for number in range(25)}
SETTINGS = {f"settings.some_setting_{number}": number for number in range(45)}


def entries(run: HistoryRun, experiments: int, rng: random.Random) -> Iterator[HistoryEntry]:
    for number in range(experiments):
        metrics = {}
        for position, name in enumerate(METRICS):
            level = 10.0 ** (position % 5 - 2) * (1 + number / 10)
            metrics[name] = metric_entry(
                tuple(float(f"{level * rng.lognormvariate(0, 0.01):.6g}") for _ in range(CYCLES)), correlated=False
            )
        yield HistoryEntry(
            run=run,
            experiment_id=f"batch_size:{number}-dtype:bfloat16",
            config_hash=f"{number:064x}",
            fingerprint="0123456789ab",
            conditions={**SHARED, "prompts_hash": f"{number:064x}"},
            settings={**SETTINGS, "settings.batch_size": number},
            metrics=metrics,
            measurements=tuple(f"{run.run_id}/c{cycle}/1" for cycle in range(1, CYCLES + 1)),
            verdicts={METRICS[0]: "pass"},
        )


def write(directory: Path, runs: int, experiments: int) -> int:
    """Write a history of daily runs; the bytes of its last run, and of that as git has it."""
    rng = random.Random(0)
    begin = datetime(2024, 1, 1, tzinfo=timezone.utc)
    size = 0
    for number in range(runs):
        at = (begin + timedelta(days=number)).isoformat()
        run_id = f"{at[:10].replace('-', '')}T000000Z-{number:08x}"
        run = HistoryRun(run_id, "batch", at, f"{number:040x}", at, False, "https://example.org/a/b", "runner", "0.1.0")
        path = history_file(directory, "batch", run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = written(entries(run, experiments, rng)).encode()
        path.write_bytes(text)
        size = len(text)
    return size


def sizes() -> list[tuple[str, str, str]]:
    rows = []
    for experiments in (1, 4, 20):
        with tempfile.TemporaryDirectory() as directory:
            size = write(Path(directory), 1, experiments)
            (path,) = Path(directory).glob("*/*.jsonl")
            packed = len(zlib.compress(path.read_bytes()))
        rows.append((str(experiments), f"{size / 1000:.1f} kB", f"{packed / 1000:.1f} kB"))
    return rows


def reading(runs: int, experiments: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), runs, experiments)
        begun = time.process_time()
        for path in Path(directory).glob("*/*.jsonl"):
            for line in path.read_bytes().splitlines():
                json.loads(line)
        plain = time.process_time() - begun
        begun = time.process_time()
        history = read_history(Path(directory))
        read = time.process_time() - begun
        begun = time.process_time()
        series(history.entries, METRICS[0])
        ordered = time.process_time() - begun
    assert len(history.entries) == runs * experiments
    return (
        f"{runs:,} runs of {experiments} experiments take {read:.1f} s of one core to read, {read / plain:.1f} times\n"
        "what Python's `json` takes for the same lines. A metric's series with all change points takes\n"
        f"{ordered:.1f} s more."
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write-docs", action="store_true")
    options.add_argument("--runs", type=int, default=1000)
    chosen = options.parse_args()
    head = ("experiments", "a run's file", "compressed, as in git")
    text = "\n".join(markdown_table(head, sizes(), left=0))
    print(f"{text}\n\n{reading(chosen.runs, 20)}")
    if chosen.write_docs:
        write_figures("history size", text, DOCS)


if __name__ == "__main__":
    main()
