"""Wrong options, ini values, variables and user files: each a pytest of its own, in a directory of its own.

`python -m tests.hostile.options [--tries N] [--write-docs]` tries N cases (all, if not given); `test_options.py` runs a
few. A case is refused before anything is measured, by a usage error that names it, or the run works.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# Imported here, once, so that the children that run the cases need not.
import pytest_llem.results.attempts
import pytest_llem.results.baselines
import pytest_llem.session.measuring
import pytest_llem.session.reporting
import pytest_llem.session.start  # noqa: F401

from .report import SEED, table, write_docs

FAULTY = Path(__file__).parents[1] / "plugin" / "faulty_engine"
STUDY = """\
name: small
model: none
engine: faulty
workload: {prompts: 2, input_tokens: 4, output_tokens: 2}
measurement:
  {min_duration_s: 0.01, idle: {duration_s: 0.02}, warmup: {max_repeats: 1}, validity: {cpu_contended_rel: 1.0}}
execution: {cycles: 1, retries: 0}
"""
DEADLINE_S = 30.0
"""Chosen: twenty times what a run of this study takes."""

SOURCES = {
    "out": ("option", "variable", "ini", "user file"),
    "meter": ("option", "variable", "ini", "user file"),
    "cycles": ("option", "variable", "ini", "user file"),
    "order": ("option", "variable", "ini", "user file"),
    "runner": ("option", "variable", "ini", "user file"),
    "strict": ("variable", "ini", "user file"),
    "run": ("variable", "ini", "user file"),
    "baseline_dir": ("variable", "ini", "user file"),
    "baseline": ("option", "ini"),
    "save-baseline": ("option",),
    "fail-if": ("option",),
    "shard": ("option",),
    "shard-times": ("option",),
    "html": ("option",),
    "study": ("option",),
}
LONG = "n" * 300
PLACES = (
    "file",
    "file/below",
    "/dev/null",
    "/dev/null/below",
    "/dev/full",
    "pipe",
    "socket",
    "loop",
    "loop/below",
    "dangling",
    "dangling/below",
    "/proc/llem",
    "/sys/llem/below",
    "/proc/self/fd/0",
    LONG,
    f"{LONG}/below",
    f"there/{LONG}.html",
    "d/" * 2100 + "end",
    "~nobody-has-this-name/there",
    "wrong\udcff",
    "new\nline",
    "-",
    "..",
    ".",
    " ",
    "%s{}$HOME",
    "\u202egnp",
    "http://localhost/results",
    "broken.json",
    "deep.json",
    "list.json",
    "binary.json",
    "folder",
    "brokenbase",
    "newerbase",
    "linkbase",
)
NUMBERS = (
    "0", "-1", "1.5", "1e9", "9" * 30, "nan", "inf", "0x10", "²", "१", "1,5", "true", "null", "[1]", "", "two", "1 2",
)  # fmt: skip
WORDS = (
    "nonsense", "LOCAL", "docker:", "docker: ", "local:x", "ray:", "ray:not an address", "docker:a b", "podman",
    "vllm=", "=local", "vllm=docker:", "nosuch=local", "faulty=nonsense", "a=b=c", "\t", "none none", "nvlm",
    "auto,none", "shufled", "interleaved sequential", "yes", "no", "maybe", "explicitly", "{}", "{a: b}", "\x1b[31mred",
    "<script>", "../../up", "a/b", "name with blanks", "naïve", ".hidden", LONG, "con:aux", "💥", "-x",
)  # fmt: skip
LIMITS = (
    "energy_j", "energy_j:", ":5%", "energy_j:five", "energy_j:%", "energy_j:5%%", "nosuch:5%", "energy_j:-", "5%", "",
    "joules_per_output_tokn:5%", "energy_j:nan%", "energy_j:inf", "energy_j:1e999%", "energy_j:5%:x", "energy_j:0%",
    ":", "::", "energy_j:5J",
)  # fmt: skip
SHARDS = (
    "", "1", "1/", "/2", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", "1.0/2", "1/99999999999999999999", "²/3", " 1/2",
    "1 / 2", "1\\2",
)  # fmt: skip
VALUES = {
    **dict.fromkeys(("out", "baseline_dir", "baseline", "shard-times", "study"), PLACES),
    # A report replaces its file, and who is root must not lose a device to a test.
    "html": [place for place in PLACES if not place.startswith(("/dev", "/proc/self"))],
    "save-baseline": (*WORDS, *PLACES),
    **dict.fromkeys(("meter", "runner", "order"), WORDS),
    "strict": (*WORDS[:8], *NUMBERS),
    "run": (*WORDS[:8], "explicit always", "2"),
    "cycles": NUMBERS,
    "fail-if": LIMITS,
    "shard": SHARDS,
}


@dataclass(frozen=True)
class Case:
    """A value of a setting from one source."""

    setting: str
    source: str
    value: str

    @property
    def arguments(self) -> list[str]:
        """What pytest is called with."""
        study = ["small.yaml"]
        if self.source != "option":
            return study
        given = [f"--llem-{self.setting}={self.value}"]
        return [*given, *study, *(["--llem-shard=1/1"] if self.setting == "shard-times" else [])]

    @property
    def names(self) -> list[str]:
        """What a message may call it: one of these."""
        name = self.setting.replace("-", "_")
        return {
            "option": [f"--llem-{self.setting}"],
            "variable": [f"LLEM_{name.upper()}"],
            "ini": [f"llem_{name}", "pytest.ini"],
            "user file": ["config.yaml"],
        }[self.source]

    def prepare(self, home: Path) -> dict[str, str]:
        """Write the files of the case; the variables that it sets."""
        name = self.setting.replace("-", "_")
        if self.source == "ini":
            (home / "pytest.ini").write_text(f"[pytest]\nllem_{name} = {self.value}\n", "utf-8", "surrogateescape")
        if self.source == "user file":
            (home / "config" / "llem").mkdir(parents=True)
            key = {"runner": "runners: {faulty: VALUE}", "cycles": "execution: {cycles: VALUE}"}
            key["order"] = "execution: {order: VALUE}"
            line = key.get(name, f"{name}: VALUE").replace("VALUE", "'" + self.value.replace("'", "''") + "'")
            (home / "config" / "llem" / "config.yaml").write_text(line, "utf-8", "surrogateescape")
        if self.source == "variable":
            return {f"LLEM_{name.upper()}" + ("_FAULTY" if name == "runner" else ""): self.value}
        return {}


def cases() -> list[Case]:
    """Every case, in an order that the seed says."""
    made = [
        Case(setting, source, value)
        for setting, sources in SOURCES.items()
        for source, value in itertools.product(sources, dict.fromkeys(VALUES[setting]))
        if source != "ini" or value.isprintable()  # pytest itself fails with other ini files
    ]
    random.Random(SEED).shuffle(made)
    return made


@dataclass(frozen=True)
class Outcome:
    """What came of a case: pytest's exit code, what is wrong with it, and how long it took."""

    case: Case
    code: int | None
    problem: str | None
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether pytest said that the call is wrong."""
        return self.code == pytest.ExitCode.USAGE_ERROR


def world(home: Path) -> None:
    """The files that the values name."""
    (home / "small.yaml").write_text(STUDY)
    (home / "file").write_text("a file")
    (home / "there").mkdir()
    (home / "folder").mkdir()
    (home / "loop").symlink_to("loop")
    (home / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(home / "pipe")
    import socket

    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(home)  # a socket's path has at most 108 bytes
        end.bind("socket")
    (home / "broken.json").write_text('{"schema_version": 1, "experiments": {')
    (home / "deep.json").write_text("[" * 100_000)
    (home / "list.json").write_text("[1, 2]")
    (home / "binary.json").write_bytes(b"\xff\xfe\x00experiments")
    for name, text in [("brokenbase", "{"), ("newerbase", '{"schema_version": 99, "study": "x", "experiments": {}}')]:
        directory = home / "llem-baselines" / name
        directory.mkdir(parents=True)
        (directory / "small.json").write_text(text)
    (home / "llem-baselines" / "linkbase").mkdir()
    (home / "llem-baselines" / "linkbase" / "small.json").symlink_to("small.json")


def attempt(case: Case, root: Path) -> Outcome:
    """Run pytest for a case in a child of this process."""
    home = Path(tempfile.mkdtemp(dir=root), "home")
    home.mkdir()
    world(home)
    variables = case.prepare(home)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(case, home, variables)
    code = _wait(pid, started + DEADLINE_S)
    seconds = time.monotonic() - started
    output = (home / "output").read_text(encoding="utf-8", errors="replace")
    measured = list(home.parent.rglob("result.json"))
    os.chdir(root)
    shutil.rmtree(home.parent, ignore_errors=True)
    return Outcome(case, code, _problem(case, code, output, bool(measured)), seconds)


def _run(case: Case, home: Path, variables: dict[str, str]) -> None:
    """The child: pytest in the case's directory, with nothing of this process's surroundings."""
    code = 99
    try:
        os.setsid()
        output = os.open(home / "output", os.O_WRONLY | os.O_CREAT)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, target in [(null, 0), (output, 1), (output, 2)]:
            os.dup2(number, target)
        os.chdir(home)
        for name in [name for name in os.environ if name.startswith(("LLEM_", "PYTEST_", "GITHUB_")) or name == "CI"]:
            del os.environ[name]
        os.environ.update(variables, XDG_CONFIG_HOME=str(home / "config"), LLEM_LEASE_DIR=str(home / "leases"))
        os.environ["PYTHONPATH"] = str(FAULTY)
        plugins = ["-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:hypothesispytest"]
        code = int(pytest.main([*case.arguments, *plugins, f"--rootdir={home}", "--color=no"]))
    except BaseException as problem:  # noqa: BLE001 (a child of fork must end here, whatever happens)
        sys.stderr.write(f"Traceback of the fuzzer: {type(problem).__name__}: {problem}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, deadline: float) -> int | None:
    """The exit code of a child; `None`, and its end, where it does not end in time."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


REMEDY = "fix: |use one of|save the file|syntax error|did you mean|expected|should have|error: argument"


def _problem(case: Case, code: int | None, output: str, measured: bool) -> str | None:
    """What is wrong with how pytest answered; `None` if nothing is."""
    if code is None:
        return "hangs"
    if "INTERNALERROR" in output or "Traceback" in output:
        lines = [
            line for line in output.splitlines() if re.match(r"(INTERNALERROR> )?\w[\w.]*(Error|Exception)\b", line)
        ]
        return "traceback: " + (lines[-1] if lines else output[-300:])
    if code == pytest.ExitCode.USAGE_ERROR:
        if measured:
            return "refused when everything was measured"
        if not any(name in output for name in case.names):
            return f"not named: {output[-300:]!r}"
        if not re.search(REMEDY, output):
            return f"no remedy: {output[-300:]!r}"
        return None
    if code != pytest.ExitCode.OK:
        return f"exit code {code}: {output[-600:]!r}"
    return None if measured or case.setting in ("run", "shard") else "green, and nothing measured"


def run_cases(chosen: Sequence[Case]) -> Iterator[Outcome]:
    """The outcome of each case."""
    sys.path.insert(0, str(FAULTY))
    with tempfile.TemporaryDirectory(prefix="llem-options-") as root:
        for case in chosen:
            yield attempt(case, Path(root))


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases, print the problems and the table; 1 if there is any problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.options")
    parser.add_argument("--tries", type=int)
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--only", default="", help="a setting's name")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if options.only in ("", case.setting)][: options.tries]
    outcomes: list[Outcome] = []
    for outcome in run_cases(chosen):
        outcomes.append(outcome)
        if outcome.problem:
            print(f"{outcome.case!r:.200}: {outcome.problem}", flush=True)
    rows = []
    for source in ("option", "variable", "ini", "user file"):
        of_source = [outcome for outcome in outcomes if outcome.case.source == source]
        refused = sum(outcome.refused for outcome in of_source)
        tracebacks = sum((outcome.problem or "").startswith("traceback") for outcome in of_source)
        other = sum(outcome.problem is not None for outcome in of_source) - tracebacks
        slowest = max((outcome.seconds for outcome in of_source if outcome.refused), default=0.0)
        rows.append([source, len(of_source), refused, len(of_source) - refused, tracebacks, other, f"{slowest:.1f} s"])
    heads = ["given as", "tries", "refused", "taken", "tracebacks", "other wrong answers", "longest time to refuse"]
    text = table(heads, rows)
    print(text)
    if options.write_docs:
        write_docs("options", text)
    return int(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
