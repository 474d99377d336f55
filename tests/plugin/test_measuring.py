"""A whole run on the real tiny model: what a user sees, and what is on disk afterwards."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

SECRET = "hf_" + "a1" * 17
BASE = f"""\
model: builtin:tiny-llama  # mirrored with {SECRET}
engine: transformers
"""
STUDY = """\
name: small
title: A small study
base: common.yaml
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement: {min_duration_s: 0.1, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
sweep:
  transformers.batch_size: [1, 2]
execution: {cycles: 2}
"""
AT_ONCE = STUDY.replace("base: common.yaml", "model: none\nengine: faulty").replace(
    "transformers.batch_size: [1, 2]", "dtype: [float32, bfloat16]"
)
"""The same on an engine that is ready at once, for what is the same with every engine."""


@dataclass(frozen=True)
class Run:
    """A finished pytest run."""

    output: str
    returncode: int
    directory: Path

    @property
    def cycles(self) -> list[Path]:
        return sorted(path.parent for path in self.directory.glob("small/*/c*/job.json"))


def pytest_run(directory: Path, *arguments: str) -> Run:
    environment = {**os.environ, "LLEM_LEASE_DIR": str(directory / "leases"), "COLUMNS": "120"}
    environment.pop("CI", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llem-study=small.yaml", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    runs = sorted((directory / "llem-results").glob("*/run.json"))
    return Run(done.stdout + done.stderr, done.returncode, runs[-1].parent if runs else directory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("measured")
    (directory / "small.yaml").write_text(STUDY)
    (directory / "common.yaml").write_text(BASE)
    return pytest_run(directory)


def test_every_cycle_passes_and_is_on_disk(run: Run) -> None:
    assert run.returncode == 0, run.output
    assert "4 passed" in run.output
    names = {"job.json", "events.jsonl", "measurement.json", "result.json", "worker.log", "state.json"}
    names |= {"power.parquet", "requests.parquet"}
    assert len(run.cycles) == 4
    for cycle in run.cycles:
        assert names <= {path.name for path in cycle.iterdir()}
    assert (run.directory.parent / ".gitignore").is_file()


def test_the_terminal_shows_a_row_per_experiment_and_where_the_artifacts_are(run: Run) -> None:
    head = r"^batch_size +[mµ]?J/token\*? +[mµ]?J/request\*? +tokens/s +valid"
    assert re.search(head, run.output, re.MULTILINE)
    for size in (1, 2):
        assert re.search(rf"^ +{size} +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+ .* 2/2", run.output, re.MULTILINE)
    assert f"artifacts: llem-results/{run.directory.name}" in run.output
    assert "energy NOT measured: estimate" in run.output or "energy measured by " in run.output


def test_the_same_work_is_done_and_counted_in_every_cycle(run: Run) -> None:
    results = [json.loads((cycle / "result.json").read_text()) for cycle in run.cycles]
    assert {result["workload"]["prompts_hash"] for result in results} == {results[0]["workload"]["prompts_hash"]}
    assert {result["workload"]["outputs_hash"] for result in results} == {results[0]["workload"]["outputs_hash"]}
    for result in results:
        repeats = result["workload"]["repeats"]
        assert (result["workload"]["input_tokens"], result["workload"]["output_tokens"]) == (16, 8)
        assert result["tokens"] == {"input": 16 * repeats, "output": 8 * repeats, "cached_input": None}


def test_energy_is_estimated_or_measured_and_says_which(run: Run) -> None:
    for cycle in run.cycles:
        energy = json.loads((cycle / "result.json").read_text())["energy"]
        assert energy["meter"] in ("estimate", "rapl", "nvml")
        assert energy["measured"] is (energy["meter"] != "estimate")
        assert energy["energy_j"] > 0
        assert (energy["source"] is None) is energy["measured"]


def test_later_cycles_fork_from_a_preloaded_server(run: Run) -> None:
    methods = {json.loads((cycle / "result.json").read_text())["runner"]["start_method"] for cycle in run.cycles}
    assert methods == {"forkserver"}


def test_junit_holds_the_headline_of_every_cycle(run: Run) -> None:
    cases = ElementTree.parse(run.directory / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == 4
    for case in cases:
        properties = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        assert properties["llem_status"] == "valid"
        assert float(properties["llem_joules_per_output_token"] or "nan") > 0
        assert float(properties["llem_joules_per_output_token_uncertainty"] or "nan") > 0
        artifact = run.directory.parent.parent / (properties["llem_artifact"] or "")
        assert (artifact / "result.json").is_file()


def test_junit_states_an_experiments_value_and_uncertainty_with_its_last_cycle(run: Run) -> None:
    summary = json.loads((run.directory / "summary.json").read_text())
    expected = {
        row["experiment_id"]: tuple(
            row["metrics"]["joules_per_output_token"][name] for name in ("value", "uncertainty")
        )
        for row in summary["experiments"]
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for case in ElementTree.parse(run.directory / "junit.xml").getroot().iter("testcase"):
        stated = {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}
        name = "llem_experiment_joules_per_output_token"
        if name in stated:
            pair = float(stated[name]), float(stated[f"{name}_uncertainty"])
            found.setdefault(stated["llem_experiment"], []).append(pair)
    assert found == {experiment: [pair] for experiment, pair in expected.items()}


def test_manifest_and_summaries_name_every_cycle(run: Run) -> None:
    manifest = json.loads((run.directory / "run.json").read_text())
    assert [item["state"] for item in manifest["items"]] == ["valid"] * 4
    assert manifest["finished_at"]
    summary = json.loads((run.directory / "summary.json").read_text())
    assert [row["cycles_valid"] for row in summary["experiments"]] == [2, 2]
    with (run.directory / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["experiment"] for row in rows] == ["batch_size:1", "batch_size:2"]
    assert float(rows[0]["joules_per_output_token"]) > 0


def test_the_manifest_keeps_what_was_asked_for_without_secrets(run: Run) -> None:
    """A study that is edited after its run once left nobody able to tell what had been measured."""
    manifest = json.loads((run.directory / "run.json").read_text())
    directory = run.directory.parent.parent
    called = manifest["invocation"]
    assert called["command"] == ["pytest", "-p", "no:cacheprovider", "--llem-study=small.yaml"]
    assert (called["directory"], called["rootdir"], manifest["interrupted"]) == (str(directory), str(directory), False)
    [study] = manifest["studies"]
    [base] = study["bases"]
    assert (study["title"], study["headline"]) == ("A small study", "joules_per_output_token")
    assert (study["text"], base["path"]) == (STUDY, str(directory / "common.yaml"))
    assert base["text"] == BASE.replace(SECRET, "***")
    assert base["sha256"] == hashlib.sha256(BASE.encode()).hexdigest()


def test_a_cycle_can_be_repeated_by_hand_and_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest_llem.worker", str(run.cycles[0])]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--out" in refused.stderr
    again = subprocess.run([*command, "--out", str(tmp_path / "again")], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    first, second = (
        json.loads((place / "measurement.json").read_text()) for place in (run.cycles[0], tmp_path / "again")
    )
    assert first["prompts_hash"] == second["prompts_hash"]
    assert first["repeats"][0]["outputs_hash"] == second["repeats"][0]["outputs_hash"]


@pytest.fixture
def at_once(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(AT_ONCE)
    return tmp_path


def test_xdist_workers_share_one_run(at_once: Path) -> None:
    spread = pytest_run(at_once, "-n", "2", "--llem-meter=none")
    assert spread.returncode == 0, spread.output
    assert "4 passed" in spread.output
    assert len(list(at_once.glob("llem-results/*/run.json"))) == 1
    assert len(spread.cycles) == 4
    manifest = json.loads((spread.directory / "run.json").read_text())
    assert manifest["invocation"]["command"][-2:] == ["2", "--llem-meter=none"]  # written by a worker
    assert re.search(r"^float32 .* 2/2$", spread.output, re.MULTILINE), spread.output
    assert "J/token" not in spread.output, "a column of nothing"
    energy = json.loads((spread.cycles[0] / "result.json").read_text())["energy"]
    assert (energy["meter"], energy["energy_j"], energy["joules_per_output_token"]) == ("none", None, None)


def test_a_users_own_junit_path_is_respected(at_once: Path) -> None:
    own = pytest_run(at_once, "--junitxml=own.xml", "-k", "float32 and c1")
    assert (at_once / "own.xml").is_file()
    assert not (own.directory / "junit.xml").exists()


def test_a_users_test_measures_what_it_asks_for_once(at_once: Path) -> None:
    (at_once / "test_budget.py").write_text(
        """
import pytest

@pytest.mark.llem_study("small.yaml")
def test_budget(llem_result):
    assert llem_result.energy.joules_per_output_token < 1000

@pytest.mark.llem_study("small.yaml")
def test_cycles(llem_results):
    assert len(llem_results) == 2

def test_own_code(llem_meter):
    with llem_meter() as meter:
        sum(range(10**6))
    assert meter.energy_j > 0
    assert meter.duration_s > 0
"""
    )
    own = pytest_run(at_once, "test_budget.py", "-k", "float32 or own_code")
    assert own.returncode == 0, own.output
    # Two cycles from the study itself, two budgets, one test over both cycles, one over own code.
    assert "6 passed" in own.output
    assert len(own.cycles) == 2
