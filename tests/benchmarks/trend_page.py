"""Size of the trend page, and the time that it takes to make: 20 experiments and 1,000 runs, or any number.

python -m tests.benchmarks.trend_page [--experiments 20] [--runs 1000] [-o FILE]
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_llem.results.history.files import History
from pytest_llem.results.history.page.page import page_of
from pytest_llem.results.history.page.trends import STANDARD, gather_trends
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry

LEVELS = dict(zip(STANDARD, (0.05, 1200.0, 0.08, 310.0, 0.62), strict=True))
NOISE = 0.01


def made_up(experiments: int, runs: int, seed: int = 1) -> History:
    """A run a day: noise of 1 % within and between runs, a step of 8 % in every third experiment, an engine's update.

    All five metrics that a page has by default are measured, and one of them has a limit.
    """
    draw = random.Random(seed)
    entries = []
    for place in range(runs):
        at = datetime(2024, 1, 1, 3, 17, 5, tzinfo=timezone.utc) + timedelta(days=place, seconds=draw.randrange(3600))
        run = HistoryRun(
            run_id=f"{at:%Y%m%dT%H%M%SZ}-{draw.getrandbits(24):06x}",
            study="serving",
            started_at=at.isoformat(),
            commit=f"{draw.getrandbits(160):040x}",
            committed_at=(at - timedelta(minutes=20)).isoformat(),
            dirty=False,
            repository="https://github.com/example/serving",
            hostname="bench-1",
        )
        conditions = {"engine": "vllm", "engine_version": "0.9.1" if place < 0.6 * runs else "0.10.0"}
        for number in range(experiments):
            late = number % 3 == 0 and place >= runs * (0.2 + number / experiments / 2)
            metrics = {}
            for name, level in LEVELS.items():
                mean = level * (1 + number / 7) * (1.08 if late else 1) * math.exp(draw.gauss(0, NOISE))
                cycles = tuple(mean * math.exp(draw.gauss(0, NOISE)) for _ in range(3))
                value = math.exp(sum(map(math.log, cycles)) / 3)
                half = abs(draw.gauss(0.02, 0.004))
                ends = [float(f"{value * math.exp(each):.6g}") for each in (0, -half, half)]
                metrics[name] = MetricEntry(ends[0], ends[1], ends[2], cycles)
            status = "fail" if late and draw.random() < 0.02 else "pass"
            key = f"batch_size:{2 ** (number % 6)}-dtype:{('float16', 'bfloat16')[number % 2]}-prompts:{number}"
            entries.append(
                HistoryEntry(run, key, key, "f", conditions, {}, metrics, verdicts={STANDARD[0]: status})  # type: ignore[dict-item]
            )
    return History("llem-history", tuple(entries))


def main() -> None:
    """Print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    history = made_up(options.experiments, options.runs)
    begun, cpu = time.perf_counter(), time.process_time()
    trends = gather_trends(history)
    series = time.process_time() - cpu
    page = page_of(trends)
    raw = page.encode()
    print(f"{options.experiments} experiments, {options.runs} runs, {len(trends.metrics)} metrics")
    print(f"{len(raw) / 1e6:.2f} MB, {len(gzip.compress(raw)) / 1e6:.2f} MB compressed")
    print(f"{time.process_time() - cpu:.1f} s CPU, of which series {series:.1f} s; {time.perf_counter() - begun:.1f} s")
    if options.out:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
