"""The package of docs/extending.md: pip installs it as the page says, and what it adds is used by name."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llem.cli import main
from tests.installed import files, install


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install("extending.md", tmp_path_factory.mktemp("llem-extras"), target)
    return target


@pytest.fixture
def folder(installed: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study alone, with the package installed elsewhere."""
    (pytester.path / "extras.yaml").write_text(files("extending.md")["extras.yaml"], encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("LLEM_LEASE_DIR", str(pytester.path / "leases"))
    return pytester.path


@pytest.mark.engine
def test_what_a_package_adds_is_used_by_name(pytester: pytest.Pytester, folder: Path) -> None:
    options = ("--llem-study=extras.yaml", "--llem-meter=estimate", "--llem-html=report.html")
    run = pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider")
    run.assert_outcomes(passed=1, skipped=1)
    run.stdout.fnmatch_lines(["*energy_delay (J[*]s)*"])
    assert "Energy-delay product of a request" in (folder / "report.html").read_text()
    (result,) = (json.loads(path.read_text()) for path in folder.rglob("result.json"))
    (job,) = (json.loads(path.read_text()) for path in folder.rglob("job.json"))
    assert job["texts"]["texts"] == [f"What is {n} plus {n + 1}?" for n in range(4)]
    assert result["experiment"]["config"]["workload"]["dataset"] == "sums"
    assert (result["quality"]["scorer"], result["quality"]["scorer_version"]) == ("near", "llem-extras 1.0")
    assert (result["quality"]["questions"], len(result["quality"]["scores"])) == (4, 4)
    (gate,) = (json.loads(path.read_text()) for path in folder.rglob("gate.json"))
    (row,) = gate["rows"]
    delay = result["energy"]["joules_per_request"] * result["latency"]["e2el_s"]["mean"]
    assert (row["metric"], row["current"]) == ("energy_delay", pytest.approx(delay))
    (summary,) = folder.rglob("summary.csv")
    (cells,) = csv.DictReader(summary.read_text().splitlines())
    assert float(cells["energy_delay"]) == pytest.approx(delay)
    export = [sys.executable, "-m", "pytest_llem.cli", "export", "llem-results", "--format", "latex", "-o", "t.tex"]
    subprocess.run(export, cwd=folder, check=True, capture_output=True)
    # This process has not the package: what it measured is read all the same.
    assert main(["report", "llem-results", "-o", "without.html"]) == main(["list"]) == 0
    assert "Energy-delay" not in (folder / "without.html").read_text()
    assert re.fullmatch(r"extras & [\d.e+-]+ & 1 \\\\\n", (folder / "t.tex").read_text())


def test_a_run_without_a_study_does_not_import_it(pytester: pytest.Pytester, folder: Path) -> None:
    pytester.makepyfile("import sys\ndef test_plain(): assert not [m for m in sys.modules if m.startswith('llem_ex')]")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
