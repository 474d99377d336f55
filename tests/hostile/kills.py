"""Kills a worker, its fork server or pytest itself, at a random moment of a real run.

Then nothing may be left behind, no file broken and no run without all its numbers green, and a second run with
`--llem-resume` must find all that was measured before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hostile.engines import end_all, environment, processes_of, words_of
from tests.hostile.report import SEED, table, write_docs

IMPORTING = "pytest, while its fork server imports"
VICTIMS = ("worker", "fork server", "pytest", IMPORTING)
KINDS = ("plain", "fork-twice.load", "popen-session.generate")
"""What the engine does: nothing odd, or it leaves a process behind that has left its session."""

LATEST_S = 1.5
"""How late after a result a kill may come. Chosen: about as long as a cycle takes on a quiet machine of two cores."""

ENDS_S, LEFT_S = 120.0, 60.0
"""Chosen: how long is waited for the end of pytest, and then of the others; far above what each takes."""

STUDY = f"""\
name: kills
engine: odd
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement:
  validity: {{cpu_contended_rel: 1}}
  min_duration_s: 0.2
  idle: {{duration_s: 0.1}}
  warmup: {{max_repeats: 1}}
execution: {{cycles: 2, retries: 0, timeout_s: 30}}
sweep:
  model: [{", ".join(KINDS)}]
"""
CYCLES = 2 * len(KINDS)

PRELOADED = """\
name: kills
engine: transformers
model: builtin:tiny-llama
dtype: float32
workload: {prompts: 1, input_tokens: 8, output_tokens: 4}
"""


@dataclass(frozen=True)
class Try:
    """One kill: how long after the start and the results before it, what of them is lost, and when all had ended."""

    victim: str
    came_late: bool
    after_s: float
    measured: int
    lost: int
    broken: int
    orphans: int
    green_lie: bool
    seconds: float


def command(*arguments: str) -> list[str]:
    """A run of the study."""
    options = ["-p", "no:cacheprovider", "-p", "no:randomly", "--llem-study=kills.yaml", "--junitxml=j.xml"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def kill_one(directory: Path, victim: str, results: int, after_s: float) -> Try:
    """Start a run in `directory`, kill one of its processes a while after so many results, look at what is left."""
    begun_s = time.monotonic()
    (directory / "kills.yaml").write_text(PRELOADED if victim == IMPORTING else STUDY)
    with (directory / "output.txt").open("wb") as output:
        pytest = subprocess.Popen(command(), cwd=directory, env=environment(directory), stdout=output, stderr=output)
    while victim == IMPORTING and not any("transformers" in words_of(one) for one in processes_of(directory)):
        time.sleep(0.02)
    while victim != IMPORTING and len(valid(directory)) < results and pytest.poll() is None:
        time.sleep(0.02)
    time.sleep(after_s)
    while not (hit := _kill(victim, pytest.pid, directory)) and pytest.poll() is None:
        pass
    killed_s = time.monotonic()
    before = valid(directory)
    code = pytest.wait(ENDS_S)
    ended_s = killed_s if code < 0 else time.monotonic()
    while processes_of(directory) and time.monotonic() < ended_s + LEFT_S:
        time.sleep(0.01)
    seconds = time.monotonic() - ended_s
    orphans = len(end_all(directory))
    lost = len(before - valid(directory))
    if code < 0 and victim != IMPORTING:
        again = command("--llem-resume")
        done = subprocess.run(again, cwd=directory, env=environment(directory), capture_output=True, check=False)
        lost += len(before) - len(_reused(directory)) + (done.returncode != 0)
    lies = code == 0 and len(valid(directory)) < CYCLES
    broken = broken_files(directory)
    return Try(victim, not hit, killed_s - begun_s, len(before), lost, broken, orphans, lies, seconds)


def _kill(victim: str, pytest: int, directory: Path) -> bool:
    module = {"worker": "pytest_llem.worker", "fork server": "pytest_llem.worker.forkserver"}.get(victim)
    for process in processes_of(directory):
        if process.pid == pytest if module is None else module in words_of(process):
            with contextlib.suppress(psutil.Error):
                process.kill()
                return True
    return False


def valid(directory: Path) -> set[Path]:
    """The cycles of all runs whose state says that a valid result is there."""
    return {path.parent for path in directory.glob("llem-results/*/kills/*/c*/state.json") if _is_valid(path)}


def _is_valid(path: Path) -> bool:
    return bool(json.loads(path.read_text())["state"] == "valid") and (path.parent / "result.json").is_file()


def _reused(directory: Path) -> list[str]:
    found = (path.read_text() for path in directory.glob("llem-results/*/kills/*/c*/state.json"))
    return [text for text in found if json.loads(text).get("source_run")]


def broken_files(directory: Path) -> int:
    """How many JSON files of all runs cannot be read."""
    found = 0
    for path in directory.glob("llem-results/**/*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found += 1
    return found


def kills(tries: int, seed: int = SEED) -> list[Try]:
    """Kill each of the victims in turn."""
    chance = random.Random(seed)
    found = []
    for number in range(tries):
        with tempfile.TemporaryDirectory() as directory:
            results, after_s = chance.randrange(CYCLES), chance.uniform(0, LATEST_S)
            found.append(kill_one(Path(directory), VICTIMS[number % len(VICTIMS)], results, after_s))
            print(found[-1], flush=True)
    return found


def figures(found: Sequence[Try]) -> str:
    """The table of docs/reliability.md."""
    heads = ("killed", "kills", "results before", "lost", "broken files", "orphans", "green lies", "all gone after")
    rows: list[Sequence[object]] = []
    for victim in VICTIMS:
        own = [one for one in found if one.victim == victim and not one.came_late]
        counts = [(one.measured, one.lost, one.broken, one.orphans, one.green_lie) for one in own]
        if own:
            times = [one.seconds for one in own]
            gone = f"{statistics.median(times):.2f} s, at most {max(times):.2f} s"
            rows.append((victim, len(own), *map(sum, zip(*counts, strict=True)), gone))
    return (
        f"{table(heads, rows)}\n\nTime runs from the kill of pytest, or else from its end. A pytest that was killed is "
        "run again with `--llem-resume`, and must find what was measured before."
    )


def main() -> None:
    """Kill, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=60)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write-docs", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args()
    found = kills(options.tries, options.seed)
    print(figures(found))
    if options.write_docs:
        write_docs("kills", figures(found))


if __name__ == "__main__":
    main()
