"""Wrong studies: mutations of valid ones (studies/, docs/, LLenergyMeasure's files), and the worst that one can be.

Every study gives a plan, or one message with file, line and column: no traceback, and no wait. The long form also
collects each with pytest itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from pytest_llem.errors import LlemError
from pytest_llem.job.wire import encode
from pytest_llem.study import Study, load_study
from pytest_llem.study.declared import keys_of
from pytest_llem.study.fields import table as settings_table
from pytest_llem.study.llenergymeasure import DROPPED, REFUSED, RENAMES
from pytest_llem.study.schema import StudyDocument
from tests.hostile.report import SEED, table, write_docs

ROOT = Path(__file__).parents[2]
FOLDERS = ("studies", "tests/unit/study/llenergymeasure")
LIMIT_S = 30.0
"""Chosen: what takes longer hangs, for a user; on an idle machine nothing here takes five seconds."""
BATCH = 100
"""Studies that one run of pytest collects."""
COLLECTED = 4
"""Every fourth is collected by pytest as well, which takes ten times as long as loading it."""

WORDS = sorted(
    {
        *settings_table(),
        *keys_of(StudyDocument),
        *RENAMES,
        *DROPPED,
        *REFUSED,
        "range",
        "linspace",
        "scale",
        "id",
        "validity",
    }
)
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**18, 10**400, -0.0, 1e308, float("inf"), float("nan"), 0.1),
    *("", " ", "no", "off", "~", "~nobody/x", "..", "/", "/dev/zero", "/dev/null", "a" * 300, "x" * 100_000),
    *("nan", "1e999", "1_000", "0x10", "10:30", "2026-11-29", "\0", "\x1b[31m", "\u202e", "\ud800", "\U0001f600"),
    *("${", "${HOME}", "${NOWHERE}", "${X:-}", "<= 1", "5%", "-5%", "%s %d {0}", "docker:", "nonsense:x", "../../x"),
    *([], {}, [[]], [{}], {"": 1}, {"a.b": 1}, {".": 1}, {"a..b": {}}, [None], [1, "a", None, {}], {1: 2}),
    *({"range": [1, 10**9]}, {"range": [1]}, {"range": "x"}, {"linspace": [0, 1, 10**12]}, {"range": [0, 1, 0]}),
    *({"range": [1, 64], "scale": "log2"}, {"linspace": [0, float("nan"), 3]}, list(range(1000)), {"low": 1}),
]  # fmt: skip
LINES = [
    *("- a", "a: b: c", "\t- x", "? a", "<<: *nowhere", "&a *a", "!!python/object:os.system x", "---", "...", "%YAML"),
    *("a: [", "a: {", "}", "]", "'", '"', "a: |", "a: !!binary x", "a: !!timestamp x", "1: 2", "[a]: b", "{a: b}: c"),
    *("base: study.yaml", "base: .", "base: /dev/zero", "base: [absent.yaml, 7]", "runners: {transformers: nonsense}"),
    *('a: "\\ud800"', 'title: "\\x00"', "base: ~", "model: *m", "sweep: {seed: {range: [0, 99999999]}}", "tags: a"),
]  # fmt: skip


def seeds() -> list[str]:
    """The valid studies of this project, without the names that would make two of one run clash."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.yaml"))]
    texts = [path.read_text(encoding="utf-8") for path in files if not path.stem.startswith("study-full")]
    for page in sorted((ROOT / "docs").glob("*.md")):
        texts += re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as directory:
        path, valid = Path(directory) / "study.yaml", []
        for text in texts:
            for whole in (text, f"model: builtin:tiny-llama\n{text}"):
                path.write_text(re.sub(r"(?m)^name:.*\n", "", whole), encoding="utf-8")
                if isinstance(attempt(path).outcome, Study):
                    valid.append(path.read_text(encoding="utf-8"))
                    break
    return valid


def mutations(count: int, seed: int = SEED) -> Iterator[tuple[str, bytes]]:
    """`count` mutated studies, each with the kind of its mutation."""
    rng, valid = random.Random(seed), seeds()
    kinds = list(KINDS.items())
    for index in range(count):
        kind, mutate = kinds[index % len(kinds)]
        changed = mutate(rng.choice(valid), rng)
        yield kind, changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass")


def _lines(change: Callable[[list[str], int, random.Random], None]) -> Callable[[str, random.Random], str]:
    def mutate(text: str, rng: random.Random) -> str:
        lines = text.splitlines()
        for _ in range(rng.randint(1, 2)):
            change(lines, rng.randrange(len(lines)), rng)
        return "\n".join(lines) + "\n"

    return mutate


def _indent(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = rng.choice([" ", "  ", "\t", "    "]) + lines[at]


def _insert(lines: list[str], at: int, rng: random.Random) -> None:
    indent = re.match(r"\s*", lines[at])[0]  # type: ignore[index]  # it always matches
    lines.insert(at, indent + rng.choice(LINES))


def _swap(lines: list[str], at: int, rng: random.Random) -> None:
    other = rng.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


def _scalar(lines: list[str], at: int, rng: random.Random) -> None:
    value = rng.choice(VALUES)
    written = str(value)[:400] if isinstance(value, str) else json.dumps(value, default=str)[:400]
    lines[at] = re.sub(r"(:\s+).*", lambda match: match[1] + written, lines[at], count=1)


def _bytes(text: str, rng: random.Random) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def _truncated(text: str, rng: random.Random) -> bytes:
    return text.encode()[: rng.randrange(len(text))]


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        yield data, key
        yield from _places(value)


def _data(change: Callable[[Any, Any, random.Random], None]) -> Callable[[str, random.Random], str]:
    def mutate(text: str, rng: random.Random) -> str:
        data = yaml.load(text, yaml.CSafeLoader)
        for _ in range(rng.randint(1, 2)):
            change(*rng.choice(list(_places(data))), rng)
        return yaml.dump(data, sort_keys=False, allow_unicode=rng.random() < 0.5)

    return mutate


def _other_value(inside: Any, key: Any, rng: random.Random) -> None:
    inside[key] = copy.deepcopy(rng.choice(VALUES))


def _other_setting(inside: Any, key: Any, rng: random.Random) -> None:
    value = rng.choice([inside[key], *VALUES])
    if isinstance(inside, dict):
        inside[rng.choice(WORDS)] = copy.deepcopy(value)
    else:
        inside.append(copy.deepcopy(value))


def _misspelt(inside: Any, key: Any, rng: random.Random) -> None:
    if isinstance(inside, dict) and key in inside:
        word = str(key)
        at = rng.randrange(len(word) or 1)
        inside[word[:at] + rng.choice("xé. \0\u202e") + word[at + rng.randint(0, 1) :]] = inside.pop(key)


def _deeper(inside: Any, key: Any, rng: random.Random) -> None:
    value = inside[key]
    for _ in range(rng.choice([1, 2, 60, 70])):
        value = rng.choice([[value], {"a": value}, {rng.choice(WORDS): value}])
    inside[key] = value


def _moved(inside: Any, key: Any, rng: random.Random) -> None:
    value = inside[key]
    if isinstance(inside, dict):
        inside[rng.choice(["sweep", "exclude", "experiments", "expect", "compare", "execution", "docker", "ray"])] = (
            copy.deepcopy(rng.choice([value, [value], {str(key): value}, {str(key): [value]}, [{str(key): value}]]))
        )


KINDS: dict[str, Callable[[str, random.Random], str | bytes]] = {
    "a line is gone": _lines(lambda lines, at, rng: lines.__setitem__(at, "")),
    "a line is twice": _lines(lambda lines, at, rng: lines.insert(at, lines[at])),
    "lines change places": _lines(_swap),
    "a line is indented": _lines(_indent),
    "a line is strange": _lines(_insert),
    "a value is strange": _lines(_scalar),
    "bytes are others": _bytes,
    "the end is missing": _truncated,
    "a value has another type": _data(_other_value),
    "a setting stands elsewhere": _data(_other_setting),
    "a key is misspelt": _data(_misspelt),
    "a value lies deeper": _data(_deeper),
    "a part stands in another": _data(_moved),
}


def places(directory: Path, *, huge: bool = True) -> dict[str, Path]:
    """Studies that are no plain file, or a very deep or wide one; with `huge`, those of 10 MB and more."""
    made: dict[str, Path] = {}

    def study(name: str, text: str | bytes = "") -> Path:
        made[name] = directory / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.yaml"
        if text:
            made[name].write_bytes(text if isinstance(text, bytes) else text.encode())
        return made[name]

    os.mkfifo(study("a FIFO"))
    study("a base that is a FIFO", f"model: m\nbase: {made['a FIFO'].name}\n")
    study("a base that is a device", "model: m\nbase: /dev/zero\n")
    study("a base that is a terminal", "model: m\nbase: /dev/tty\n")
    study("a base that is a directory", "model: m\nbase: .\n")
    study("a base of a user that there is not", "model: m\nbase: ~nobody-here/x\n")
    study("a link to a device").symlink_to("/dev/zero")
    study("a link to itself").symlink_to("a-link-to-itself.yaml")
    study("a link to nothing").symlink_to("absent.yaml")
    study("a directory").mkdir()
    study("a file without bytes").touch()
    if huge:
        study("10 MB in one line", "model: m\ntitle: " + "x" * 10_000_000)
        study("10 MB in one list", "model: m\ntags: [" + "a, " * 3_300_000 + "a]")
        study("10 MB of brackets", "model: m\ntags: " + "[" * 10_000_000)
        study("10 MB of braces in a line", "model: m\ntags: " + "{a: " * 2_500_000)
        study("10 MB of sequences in a line", "model: m\ntags: " + "- " * 5_000_000)
        study("10 MB of mappings", "model: m\ntags:\n" + "".join(" " * depth + "a:\n" for depth in range(4_400)))
        study("10 MB of comments", "model: m\n" + "# a\n" * 2_500_000)
        study("10 MB of blank lines", "\n" * 10_000_000)
        study("10 MB of keys", "model: m\n" + "".join(f"k{index}: 1\n" for index in range(900_000)))
        study("10 MB of experiments", "model: m\nexperiments:\n" + "- {seed: 1}\n" * 800_000)
        study("10 MB of anchors", "model: m\ntags:\n" + "".join(f"- &a{index} a\n" for index in range(700_000)))
        study("10 MB of settings", "model: m\nexpect: {" + "energy_j: 1, " * 750_000 + "}")
        study("10 MB of one word", "a" * 10_000_000)
        study("10 MB of a quoted word", "'" + "a" * 10_000_000)
        study("10 MB of zeros", bytes(10_000_000))
        study("10 MB that is not UTF-8", b"a: " + b"\xff" * 10_000_000)
        study("10 MB of placeholders", "model: m\ntitle: " + "${X:-" * 2_000_000)
        study("10 MB of quoted dollars", "model: m\ntitle: " + "$${" * 3_300_000)
        study("10 MB of digits", "model: m\nseed: " + "9" * 10_000_000)
        study("10 MB in a tag", "model: m\nseed: !" + "a" * 10_000_000 + " 1")
        study("10 MB of documents", "model: m\n" + "---\na: 1\n" * 1_000_000)
        study("33 MB", b"#" * 33_000_000)
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 40)]
    study("aliases that grow", "model: m\na0: &a0 [1]\n" + "\n".join(levels))
    study("merges that grow", "model: m\nm0: &m0 {a: 1}\n" + "\n".join(
        f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 9)}]}}" for level in range(1, 40)
    ))  # fmt: skip
    study("an alias in itself", "model: m\ntags: &t [*t]\n")
    study("a merge of itself", "model: m\nworkload: &w {<<: *w}\n")
    study("a long chain of merges", "model: m\nm0: &m0 {a: 1}\n" + "\n".join(
        f"m{level}: &m{level} {{<<: *m{level - 1}, b{level}: 1}}" for level in range(1, 2000)
    ))  # fmt: skip
    wide = "".join(f"  k{index}: [1, 2]\n" for index in range(60))
    study("a sweep of unknown axes", f"model: m\nsweep:\n{wide}")
    study("a sweep of 10^18 points", "model: m\nsweep:\n" + "".join(
        f"  {path}: {{linspace: [0.1, 0.9, 1000]}}\n" for path in
        ("decoding.temperature", "decoding.top_p", "decoding.min_p", "decoding.repetition_penalty",
         "transformers.length_penalty", "workload.arrival.rate")
    ))  # fmt: skip
    study("ranges without end", "model: m\nsweep: {seed: [" + "{range: [0, 99999]}, " * 200 + "]}\n")
    study("a group without end", "model: m\nsweep:\n  g: [" + "{seed: {range: [0, 99999]}}, " * 200 + "]\n")
    study(
        "exclusions without end", "model: m\nsweep: {seed: {range: [0, 9999]}}\nexclude:\n" + "- {seed: 1}\n" * 10_000
    )
    for index in range(40):
        (directory / f"base{index}.yaml").write_text(f"base: [{', '.join([f'base{index + 1}.yaml'] * 9)}]\n")
    study("bases that grow", "model: m\nbase: base0.yaml\n")
    return made


@dataclass
class Attempt:
    """What came of a study: a plan, an error of this project, or something that must not be."""

    outcome: Study | LlemError | BaseException
    seconds: float = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong with it; `None` for a plan, and for a message with file, line and column."""
        if isinstance(self.outcome, Study):
            return None
        if not isinstance(self.outcome, LlemError):
            return f"{type(self.outcome).__name__}: {self.outcome}"[:300]
        is_located = re.match(r"[^\n]*:\d+:\d+: .", self.outcome.message)
        return None if is_located else f"no place in {self.outcome.message[:300]}"


class TooLongError(BaseException):
    """A study took longer than `LIMIT_S`. Not an Exception: nothing may catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLongError` in the block after that time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(path: Path) -> Attempt:
    """Load a study and use its plan as a run does: hashes, ids, keywords, order, JSON."""
    begun = time.perf_counter()
    try:
        with time_limit(LIMIT_S):
            outcome: Study | LlemError | BaseException = _loaded(path)
    except (Exception, TooLongError) as problem:  # noqa: BLE001  (whatever it is, is the finding)
        outcome = problem
    return Attempt(outcome, time.perf_counter() - begun)


def _loaded(path: Path) -> Study | LlemError:
    try:
        study = load_study(path, env={"HOME": "/root"})
    except LlemError as error:
        str(error).encode()
        return error
    for experiment in study.experiments[:20]:
        text = json.dumps([encode(experiment.config), experiment.config_hash, experiment.keywords, experiment.id])
        json.loads(text.encode())
        experiment.id.encode()
    study.schedule(order="shuffled")
    json.dumps(encode(study.execution), allow_nan=False)
    return study


@dataclass
class Tally:
    """What came of the studies of one kind."""

    tried: int = 0
    planned: int = 0
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0


def try_all(
    count: int, directory: Path, tell: Callable[[str], object] = lambda line: None, *, huge: bool = True
) -> dict[str, Tally]:
    """Try `count` mutations, and every odd place; `tell` hears of each fault."""
    tallies: dict[str, Tally] = {}

    def judge(kind: str, path: Path) -> None:
        tally, result = tallies.setdefault(kind, Tally()), attempt(path)
        tally.tried += 1
        tally.planned += isinstance(result.outcome, Study)
        tally.longest_s = max(tally.longest_s, result.seconds)
        if result.fault is not None:
            tally.faults.append(f"{path.name}: {result.fault}")
            tell(f"{kind}: {path}: {result.fault}")

    for index, (kind, raw) in enumerate(mutations(count)):
        path = directory / f"m{index}.yaml"
        path.write_bytes(raw)
        judge(kind, path)
    for path in places(directory, huge=huge).values():
        judge("no plain file, or a huge one", path)
    return tallies


def collect(paths: list[Path], directory: Path) -> list[Path]:
    """Those that give pytest a traceback when it collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    options = [f"--llem-study={path}" for path in paths]
    done = subprocess.run([*command, *options], cwd=directory, capture_output=True, text=True, check=False, timeout=300)
    output = done.stdout + done.stderr
    if "Traceback" not in output and "INTERNALERROR" not in output:
        return []
    if len(paths) == 1:
        return paths
    half = len(paths) // 2
    return collect(paths[:half], directory) + collect(paths[half:], directory)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tallies = try_all(options.tries, directory, lambda line: sys.stdout.write(line + "\n"))
        mutated = sorted(directory.glob("m[0-9]*.yaml"))[::COLLECTED]
        broken = [bad for at in range(0, len(mutated), BATCH) for bad in collect(mutated[at : at + BATCH], directory)]
        for path in broken:
            sys.stdout.write(f"pytest gives a traceback: {path.read_bytes()[:2000]!r}\n")
    rows: list[list[object]] = [
        [kind, each.tried, each.planned, each.tried - each.planned - len(each.faults), len(each.faults),
         f"{each.longest_s:.1f} s"]
        for kind, each in tallies.items()
    ]  # fmt: skip
    total = [sum(int(str(row[column])) for row in rows) for column in range(1, 5)]
    rows.append(["all", *total, f"{max(each.longest_s for each in tallies.values()):.1f} s"])
    heads = ["what was changed", "tried", "still a plan", "refused with its place", "traceback or hang", "longest"]
    collected = f"Collected by pytest as well: {len(mutated)} of the mutated ones, with {len(broken)} tracebacks."
    text = f"{table(heads, rows)}\n\n{collected}"
    sys.stdout.write(text + "\n")
    if options.write_docs:
        write_docs("studies", text)


if __name__ == "__main__":
    main()
