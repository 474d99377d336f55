"""Broken files: everything that a run leaves, baselines, calibrations and settings, changed and then read again.

Every verb and every reader of the plugin gives a result, or one message that names the file; no traceback, no wait,
and no result that vanishes without a word. The run whose files are changed is a real one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llem import cli, load
from pytest_llem.energy import calibration
from pytest_llem.errors import LlemError, StoreError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.files import write_json
from pytest_llem.job.wire import encode
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import read_baseline
from pytest_llem.results.judging import judge_comparison
from pytest_llem.results.layout import cycle_directories, repeatability_file
from pytest_llem.results.measured_cycles import cycles_of
from pytest_llem.results.reading import recorded_durations
from pytest_llem.results.repeatability import REPEATABILITY_VERSION, Repeatability, Spread
from pytest_llem.results.resume import EarlierRuns
from pytest_llem.results.state import read_state
from pytest_llem.study.limits import Comparison, parse_fail_if
from pytest_llem.study.settings import load_settings
from pytest_llem.workload.texts import read_rows
from tests.hostile.engines import environment
from tests.hostile.report import SEED, table, write_docs
from tests.hostile.studies import VALUES, TooLongError, time_limit

LIMIT_S = 60.0
"""Chosen: thirty times what the slowest verb takes for a run of this size on an idle machine."""

STUDY = """\
engine: odd
model: quiet
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement:
  {min_duration_s: 0.05, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}, validity: {cpu_contended_rel: 1}}
execution: {cycles: 3, cooldown: 0}
compare: {fail_if: {output_tokens_per_s: -90%}}
"""
LIMIT = "output_tokens_per_s:-90%"
NAMED = ("run.json", "result.json", "state.json", "main", "aa.json", "calibration", "config.yaml", "data.")


@dataclass
class World:
    """Two runs of one study, a baseline, a repeatability, a calibration and a user's settings."""

    root: Path
    runs: list[Path] = field(default_factory=list)

    @property
    def baselines(self) -> Path:
        return self.root / "llem-baselines"

    @property
    def settings(self) -> Path:
        return self.root / "config.yaml"

    @property
    def calibrations(self) -> Path:
        return self.root / "calibration"

    def files(self) -> list[Path]:
        """All files that may be changed, the most read ones more often."""
        found = [path for path in self.root.rglob("*") if path.is_file() and path.name not in ("study.yaml", ".lock")]
        small = [path for path in found if any(name in str(path) for name in NAMED)]
        return sorted(found) + sorted(small) * 4


def world(root: Path) -> World:
    """Measure it."""
    (root / "study.yaml").write_text(STUDY, encoding="utf-8")
    env = {**environment(root), "PYTEST_ADDOPTS": "", "LLEM_LEASE_DIR": "none"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "--llem-study=study.yaml"]
    for more in (["--llem-save-baseline=main"], ["--llem-baseline=main"]):
        done = subprocess.run([*command, *more], cwd=root, env=env, capture_output=True, text=True, check=False)
        if done.returncode or not list(root.glob("llem-baselines/main/*.json")):
            raise RuntimeError(f"the run to start from failed:\n{done.stdout}{done.stderr}")
    made = World(root, sorted(path.parent for path in root.glob("llem-results/*/run.json")))
    results = load(made.runs[0])
    conditions = read_baseline(made.baselines / "main" / "study.json").experiments
    first = next(iter(conditions.values())).runs[0].conditions
    spread = Spread(0.01, None, 0.01, 2)
    metrics = {"output_tokens_per_s": spread, "joules_per_output_token": spread}
    known = Repeatability("study", "2026-11-29", ("a", "b", "c"), first, metrics, REPEATABILITY_VERSION)
    write_json(repeatability_file(results[0].study, made.baselines), encode(known))
    made.calibrations.mkdir()
    stored = calibration.Calibration("GPU-1", "550", 1, 1, 1, 1, made_at="2026-11-29T00:00:00Z", conditions={"a": 1})
    write_json(calibration.path_of("GPU-1", "550", made.calibrations), stored._asdict())
    texts = [{"text": f"text {index}", "n": index} for index in range(9)]
    for name, content in {
        "jsonl": "".join(json.dumps(row) + "\n" for row in texts),
        "json": json.dumps(texts),
        "csv": "text,n\n" + "".join(f'"{row["text"]}, a",{row["n"]}\n' for row in texts),
        "txt": "".join(f"{row['text']}\n" for row in texts),
    }.items():
        (root / f"data.{name}").write_text(content, encoding="utf-8")
    made.settings.write_text("out: results\nexecution: {cycles: 2}\nvalidity: {residual_memory_bytes: 5}\n")
    return made


def _verb(*words: str) -> Callable[[World], None]:
    def read(made: World) -> None:
        first, second = map(str, made.runs)
        names = {"A": first, "B": second, "OUT": str(made.root / "out"), "RUNS": str(Path(first).parent)}
        arguments = [names.get(word, word) for word in words]
        if words[0] in ("compare", "budget", "gate-power"):
            arguments.append(f"--baseline-dir={made.baselines}")
        code = cli.main(arguments)
        if code == 2:
            raise StoreError("refused")  # what it printed is looked at by the caller

    return read


def _baseline(made: World) -> None:
    opened = open_baseline("main", made.baselines)
    results = load(made.runs[1])
    first = results[0].experiment
    limits = tuple(parse_fail_if(*LIMIT.split(":")) for _ in range(1))
    comparison = Comparison(limits)
    judge_comparison(opened, ("study", first.id, first.config_hash), cycles_of(list(results)), [], comparison)


def _calibration(made: World) -> None:
    for read in (calibration.load, calibration.foreign):
        stored = read("GPU-1", "550", made.calibrations)
        if stored is not None:
            json.dumps([stored.trace(), stored.hash, stored.expired, stored.period_ns + 1, (stored.duty or 0.0) + 1.0])


def _resume(made: World) -> None:
    for directory in cycle_directories(made.runs[0]):
        with contextlib.suppress(LlemError):
            state = read_state(directory)
            if state is not None:
                EarlierRuns(made.runs[0].parent, "none").find(state.key, {})


def _texts(made: World) -> None:
    for name in ("jsonl", "json", "csv", "txt"):
        found = read_rows(WorkloadSettings(dataset=str(made.root / f"data.{name}"), prompts=2)).texts
        if len(found) != 2 or any("\ufeff" in text for text in found):
            raise AssertionError(f"texts that are none: {found}")
        "".join(found).encode()


READERS: dict[str, Callable[[World], None]] = {
    "llem list": _verb("list", "RUNS"),
    "llem list --json": _verb("list", "RUNS", "--json"),
    "llem compare": _verb("compare", "A", "B", "--fail-if", LIMIT, "--allow", "estimated_energy"),
    "llem compare --format=json": _verb("compare", "B", "A", "--format", "json"),
    "llem compare NAME": _verb("compare", "main", "B", "--fail-if", LIMIT, "--allow", "estimated_energy"),
    "llem report": _verb("report", "A", "B", "-o", "OUT", "--baseline", "A"),
    "llem budget": _verb("budget", "A"),
    "llem gate-power": _verb("gate-power", "A", "B", "--metric", "output_tokens_per_s"),
    "llem export csv": _verb("export", "A", "--format", "csv", "-o", "OUT"),
    "llem export parquet": _verb("export", "A", "--format", "parquet", "-o", "OUT"),
    "llem export mlperf": _verb("export", "A", "--format", "mlperf", "-o", "OUT"),
    "llem export otel": _verb("export", "A", "--format", "otel", "-o", "OUT"),
    "llem export aienergyscore": _verb("export", "A", "--format", "aienergyscore", "-o", "OUT"),
    "llem export vllm-bench": _verb("export", "A", "--format", "vllm-bench", "-o", "OUT"),
    "--llem-baseline=RUN": lambda made: void(open_baseline(str(made.runs[0]), made.baselines)),
    "--llem-baseline=NAME": _baseline,
    "--llem-shard-times": lambda made: void(recorded_durations(made.runs[0])),
    "--llem-resume": _resume,
    "calibrations": _calibration,
    "data sets": _texts,
    "user settings": lambda made: void(load_settings(path=made.settings, env={})),
}
SLOW = {"llem gate-power"}
"""Those that simulate for seconds; asked about files that they alone read otherwise than the rest."""

OF_FILE = {
    "llem-baselines/main": ("--llem-baseline=NAME", "llem compare NAME"),
    "aa.json": ("llem compare", "llem budget", "llem gate-power", "--llem-baseline=NAME", "llem compare NAME"),
    "calibration": ("calibrations",),
    "config.yaml": ("user settings",),
    "data.": ("data sets",),
}


def _text(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, rng: void(path.write_bytes(change(path.read_bytes(), rng)))


def void(value: object) -> None:
    """Nothing: the value of a call that is made for what it does."""


def _flipped(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw or b" ")
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _token(raw: bytes, rng: random.Random) -> bytes:
    """Another token in place of a number, text or word: still JSON, most often."""
    spans = [match.span() for match in re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\\]*"|true|false|null', raw)]
    if not spans:
        return raw + b"x"
    start, end = rng.choice(spans)
    return raw[:start] + rng.choice(TOKENS) + raw[end:]


TOKENS = [
    *(b"NaN", b"-Infinity", b"1e999", b"1e308", b"-1", b"0", b"null", b"true", b"[]", b"{}", b'""', b"9" * 5000),
    *(b'"\\ud800"', b'"\\u0000"', b'"../../../etc"', b"[" * 5000, b'{"a":' * 5000, b"1.5", b"-0.0", b"1e-320", b"[[]]"),
]  # fmt: skip


def _data(change: Callable[[Any, Any, random.Random], None]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, rng: random.Random) -> None:
        try:
            data = json.loads(path.read_bytes())
            places = list(_places(data))
            for _ in range(rng.randint(1, 2)):
                change(*rng.choice(places), rng)
        except (ValueError, IndexError, KeyError):
            path.write_bytes(_flipped(path.read_bytes(), rng))
            return
        path.write_text(json.dumps(data), encoding="utf-8")

    return mutate


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        yield data, key
        yield from _places(value)


def _other(inside: Any, key: Any, rng: random.Random) -> None:
    inside[key] = copy.deepcopy(rng.choice(VALUES))


def _gone(inside: Any, key: Any, rng: random.Random) -> None:
    del inside[key]


def _renamed(inside: Any, key: Any, rng: random.Random) -> None:
    if isinstance(inside, dict):
        inside[f"{key}{rng.choice(['x', '.', ' ', ''])}"] = inside.pop(key)


def _scaled(inside: Any, key: Any, rng: random.Random) -> None:
    if isinstance(inside[key], (int, float)):
        inside[key] = inside[key] * rng.choice([-1, 0, 1e-30, 1e30, 10**40])


def _emptied(inside: Any, key: Any, rng: random.Random) -> None:
    inside[key] = type(inside[key])() if isinstance(inside[key], (dict, list, str)) else None


def _place(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def replace(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return replace


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "a value is another": _data(_other),
    "a key is gone": _data(_gone),
    "a key is renamed": _data(_renamed),
    "a number is absurd": _data(_scaled),
    "a part is empty": _data(_emptied),
    "a token is another": _text(_token),
    "bytes are others": _text(_flipped),
    "the end is missing": _text(lambda raw, rng: raw[: rng.randrange(len(raw) or 1)]),
    "it is empty": _text(lambda raw, rng: b""),
    "it is not UTF-8": _text(lambda raw, rng: raw.replace(b"a", b"\xff")),
    "it is deep": _text(lambda raw, rng: rng.choice([b"[" * 100_000, b'{"schema_version": 1, "a":' * 5000, b"[]" * 9])),
    "it is gone": _place(lambda path: None),
    "it is a directory": _place(lambda path: path.mkdir()),
    "it is a FIFO": _place(lambda path: os.mkfifo(path)),
    "it is a device": _place(lambda path: path.symlink_to("/dev/zero")),
    "it leads to itself": _place(lambda path: path.symlink_to(path.name)),
}


@dataclass
class Tally:
    """What came of one kind of change."""

    tried: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def try_all(made: World, count: int, tell: Callable[[str], object] = lambda line: None) -> dict[str, Tally]:
    """Change a file `count` times, each time in a fresh copy of it, and read it in every way that may read it."""
    rng, files, kinds = random.Random(SEED), made.files(), list(KINDS.items())
    tallies: dict[str, Tally] = {}
    whole = len(load(made.runs[0]))
    for index in range(count):
        kind, change = kinds[index % len(kinds)]
        path = rng.choice(files)
        keep = path.with_name(f"{path.name}.kept")
        shutil.copy2(path, keep)
        moved = keep.rename(made.root.parent / "kept")
        tally = tallies.setdefault(kind, Tally())
        try:
            change(path, rng)
            readers = next((names for part, names in OF_FILE.items() if part in str(path)), None)
            for name in readers or rng.sample(sorted(READERS.keys() - SLOW), 3):
                tally.tried += 1
                fault, was_refused = _read(made, name, path)
                tally.refused += was_refused
                if fault:
                    tally.faults.append(f"{name}, {path.relative_to(made.root)}: {fault}")
                    tell(f"{index} {kind}: {tally.faults[-1]}")
            if path.is_relative_to(made.runs[0]):
                with contextlib.suppress(LlemError):
                    if len(load(made.runs[0])) < whole:
                        tally.lost.append(str(path))
                        tell(f"{index} {kind}: a result is lost with {path.relative_to(made.root)}")
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            moved.replace(path)
    return tallies


def _read(made: World, name: str, path: Path) -> tuple[str | None, bool]:
    """What must not be, if anything; and whether the reader refused the file."""
    printed = io.StringIO()
    refused = False
    try:
        with time_limit(LIMIT_S), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            READERS[name](made)
    except LlemError as error:
        refused = True
        if str(error) != "refused":
            printed.write(str(error))
    except SystemExit as ended:
        return f"SystemExit {ended.code}", False
    except (Exception, TooLongError) as problem:  # noqa: BLE001  (whatever it is, is the finding)
        return f"{type(problem).__name__}: {problem}"[:300], False
    finally:
        shutil.rmtree(made.root / "out", ignore_errors=True)
        with contextlib.suppress(OSError):
            (made.root / "out").unlink()
    text = printed.getvalue()
    if refused and not any(
        part in text for part in (path.name, path.parent.name, made.runs[0].name, made.runs[1].name)
    ):
        return f"refused without naming the file: {text[:300]}", True
    if not refused and re.search(r"(?<![\w/-])(?:nan|inf|NaN|Infinity)(?![\w/-])", text):
        return f"shows a number that is none: {text[:300]}", refused
    return None, refused


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "world"
        root.mkdir()
        tallies = try_all(world(root), options.tries, lambda line: sys.stdout.write(line + "\n"))
    rows: list[list[object]] = [
        [kind, each.tried, each.tried - each.refused - len(each.faults), each.refused, len(each.faults), len(each.lost)]
        for kind, each in tallies.items()
    ]
    rows.append(["all", *[sum(int(str(row[column])) for row in rows) for column in range(1, 6)]])
    heads = [
        "what was changed",
        "read",
        "taken, or not looked at",
        "refused by name",
        "traceback, hang or no number",
        "results lost",
    ]
    sys.stdout.write(table(heads, rows) + "\n")
    if options.write_docs:
        write_docs("files", table(heads, rows))


if __name__ == "__main__":
    main()
