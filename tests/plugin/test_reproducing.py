"""`llem preregister` and `llem reproduce` around a pytest of their own, as a user calls them."""

from __future__ import annotations

import json
import platform
import sys

import pytest

from pytest_llem.cli import main

STUDY = """\
model: busy
engine: faulty
workload: {prompts: 2, input_tokens: 8}
measurement:
  min_duration_s: 0.05
  idle: {duration_s: 0.1}
  warmup: {max_repeats: 1}
  validity: {cpu_contended_rel: 1.0}
sweep:
  workload.output_tokens: [4, 8]
execution: {cycles: 2}
"""


def test_another_laboratorys_study_is_measured_here(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a run's directory alone: its study's file has moved on, and the text that the run kept is what counts."""
    pytester.makefile(".yaml", study=STUDY)
    assert main(["preregister", "study.yaml", "--rule", "eight tokens cost less than twice as much"]) == 0
    run = pytester.runpytest("--llem-study=study.yaml", "--llem-out=theirs", "--llem-html=page.html")
    run.assert_outcomes(passed=4)
    run.stdout.fnmatch_lines(["study study: as registered (*"])
    assert "eight tokens cost less than twice as much" in (pytester.path / "page.html").read_text()
    pytester.makefile(".yaml", study="model: nothing-of-the-kind\n")
    found = pytester.run(sys.executable, "-m", "pytest_llem.cli", "reproduce", "theirs")
    assert found.ret in (0, 1, 3)
    found.stdout.fnmatch_lines(["this machine and theirs:", "*no difference was found", "reproduction: *"])
    kept = json.loads((pytester.path / "llem-results" / "reproduction" / "reproduction.json").read_text())
    (judged,) = kept["reproductions"]
    assert judged["reference"] == "output_tokens:4"
    assert [(figure["kind"], figure["experiment"]) for figure in judged["figures"]] == [
        ("ratio", "output_tokens:8"),
        ("level", "output_tokens:4"),
        ("level", "output_tokens:8"),
    ]
    assert "energy was estimated" in judged["notes"][0]
    # What they publish serves as well, and its methods say what was registered.
    assert main(["publish", "theirs", "-o", "paper", "--allow", platform.node()]) == 0
    assert "as registered" in (pytester.path / "paper" / "methods.md").read_text()
    capsys.readouterr()
    ours = str(pytester.path / "llem-results" / "reproduction" / "runs")
    main(["reproduce", "paper", "--run", ours, "--out", "again", "--format", "json"])
    again = json.loads((pytester.path / "again" / "reproduction.json").read_text())
    assert again["reproductions"] == kept["reproductions"]
    assert json.loads(capsys.readouterr().out) == again, "the differences of the machines stood in front"
    assert main(["reproduce", "paper", "--check", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["differs"], told["needed"], len(told["registered"])) == ([], [], 1)
    assert (told["registered"][0]["deviations"], told["registered"][0]["checked"]) == ([], True)
    study = pytester.path / "paper" / "studies" / "study.yaml"
    study.write_text(f"{study.read_text()}# key: ***\n")
    assert main(["reproduce", "paper", "--check"]) == 2
    assert "studies/study.yaml was changed" in capsys.readouterr().err
    assert main(["reproduce", "paper", "--check", "--study", str(study)]) == 0
    (study.parents[1] / "SHA256SUMS").unlink()  # as if it had been published so
    assert main(["reproduce", "paper", "--out", "again"]) == 2
    assert "study.yaml: has *** where secrets were" in capsys.readouterr().err
