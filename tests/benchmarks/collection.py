"""Collecting 10,000 experiments against bare `parametrize` with one mark per item: CPU time and peak memory.

    python tests/benchmarks/collection.py [--count 10000] [--runs 5] [--xdist]

Both sides are whole pytest processes, started in turn; the ratio is taken pair by pair. Compiled modules are cached, as
they are after an installation, and plugins that are not needed are left out on both sides. With `--xdist` two workers
collect everything each, and all items are deselected, so that nothing runs; peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

BARE = """
import pytest

PARAMS = [
    pytest.param(i, id=f"batch_size:{{i}}-c1", marks=pytest.mark.point(batch_size=i, cycle=1)) for i in range({count})
]

@pytest.fixture
def value(request):
    return request.param

@pytest.mark.parametrize("value", PARAMS, indirect=True)
def test_bare(value):
    pass
"""

STUDY = """
name: large
model: builtin:tiny-llama
engine: transformers
sweep:
  transformers.batch_size: {{range: [1, {first}]}}
  workload.input_tokens: {{range: [1, {second}]}}
execution: {{cycles: 1}}
"""


NOTHING_RUN = 5
"""pytest's exit code where every item was deselected."""


def measure(command: list[str], directory: Path) -> tuple[float, float]:
    """CPU seconds of a process and its children, and the peak resident MiB of the largest of them."""
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execv(command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, NOTHING_RUN):
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Print medians of both sides and of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--xdist", action="store_true", help="collect in two workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "pytest.ini").write_text("[pytest]\nmarkers = point\n")
        (directory / "test_bare.py").write_text(BARE.format(count=options.count))
        (directory / "study.yaml").write_text(STUDY.format(first=options.count // 100, second=100))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        common = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_llem.plugin"]
        common += ["-p", "xdist", "-n", "2", "-k", "nothing"] if options.xdist else ["--collect-only"]
        bare, study = [*common, "test_bare.py"], [*common, "--llem-study=study.yaml"]
        measure(bare, directory), measure(study, directory)
        pairs = [(measure(bare, directory), measure(study, directory)) for _ in range(options.runs)]
    for index, what in enumerate(("CPU s", "peak MiB")):
        sides = [statistics.median(pair[side][index] for pair in pairs) for side in (0, 1)]
        ratio = statistics.median(pair[1][index] / pair[0][index] for pair in pairs)
        print(f"{what:9} bare {sides[0]:8.2f}   study {sides[1]:8.2f}   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
