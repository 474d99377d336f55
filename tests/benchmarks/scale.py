"""How a study of many items behaves: time, memory, files and sizes, with an engine that takes no time.

    python -m tests.benchmarks.scale [--items 1000] [--workers 2] [--keep DIR]

What is left of a cycle is what pytest, the store and the worker cost. Prints what an item costs at the beginning and at
the end of the run (a difference is what grows with the study), the controller's memory, and what lies on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.collection import measure

FAULTY = Path(__file__).parents[1] / "plugin" / "faulty_engine"

STUDY = """
name: scale
engine: faulty
model: none
workload: {{prompts: 1, input_tokens: 1, output_tokens: 1}}
measurement: {{min_duration_s: 0.001, idle: {{duration_s: 0}}, warmup: {{max_repeats: 0}}}}
sweep:
  workload.seed: {{range: [1, {items}]}}
execution: {{cycles: 1, cooldown: 0, isolation: {isolation}, retries: 0}}
"""

OBSERVER = """
import json, os, time
from pathlib import Path
import pytest

SEEN = {"ends": [], "cpu": [], "rss": [], "spans": {}}
PAGE = os.sysconf("SC_PAGE_SIZE")

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

def span(name):
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def hook(session):
        start = time.process_time()
        try:
            return (yield)
        finally:
            SEEN["spans"][name] = time.process_time() - start
            SEEN["rss_after_" + name] = rss()
    return hook

pytest_collection = span("collection")
pytest_sessionfinish = span("finish")

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        SEEN["ends"].append(time.time())
        SEEN["cpu"].append(time.process_time())
        if len(SEEN["ends"]) % 100 == 0:
            SEEN["rss"].append(rss())

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        Path("observed.json").write_text(json.dumps(SEEN))
"""


def run(items: int, workers: int, directory: Path) -> dict[str, float]:
    """Run the study in `directory`; returns what was seen, seconds and MiB by name."""
    (directory / "scale.yaml").write_text(STUDY.format(items=items, isolation="process" if workers else "load"))
    (directory / "observer.py").write_text(OBSERVER)
    (directory / "pytest.ini").write_text("[pytest]\n")
    paths = [str(FAULTY), str(directory), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["LLEM_LEASE_DIR"] = str(directory / "leases")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_llem.plugin"]
    command += ["-p", "observer", "--llem-study=scale.yaml", "--llem-meter=none", "--llem-skip-preflight"]
    command += ["-p", "xdist", "-n", str(workers)] if workers else []
    start = time.time()
    cpu_s, _ = measure(command, directory)
    seen = json.loads((directory / "observed.json").read_text())
    ends, cpu = seen["ends"], seen["cpu"]
    tenth = max(1, len(ends) // 10)
    early, late = ((part[-1] - part[0]) / (len(part) - 1) for part in (cpu[1 : tenth + 2], cpu[-tenth - 1 :]))
    return {
        "items": len(ends),
        "wall s": time.time() - start,
        "CPU s, all processes": cpu_s,
        "wall per item ms": (ends[-1] - ends[1]) / (len(ends) - 2) * 1e3,
        "controller CPU s: collection": seen["spans"]["collection"],
        "controller CPU s: the end": seen["spans"]["finish"],
        "controller CPU ms per item: first tenth": early * 1e3,
        "controller CPU ms per item: last tenth": late * 1e3,
        "RSS after collection MiB": seen["rss_after_collection"] / 2**20,
        "RSS at the last item MiB": (seen["rss"] or [seen["rss_after_collection"]])[-1] / 2**20,
        "RSS after the end MiB": seen["rss_after_finish"] / 2**20,
    }


def sizes(run_dir: Path) -> dict[str, float]:
    """Files and bytes of a run."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    found = {"files": len(files), "all MiB": sum(path.stat().st_size for path in files) / 2**20}
    for name in ("run.json", "junit.xml", "summary.json", "summary.csv"):
        found[f"{name} MiB"] = (run_dir / name).stat().st_size / 2**20
    return found


def another(run_dir: Path) -> Path:
    """A copy under another run's id: a run is not compared with its own measurements."""
    copy = run_dir.with_name(f"{run_dir.name}-b")
    shutil.copytree(run_dir, copy)
    for path in [copy / "run.json", *copy.rglob("result.json")]:
        path.write_text(path.read_text().replace(run_dir.name, copy.name))
    return copy


def afterwards(run_dir: Path, directory: Path) -> dict[str, float]:
    """Seconds and sizes of what is done with a run: list, report, export, compare."""
    found: dict[str, float] = {}
    for verb, arguments in {
        "list": (str(run_dir),),
        "report": (str(run_dir), "-o", "report.html"),
        "export": (str(run_dir), "--format=csv", "-o", "results.csv"),
        "compare": (str(run_dir), str(another(run_dir))),
    }.items():
        cpu_s, peak = measure([sys.executable, "-m", "pytest_llem.cli", verb, *arguments], directory)
        found[f"llem {verb} CPU s"], found[f"llem {verb} MiB"] = cpu_s, peak
    found["report.html MiB"] = (directory / "report.html").stat().st_size / 2**20
    return found


def main() -> None:
    """Print what was measured, a line each; CPU times, because wall times depend on what else the machine does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=0, help="xdist workers; each cycle is a process then")
    parser.add_argument("--keep", type=Path, help="leave the run in this directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = options.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        found = run(options.items, options.workers, directory)
        (manifest,) = directory.glob("llem-results/*/run.json")
        found |= sizes(manifest.parent) | afterwards(manifest.parent, directory)
    for what, value in found.items():
        print(f"{what:40} {value:10.2f}")


if __name__ == "__main__":
    main()
