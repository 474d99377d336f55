"""Reads the first 1,000 requests of files of a gigabyte, against files that hold no more than those.

python tests/benchmarks/trace_reading.py [MEGABYTES]

Peak memory is that of a fresh process, time the median of five in alternation. It needs as much room in the directory
for temporary files as the size asked for (1,000 MB).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPTS = 1000
READ = """
import resource, sys, time
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.workload.texts import read_rows
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
assert len(read_rows(WorkloadSettings(sys.argv[1], int(sys.argv[2]), None)).recorded) == int(sys.argv[2])
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main(megabytes: int = 1000) -> int:
    """Print a line for each format; 1 where a file of many requests takes more than one of few."""
    turn = "Why is the sky blue, and why not at dusk? " * 12
    chat = json.dumps({"id": "x", "conversations": [{"from": who, "value": turn} for who in ("human", "gpt") * 2]})
    session = json.dumps({"messages": [{"role": who, "content": turn} for who in ("user", "assistant") * 2]})
    trace = json.dumps({"timestamp": 0, "input_length": 9000, "output_length": 50, "hash_ids": list(range(18))})
    formats = {
        "sharegpt.json": ("[", f"{chat},\n", f"{chat}]"),
        "messages.jsonl": ("", f"{session}\n", ""),
        "mooncake.jsonl": ("", f"{trace}\n", ""),
        "azure.csv": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "2023-11-16 18:17:03.9799600,4808,10\n", ""),
    }
    worst = 0.0
    print(f"| file | {megabytes} MB | memory, against {PROMPTS} requests | time, against the same |")
    print("|---|---|---|---|")
    for name, (begin, line, end) in formats.items():
        with tempfile.TemporaryDirectory() as directory:
            paths = Path(directory, f"small-{name}"), Path(directory, f"large-{name}")
            for path, count in zip(paths, (PROMPTS, megabytes * 10**6 // len(line)), strict=True):
                with path.open("w") as stream:
                    stream.write(begin)
                    for _ in range(count // PROMPTS):
                        stream.write(line * PROMPTS)
                    stream.write(end)
            runs = [[_read(path) for path in paths] for _ in range(5)]
            times, peaks = (
                [statistics.median(run[which][figure] for run in runs) for which in (0, 1)] for figure in (0, 1)
            )
            worst = max(worst, peaks[1] / peaks[0])
            print(f"| {name} | {times[1]:.2f} s, {peaks[1] / 1024:.0f} MiB | {peaks[1] / peaks[0]:.3f} ", end="")
            print(f"| {times[1] / times[0]:.2f} |", flush=True)
    return int(worst > 1.1)


def _read(path: Path) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(PROMPTS)], check=True, capture_output=True, text=True
    )
    seconds, peak_kib = done.stdout.split()
    return float(seconds), float(peak_kib)


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
