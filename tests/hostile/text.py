"""Hostile text in everything that others write: studies, engines, servers, results. What people and programs then read
must be harmless: the terminal, GitHub's commands and Markdown, HTML, CSV, JUnit.

`python -m tests.hostile.text --write-docs` is the long form; `test_text` takes a part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pytest_llem import cli
from tests.hostile import gossip
from tests.hostile.report import SEED, table, write_docs

TEXTS = (
    "<script>pwned()</script>",
    '"><img src=x onerror=pwned()>',
    "</script><script>pwned()</script>",
    "' onmouseover='pwned()",
    "<!-- pwned",
    "]]><pwned/>",
    "&lt;script&gt;pwned()",
    "$pwned ${pwned} {{pwned}} {pwned} %(pwned)s",
    '=HYPERLINK("http://pwned")',
    "+cmd|' /C pwned'!A0",
    "－2+pwned",
    "@SUM(pwned)",
    "\tpwned",
    "\r=pwned",
    "| pwned |\n| --- |",
    "[pwned](javascript:pwned())",
    "![pwned](http://pwned/x.png)",
    "`pwned` **pwned** @pwned",
    "x\n# pwned\n",
    "x\n::error file=pwned::pwned",
    "x\n  ::add-mask::pwned",
    "::stop-commands::pwned",
    "x\n##[error]pwned",
    "%0A::warning file=pwned::pwned",
    "\x1b[2J\x1b[1;1Hpwned",
    "\x1b]0;pwned\x07",
    "\x1b]8;;http://pwned\x1b\\x\x1b]8;;\x1b\\",
    "\x9b31mpwned",
    "\u202epwned\u202c",
    "\u2066pwned",
    "\x00pwned",
    "x\rpwned",
    "x\x08\x08\x08pwned",
    "\ud800pwned",
    "x\u2028pwned",
    "\x7fpwned",
    "../../../../pwned",
    "/etc/pwned",
    "CON pwned.",
    "pwned" * 20_000,
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
COMMAND = re.compile(r"^\s*::(?!(?:error|warning) (?:file=[\w./-]+\.(?:yaml|py),line=\d+,)?title=)|##\[")
FORMULA = re.compile(r"^[=+@\t\r\n＝＋－＠-]")
NUMBER = re.compile(r"^[-+]?[0-9.]+(?:e[-+]?[0-9]+)?$")
STUDY = """\
engine: gossip
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement:
  {min_duration_s: 0.05, idle: {duration_s: 0.05}, warmup: {max_repeats: 1}, validity: {cpu_contended_rel: 1}}
execution: {cycles: 1, retries: 0, timeout_s: 60}
sweep: {model: [tells, fails, refuses]}
"""
BASE = {
    "model": "builtin:tiny-llama",
    "engine": "gossip",
    "workload": {"prompts": 2, "input_tokens": 8, "output_tokens": 4},
}
PLACES: Mapping[str, Callable[[str], dict[str, object]]] = {
    "name": lambda text: {"name": text},
    "title": lambda text: {"title": text},
    "tag": lambda text: {"tags": [text]},
    "model": lambda text: {"model": text},
    "id": lambda text: {"experiments": [{"id": text}]},
    "key": lambda text: {text: 1},
    "swept": lambda text: {"sweep": {"model": [text, "other"]}},
    "data set": lambda text: {"workload": {"dataset": text}},
    "base": lambda text: {"base": text},
    "budget": lambda text: {"expect": {text: "<= 1"}},
}


VERBS = (
    ("list", "{run}/.."),
    ("list", "{run}/..", "--json"),
    ("compare", "{run}", "{other}"),
    ("compare", "{run}", "{other}", "--format=json"),
    ("compare", "{run}", "{other}", "--format=markdown"),
    ("budget", "{run}", "--metric=output_tokens_per_s"),
    ("report", "{run}", "-o", "{made}.html"),
    ("export", "--format=csv", "{run}", "-o", "{made}.csv"),
)


@dataclass(frozen=True)
class Unsafe:
    """A text that came through: where it was given, where it came out, and what is wrong with it."""

    source: str
    place: str
    what: str


class Elements(HTMLParser):
    """What a page would run or load that came from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.dangerous: list[str] = []
        self._script: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Elements and attributes that this project's pages never have."""
        if tag in ("img", "iframe", "object", "embed", "base", "pwned"):
            self.dangerous.append(f"<{tag}>")
        links = [value for name, value in attrs if value and name in ("href", "src", "action", "formaction")]
        self.dangerous += [name for name, _ in attrs if name.startswith("on")]
        self.dangerous += [value for value in links if "pwned" in value]
        self._script = (dict(attrs).get("type") or "js") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        """The end of a script."""
        self._script = None

    def handle_data(self, data: str) -> None:
        """In a script, text from outside stands in JSON alone, and does not end it."""
        if self._script == "application/json":
            json.loads(data)
        elif self._script is not None and "pwned" in data:
            self.dangerous.append("a script")


def in_terminal(text: str) -> Iterable[str]:
    """What is wrong with a text for a terminal, and for GitHub, which reads commands in it."""
    for line in text.replace("\r\n", "\n").split("\n"):
        found = CONTROL.search(line)
        if found:
            yield f"control character {found.group()!r}"
        if COMMAND.search(line) and "pwned" in line:
            yield f"command {line.strip()[:20]!r}"


def in_html(text: str) -> Iterable[str]:
    """What is wrong with a page."""
    page = Elements()
    try:
        page.feed(text)
    except ValueError:
        yield "JSON that is cut off"
    yield from page.dangerous


def in_csv(text: str) -> Iterable[str]:
    """Cells that a spreadsheet would take for a formula."""
    for row in csv.reader(io.StringIO(text, newline="")):
        yield from (f"cell {cell[:20]!r}" for cell in row if FORMULA.match(cell) and not NUMBER.match(cell))


def in_markdown(text: str) -> Iterable[str]:
    """What GitHub would show as something else than text: elements, links, images, headings, broken tables."""
    for line in text.split("\n"):
        for mark, found in (
            ("an element", re.search(r"(?<![\\`])<[a-zA-Z!/]", re.sub(r"`[^`]*`", "", line))),
            ("a link", re.search(r"(?<!\\)\]\(", line)),
            ("a heading", re.match(r"# pwned", line)),
        ):
            if found:
                yield mark
    rows = [len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n") if line.startswith("|")]
    if len(set(rows)) > 2:
        yield "a table of another width"


def in_xml(text: str) -> Iterable[str]:
    """Whether it can be parsed at all."""
    try:
        ElementTree.fromstring(text)
    except ElementTree.ParseError as problem:
        yield f"not XML: {problem}"


def environment(directory: Path) -> dict[str, str]:
    """A world of its own, in GitHub's actions."""
    names = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in names if name in os.environ} | {
        "PYTHONPATH": gossip.register(directory / "site"),
        "LLEM_LEASE_DIR": str(directory / "leases"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(directory / "summary.md"),
    }


def pytest_run(directory: Path, env: Mapping[str, str], *arguments: str) -> str:
    """Run pytest; its output."""
    command = [sys.executable, "-m", "pytest", "-vv", "-rA", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=directory, env=dict(env), capture_output=True, timeout=300, check=False
    ).stdout.decode("utf-8", "surrogateescape")


def from_engines(directory: Path, texts: Sequence[str]) -> list[Unsafe]:
    """Engines and a server that say these texts."""
    says = directory / "says.json"
    says.write_text(json.dumps(list(texts)), encoding="utf-8")
    env = environment(directory) | {gossip.SAYS: str(says)}
    (directory / "engine.yaml").write_text(STUDY, encoding="utf-8")
    os.environ[gossip.SAYS] = str(says)
    server = gossip.Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    text = STUDY.replace("gossip", "openai").replace(
        "sweep: {model: [tells, fails, refuses]}", "model: builtin:tiny-llama"
    )
    (directory / "server.yaml").write_text(f"{text}openai: {{base_url: '{server.url}'}}\n", encoding="utf-8")
    try:
        output = pytest_run(
            directory,
            env,
            f"--llem-study={directory / 'engine.yaml'}",
            f"--llem-study={directory / 'server.yaml'}",
            "--llem-out=out",
            "--llem-html=report.html",
            "--junitxml=junit.xml",
            "-o",
            "junit_logging=no",
            "--show-capture=no",
        )
    finally:
        server.shutdown()
        server.server_close()
        del os.environ[gossip.SAYS]
    return judge("engine", directory, {"terminal": output})


CHECKS: Mapping[str, Callable[[str], Iterable[str]]] = {
    ".html": in_html,
    ".csv": in_csv,
    ".md": in_markdown,
    ".xml": in_xml,
    ".txt": in_terminal,
}


def judge(source: str, directory: Path, printed: Mapping[str, str]) -> list[Unsafe]:
    """What is wrong with what a run printed, and with the files that it wrote."""
    found = [(place, what) for place, text in printed.items() for what in in_terminal(text)]
    for path in directory.rglob("*"):
        if path.suffix in CHECKS and path.is_file() and "site" not in path.parts:
            found += [(path.name, what) for what in CHECKS[path.suffix](path.read_text(encoding="utf-8"))]
    return [Unsafe(source, place, what) for place, what in dict.fromkeys(found)]


def from_studies(directory: Path, texts: Sequence[str]) -> list[Unsafe]:
    """Studies with these texts in every place, that are collected, with the plan of a dry run."""
    options = []
    for number, text in enumerate(texts):
        for place, make in PLACES.items():
            path = directory / f"{place.replace(' ', '-')}-{number}.yaml"
            # JSON is YAML, apart from surrogates, which no YAML file can hold.
            path.write_text(json.dumps({**BASE, **make(text)}), encoding="utf-8")
            options.append(f"--llem-study={path}")
    env = environment(directory)
    output = pytest_run(directory, env, "--collect-only", *options)
    if "INTERNALERROR" in output or "Traceback" in output:
        raise AssertionError(output[-5000:])
    return judge("study", directory, {"terminal": output})


def from_results(directory: Path, texts: Sequence[str], rng: random.Random, count: int) -> list[Unsafe]:
    """Results of strangers, in which these texts stand for some of theirs, read by each verb that prints or writes."""
    study = STUDY.replace("gossip", "faulty").replace("tells, fails, refuses", "one, two")
    (directory / "results.yaml").write_text(study, encoding="utf-8")
    env = environment(directory) | {gossip.SAYS: ""}
    env["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[1] / "plugin" / "faulty_engine")
    for _ in range(2):
        # Estimated energy may be invalid on a busy machine, and then there would be nothing to compare.
        pytest_run(directory, env, "--llem-study=results.yaml", "--llem-out=out", "--llem-meter=none")
    runs = [path.parent for path in directory.glob("out/*/run.json")]
    original = {path: path.read_text(encoding="utf-8") for run in sorted(runs) for path in sorted(run.rglob("*.json"))}
    unharmed = {verb: _do(verb, runs, directory)[0] for verb in VERBS}
    if any(unharmed.values()):
        raise AssertionError(unharmed)
    found: list[Unsafe] = []
    read = shown = 0
    for _ in range(count):
        for path, whole in original.items():
            path.write_text(json.dumps(_with_texts(json.loads(whole), texts, rng)), encoding="utf-8")
        for verb in VERBS:
            for made in (*directory.glob("printed.*"), *directory.glob("made.*")):
                made.unlink()
            code, printed, errors = _do(verb, runs, directory)
            read += code == 0
            shown += "pwned" in printed
            name = f"printed.{'md' if verb[-1].endswith('markdown') else 'txt'}"
            (directory / name).write_text(printed, "utf-8", "replace")
            with (directory / "printed.txt").open("a", encoding="utf-8", errors="replace") as stream:
                stream.write(errors)
            found += [Unsafe(verb[0], unsafe.place, unsafe.what) for unsafe in judge("", directory, {})]
    if not shown or read < count:
        raise AssertionError(f"only {read} of {count * len(VERBS)} could be read, {shown} showed a text: too little")
    return list(dict.fromkeys(found))


def _do(verb: Sequence[str], runs: Sequence[Path], directory: Path) -> tuple[int, str, str]:
    """Run a verb of `llem` here; its exit code, and what it printed as output and as errors."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = cli.main([word.format(run=runs[0], other=runs[1], made=directory / "made") for word in verb])
    return code, printed.getvalue(), errors.getvalue()


def _with_texts(value: Any, texts: Sequence[str], rng: random.Random) -> Any:
    """A JSON value in which some texts are others; most files stay readable."""
    if isinstance(value, str):
        return rng.choice(texts) if rng.random() < 0.04 else value
    if isinstance(value, dict):
        return {key: _with_texts(item, texts, rng) for key, item in value.items()}
    return [_with_texts(item, texts, rng) for item in value] if isinstance(value, list) else value


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=100, help="damaged copies of two runs, each read by every verb")
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        parts = [Path(name) / part for part in ("engines", "studies", "results")]
        for part in parts:
            part.mkdir()
        by_source = {
            f"an engine and a server that say them: {2 * len(TEXTS)}": from_engines(parts[0], TEXTS),
            f"studies that hold them: {len(TEXTS) * len(PLACES)}": from_studies(parts[1], TEXTS),
            f"results that hold them, read by verbs of `llem`: {arguments.tries * len(VERBS)}": from_results(
                parts[2], TEXTS, random.Random(SEED), arguments.tries
            ),
        }
    for found in by_source.values():
        sys.stdout.writelines(f"{unsafe}\n" for unsafe in found)
    rows = [(source, len(found)) for source, found in by_source.items()]
    text = table((f"{len(TEXTS)} hostile texts", "came through"), rows)
    sys.stdout.write(f"{text}\n{time.monotonic() - begun:.0f} s\n")
    if arguments.write_docs:
        write_docs("text", text)


if __name__ == "__main__":
    main()
