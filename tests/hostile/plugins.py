"""Other plugins of pytest, each with the option that makes it do its work: does a study end as it does without them?

`tests/plugin/test_other_plugins.py` runs the most used; the long form writes the table of all that are installed. Each
run has a process of its own, in which only pytest-llem, xdist and the plugins in question are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.hostile.report import table, write_docs

STUDY = """\
name: plugins
engine: faulty
dtype: float16
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement:
  {{min_duration_s: 0.05, idle: {{duration_s: 0.02}}, warmup: {{max_repeats: 1}}, validity: {{cpu_contended_rel: 1}}}}
sweep:
  model: [{models}]
execution: {{cycles: 2, retries: 0}}
expect: {{output_tokens_per_s: ">= 1"}}
"""
MODELS = "none, exception, lies"
"""Of the faulty engine's models the first is measured, the second fails, and the third is invalid in every cycle."""

EXPECTED = {"none": "valid", "exception": "failed", "lies": "invalid"}
ENGINE = Path(__file__).parents[1] / "plugin" / "faulty_engine"
END_S = 240
"""Chosen: a run takes 5 s alone, and several of these on a busy machine."""


@dataclass(frozen=True)
class Plugin:
    """A plugin by the name of its distribution, and the options that it does something with."""

    name: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Other plugins that it does not work without, by distribution."""

    @property
    def version(self) -> str | None:
        """The version that is installed, if any."""
        try:
            return distribution(self.name).version
        except PackageNotFoundError:
            return None

    @property
    def modules(self) -> list[str]:
        """What `-p` loads it by."""
        points = [point for name in (*self.needs, self.name) for point in distribution(name).entry_points]
        return [point.name for point in points if point.group == "pytest11"]


PLUGINS = {
    plugin.name: plugin
    for plugin in (
        Plugin("allure-pytest", ("--alluredir=allure",)),
        Plugin("flaky", ("--force-flaky", "--max-runs=3")),
        Plugin("pytest-asyncio", ("--asyncio-mode=auto",)),
        Plugin("pytest-benchmark", ("--benchmark-disable-gc",)),
        Plugin("pytest-check", ("--check-max-fail=1",)),
        Plugin("pytest-clarity", ("-vv",)),
        Plugin("pytest-codspeed", ("--codspeed",)),
        Plugin("pytest-cov", ("--cov=pytest_llem.session.collection", "--cov-report=json")),
        Plugin("pytest-csv", ("--csv=items.csv",)),
        Plugin("pytest-dependency", ("-o", "automark_dependency=true")),
        Plugin("pytest-dotenv", ("--envfile=plugins.env",)),
        Plugin("pytest-durations", ("--pytest-durations=5",)),
        Plugin("pytest-env", ("-o", "env=ANY=thing")),
        Plugin("pytest-excel", ("--excelreport=items.xlsx",)),
        Plugin("pytest-fail-slow", ("--fail-slow=200",)),
        Plugin("pytest-flakefinder", ("--flake-finder", "--flake-runs=2")),
        Plugin("pytest-forked", ("--forked",)),
        Plugin("pytest-freezer"),
        Plugin("pytest-github-actions-annotate-failures"),
        Plugin("pytest-harvest"),
        Plugin("pytest-html", ("--html=report.html", "--self-contained-html"), ("pytest-metadata",)),
        Plugin("pytest-icdiff"),
        Plugin("pytest-instafail", ("--instafail",)),
        Plugin("pytest-isolate", ("--isolate",)),
        Plugin("pytest-json-report", ("--json-report", "--json-report-file=report.json"), ("pytest-metadata",)),
        Plugin("pytest-memray", ("--memray",)),
        Plugin("pytest-mock"),
        Plugin("pytest-monitor", ("--db=monitor.db",)),
        Plugin("pytest-order", ("--order-scope=module",)),
        Plugin("pytest-ordering"),
        Plugin("pytest-parallel", ("--workers=2",)),
        Plugin("pytest-pretty"),
        Plugin("pytest-profiling", ("--profile",)),
        Plugin("pytest-progress", ("--show-progress",)),
        Plugin("pytest-random-order", ("--random-order",)),
        Plugin("pytest-randomly", ("-p", "no:cacheprovider")),
        Plugin("pytest-recording", ("--block-network",)),
        Plugin("pytest-repeat", ("--count=2",)),
        Plugin("pytest-reportlog", ("--report-log=items.jsonl",)),
        Plugin("pytest-rerunfailures", ("--reruns=2",)),
        Plugin("pytest-resource-usage"),
        Plugin("pytest-retry", ("--retries=2",)),
        Plugin("pytest-reverse", ("--reverse",)),
        Plugin("pytest-rich", ("--rich",)),
        Plugin("pytest-run-parallel", ("--parallel-threads=2",)),
        Plugin("pytest-shard", ("--num-shards=2", "--shard-id=0")),
        Plugin("pytest-skip-slow"),
        Plugin("pytest-socket", ("--disable-socket",)),
        Plugin("pytest-split", ("--splits=2", "--group=1")),
        Plugin("pytest-subtests"),
        Plugin("pytest-sugar", ("--force-sugar",)),
        Plugin("pytest-tap", ("--tap",)),
        Plugin("pytest-test-groups", ("--test-group-count=2", "--test-group=2")),
        Plugin("pytest-testmon", ("--testmon",)),
        Plugin("pytest-threadleak", ("-o", "threadleak=true")),
        Plugin("pytest-timeout", ("--timeout=120",)),
        Plugin("pytest-tldr"),
        Plugin("pytest-trio", ("-o", "trio_mode=true")),
        Plugin("pytest-xprocess"),
    )
}


MOST_USED = (
    "allure-pytest", "pytest-asyncio", "pytest-cov", "pytest-flakefinder", "pytest-forked", "pytest-html",
    "pytest-instafail", "pytest-json-report", "pytest-mock", "pytest-order", "pytest-random-order", "pytest-randomly",
    "pytest-repeat", "pytest-rerunfailures", "pytest-retry", "pytest-run-parallel", "pytest-socket", "pytest-split",
    "pytest-sugar", "pytest-testmon", "pytest-timeout",
)  # fmt: skip
"""What CI runs: some are installed for all tests, `.ci/plugins-tests.sh` adds the others."""


@dataclass(frozen=True)
class Ran:
    """What pytest said, and where."""

    directory: Path
    code: int
    output: str

    @cached_property
    def run(self) -> Path:
        """The run's directory."""
        (manifest,) = self.directory.glob("llem-results/*/run.json")
        return manifest.parent

    def counts(self) -> dict[str, int]:
        """How many items passed, failed and so on, by pytest's last line."""
        last = [line for line in self.output.splitlines() if re.search(r"\d+ (passed|failed)", line)][-1]
        return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error|rerun)", last)}

    def failures(self) -> set[str]:
        """The items that JUnit has as failed or as errors."""
        cases = ElementTree.parse(self.run / "junit.xml").getroot().findall(".//testcase")
        return {
            str(case.get("name"))
            for case in cases
            if case.find("failure") is not None or case.find("error") is not None
        }

    @property
    def refusal(self) -> str | None:
        """Why the run was refused, if it was; that takes one line."""
        errors = [line for line in self.output.splitlines() if line.startswith("ERROR: ")]
        return errors[0].removeprefix("ERROR: ") if self.code == 4 and errors else None

    def harm(self) -> list[str]:
        """What went wrong, if anything: whatever a plugin selects or repeats, what was measured must be told truly."""
        if self.refusal is not None:
            return ["a traceback beside the refusal"] if "Traceback" in self.output else []
        if "INTERNALERROR" in self.output:
            return ["INTERNALERROR"]
        try:
            items = json.loads((self.run / "run.json").read_text())["items"]
            failed = self.failures()
        except (ValueError, OSError, ElementTree.ParseError) as problem:
            return [f"no run: {type(problem).__name__}"]
        wrong = [f"exit code {self.code}"] if (self.code == 0) is bool(failed) else []
        for model in MODELS.split(", "):
            own = [item for item in items if item["experiment_id"] == f"model:{model}"]
            wrong += [f"{model} is {item['state']}" for item in own if item["state"] != EXPECTED[model]]
            wrong += [f"{model} was tried {len(item['attempts'])} times" for item in own if len(item["attempts"]) != 1]
            red = any(f"model:{model}" in name for name in failed)
            if own and red is (EXPECTED[model] == "valid"):
                wrong.append(f"{model} is {'red' if red else 'green'}")
        return list(dict.fromkeys(wrong))


def run(directory: Path, *names: str, more: Sequence[str] = (), study: str | None = None) -> Ran:
    """Run the study with these plugins alone, each with the option that makes it do its work."""
    (directory / "plugins.yaml").write_text(study or STUDY.format(models=MODELS), encoding="utf-8")
    return _pytest(directory, names, ["--llem-study=plugins.yaml", "--llem-meter=none", *more])


def works_elsewhere(directory: Path, name: str) -> bool:
    """Whether a test that passes on its own passes under a plugin, with this version of pytest and no study."""
    (directory / "test_plain.py").write_text("def test_plain():\n    assert True\n", encoding="utf-8")
    return _pytest(directory, [name], ["test_plain.py"]).code in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    )


def _pytest(directory: Path, names: Sequence[str], arguments: Sequence[str]) -> Ran:
    plugins = [PLUGINS[name] for name in names]
    modules = dict.fromkeys(["llem", "xdist", *(module for plugin in plugins for module in plugin.modules)])
    loaded = [part for module in modules for part in ("-p", module)]
    options = [option for plugin in plugins for option in plugin.options]
    path = os.pathsep.join(filter(None, [str(ENGINE), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
        "LLEM_LEASE_DIR": str(directory / "leases"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", *loaded, *options, *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=END_S)
    return Ran(directory, done.returncode, done.stdout + done.stderr)


def verdict(name: str) -> tuple[str, str]:
    """What came of a study under a plugin, and what pytest printed."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            ran = run(Path(directory), name)
        except subprocess.TimeoutExpired as problem:
            return "hangs", str(problem.stdout)
        if ran.code == pytest.ExitCode.NO_TESTS_COLLECTED:
            return "selects nothing of a study", ran.output
        harm = ran.harm()
        if ran.refusal is not None and not harm:
            return f"refused: {ran.refusal}", ran.output
        if harm and not works_elsewhere(Path(directory), name):
            return "fails any test with this pytest", ran.output
        return "; ".join(harm) or "works", ran.output


def main() -> None:
    """Try every plugin that is installed, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="this plugin alone (repeatable)")
    parser.add_argument("--verbose", action="store_true", help="print what pytest printed where something went wrong")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    rows: list[tuple[str, str, str, str]] = []
    for name in options.only or PLUGINS:
        version = PLUGINS[name].version
        if version is None:
            continue
        came, output = verdict(name)
        print(name, version, came, output[-5000:] if options.verbose and came != "works" else "", flush=True)
        rows.append((name, version, " ".join(f"`{option}`" for option in PLUGINS[name].options), came))
    counts = ", ".join(f"{count} {word}" for word, count in Counter(row[3].partition(":")[0] for row in rows).items())
    text = f"{len(rows)} plugins with pytest {pytest.__version__}: {counts}."
    print(text)
    if options.write_docs:
        write_docs("plugins", f"{text}\n\n{table(('plugin', 'version', 'options', 'what came of it'), rows)}")


if __name__ == "__main__":
    main()
