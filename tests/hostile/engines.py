"""Odd engines: each kind of `tests.plugin.faulty_engine.llem_odd` is measured for real, in one run of pytest.

What they do to their process must fail that cycle alone, leave nothing behind and end within its deadline; what they
lie about must not become a valid number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

from pytest_llem.runners.process import SAFE_PATH
from tests.hostile.report import table, write_docs
from tests.plugin.faulty_engine.llem_odd import ACTS, ANSWERS, FACTS

FAULTY = Path(__file__).parents[1] / "plugin" / "faulty_engine"
STAGES = ("load", "generate", "shutdown")
TIMEOUT_S = 6.0
"""A cycle's limit. Chosen: ten times what one takes on a busy machine."""

SPOILING = frozenset(
    name
    for name in ACTS
    if name.startswith(
        ("raises", "memory-error", "keyboard", "generator-exit", "system-exit", "exit-", "sig", "kills-")
    )
    or name in ("hangs", "hangs-unkillable")
) - {"sigpipe", "sigusr1"}
"""Acts after which there can be no number, unless they come when all is measured."""

TRUE = {
    *("generator", "surrogates", "cache-word", "quiesce-word"),
    *("effective-set", "effective-keys", "effective-surrogate"),
}
"""Answers that are right in another form, or marked in the result itself."""

STUDY = """\
name: odd
engine: odd
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement:
  validity: {{cpu_contended_rel: 1}}
  min_duration_s: 0.05
  idle: {{duration_s: 0.05}}
  warmup: {{max_repeats: 1}}
execution: {{cycles: 1, retries: 0, timeout_s: {timeout_s}}}
sweep:
  model: [{kinds}]
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one kind: its item in JUnit, and how long that took."""

    kind: str
    passed: bool
    time_s: float
    status: str
    message: str


@dataclass(frozen=True)
class Run:
    """A run of pytest over several kinds."""

    outcomes: tuple[Outcome, ...]
    orphans: tuple[str, ...]
    output: str

    @property
    def green_lies(self) -> list[str]:
        """Kinds of which a number passed that cannot be right."""
        return [one.kind for one in self.outcomes if one.passed and not may_pass(one.kind)]

    @property
    def tracebacks(self) -> list[str]:
        """Kinds whose item ended with an exception that is no error of a cycle."""
        return [
            one.kind
            for one in self.outcomes
            if one.status not in ("valid", "invalid", "failed", "crashed", "interrupted")
        ]


def may_pass(kind: str) -> bool:
    """Whether a valid number is right for this kind."""
    name, _, stage = kind.partition(".")
    return name in TRUE or stage == "shutdown" or (name in ACTS and name not in SPOILING)


def kinds() -> list[str]:
    """All of them: each act in each stage, then what is said and answered."""
    return [*(f"{act}.{stage}" for stage in STAGES for act in ACTS), *ANSWERS, *FACTS]


def environment(directory: Path) -> dict[str, str]:
    """Variables of a run of its own: the odd engine is installed, leases are in `directory`, and no other plugins."""
    path = os.pathsep.join(filter(None, [str(FAULTY), os.environ.get("PYTHONPATH")]))
    unset = {"CI", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"}
    kept = {k: v for k, v in os.environ.items() if k not in unset and not k.startswith("PYTEST_XDIST")}
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_llem.plugin,xdist.plugin"}
    own = {"PYTHONPATH": path, "LLEM_LEASE_DIR": str(directory / "leases"), "OMP_NUM_THREADS": "1"}
    return {**kept, **alone, **own}


def processes_of(directory: Path) -> list[psutil.Process]:
    """Living processes that a run in `directory` started: they have its leases in their environment, or work in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = str(directory) in (process.cwd(), str(Path(process.environ().get("LLEM_LEASE_DIR", "-")).parent))
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
    return found


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def end_all(directory: Path) -> tuple[str, ...]:
    """Kill what a run left behind, and say what that was."""
    left = processes_of(directory)
    names = tuple(" ".join(words_of(process)) for process in left)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return names


def measure(directory: Path, names: Sequence[str], timeout_s: float = TIMEOUT_S) -> Run:
    """One run of pytest over the kinds, in `directory`."""
    (directory / "odd.yaml").write_text(STUDY.format(kinds=", ".join(names), timeout_s=timeout_s))
    command = [
        sys.executable,
        *SAFE_PATH,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--llem-study=odd.yaml",
        "--junitxml=j.xml",
    ]
    run = subprocess.run(
        command,
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    orphans = end_all(directory)
    outcomes = tuple(_outcomes(directory / "j.xml"))
    if len(outcomes) != len(names):
        raise AssertionError(
            f"{len(outcomes)} outcomes of {len(names)} kinds:\n{run.stdout[-4000:]}\n{run.stderr[-2000:]}"
        )
    return Run(outcomes, orphans, run.stdout + run.stderr)


def _outcomes(junit: Path) -> Iterable[Outcome]:
    for case in ElementTree.parse(junit).iter("testcase"):
        known = {one.get("name"): one.get("value", "") for one in case.iter("property")}
        problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
        text = "\n".join(f"{one.get('message', '')}\n{one.text or ''}" for one in problems)
        kind = case.get("name", "").partition("[model:")[2].removesuffix("-c1]")
        yield Outcome(kind, not problems, float(case.get("time", "0")), known.get("llem_status", "error"), text)


def main() -> None:
    """Measure all kinds, or the first few, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10**6, help="at most so many kinds")
    parser.add_argument("--only", nargs="*", help="these kinds")
    parser.add_argument("--write-docs", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args()
    chosen = options.only or kinds()[: options.tries]
    with tempfile.TemporaryDirectory() as directory:
        run = measure(Path(directory), chosen)
    for one in run.outcomes:
        print(f"{one.time_s:6.1f} s {one.status:12}{one.kind:28}{' '.join(one.message.split()[3:40])[:150]!r}")
    print(json.dumps({"lies": run.green_lies, "orphans": run.orphans, "tracebacks": run.tracebacks}, indent=1))
    text = _figures(run)
    print(text)
    if options.write_docs:
        write_docs("engines", text)


def _figures(run: Run) -> str:
    groups: dict[str, Callable[[str], bool]] = {
        "to their process, while loading": lambda kind: kind.endswith(".load"),
        "to their process, while generating": lambda kind: kind.endswith(".generate"),
        "to their process, while closing": lambda kind: kind.endswith(".shutdown"),
        "answers": lambda kind: kind in ANSWERS,
        "what they say of themselves": lambda kind: kind in FACTS,
    }
    rows = []
    for name, belongs in groups.items():
        found = [one for one in run.outcomes if belongs(one.kind)]
        if found:
            lies = [kind for kind in run.green_lies if belongs(kind)]
            broken = [kind for kind in run.tracebacks if belongs(kind)]
            longest = max(found, key=lambda one: one.time_s)
            named = f"{longest.time_s:.0f} s ({longest.kind.partition('.')[0]})"
            rows.append((name, len(found), len(broken), len(lies), named))
    rows.append(("all", len(run.outcomes), len(run.tracebacks), len(run.green_lies), ""))
    heads = ("odd engines", "kinds", "tracebacks of pytest", "green lies", "longest item")
    left = f"Each cycle had {TIMEOUT_S:g} s; logs of 20 and 100 MB (`huge-`) are then searched for secrets. "
    left += f"Orphans after the run: {len(run.orphans)}."
    return f"{table(heads, rows)}\n\n{left}"


if __name__ == "__main__":
    main()
