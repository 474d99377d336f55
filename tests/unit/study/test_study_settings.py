"""User settings: one precedence, and each value with its source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llem.errors import SettingsError
from pytest_llem.study import load_study
from pytest_llem.study.settings import load_settings, report_lines


def user_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_precedence_command_line_environment_ini_user_default(tmp_path: Path) -> None:
    path = user_file(tmp_path, "out: theirs\nmeter: rapl\nrun: explicit\nbaseline_dir: b\n")

    settings = load_settings(
        command_line={"out": "cli", "meter": None},
        env={"LLEM_OUT": "env", "LLEM_METER": "nvml", "LLEM_RUN": ""},
        ini={"out": "ini", "meter": "ini", "baseline_dir": "ini", "strict": "true"},
        path=path,
    )

    found = {setting.name: (setting.value, setting.source, setting.where) for setting in settings}
    assert found["out"] == ("cli", "command line", "--llem-out")
    assert found["meter"] == ("nvml", "environment", "LLEM_METER")
    assert found["baseline_dir"] == ("ini", "ini", "llem_baseline_dir")
    assert found["run"] == ("explicit", "user settings", f"{path}:3:6")
    assert found["strict"] == (True, "ini", "llem_strict")
    assert found["cycles"] == (3, "default", None)


def test_only_what_is_said_for_this_run_stands_above_a_study(tmp_path: Path) -> None:
    path = user_file(tmp_path, "execution: {cycles: 5, order: shuffled, retries: 0}\n")

    above = load_settings(command_line={"cycles": 2}, env={}, path=path)
    below = load_settings(env={}, path=path)

    assert (above.overrides().cycles, above.overrides().order) == (2, None)
    assert (below.overrides().cycles, below.overrides().order) == (None, None)
    assert below.execution == {"cycles": 5, "order": "shuffled", "retries": 0}


def test_a_kind_of_device_stands_for_what_a_study_leaves_open_whoever_says_it(tmp_path: Path) -> None:
    path = user_file(tmp_path, "device: cpu\n")

    assert load_settings(env={}, path=path).overrides().device == "cpu"
    assert load_settings(command_line={"device": "cuda"}, env={"LLEM_DEVICE": "rocm"}, path=path)["device"] == "cuda"
    assert load_settings(env={}, path=tmp_path / "none.yaml").overrides().device == "auto"
    with pytest.raises(SettingsError, match="LLEM_DEVICE: device: the text 'gpu' is not accepted"):
        load_settings(env={"LLEM_DEVICE": "gpu"}, path=path)


def test_runners_of_the_environment_stand_above_the_users(tmp_path: Path) -> None:
    path = user_file(tmp_path, "runners: {vllm: docker, sglang: docker}\n")

    runners = load_settings(env={"LLEM_RUNNER_VLLM": "docker:img"}, path=path).runners

    assert (runners["vllm"].value, runners["vllm"].source) == ("docker:img", "environment")
    assert (runners["sglang"].value, runners["sglang"].source) == ("docker", "user settings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outt: x\n", r"config\.yaml:1:1: unknown setting outt .*did you mean 'out'"),
        ("execution: {cycles: none}\n", r"config\.yaml:1:21: execution\.cycles: expected an integer"),
        ("runners: {vlm: docker}\n", r"config\.yaml:1:11: runners: unknown engine 'vlm'"),
        ("[", r"config\.yaml:\d+:\d+: YAML syntax error"),
    ],
)
def test_wrong_user_file_is_placed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(env={}, path=user_file(tmp_path, text))


def test_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LLEM_CYCLES: cycles: expected an integer"):
        load_settings(env={"LLEM_CYCLES": "many"}, path=tmp_path / "none.yaml")


def test_report_shows_value_source_and_misspelt_variables(tmp_path: Path) -> None:
    settings = load_settings(env={"LLEM_OUT": "x", "LLEM_METRE": "nvml"}, path=tmp_path / "none.yaml")

    text = "\n".join(report_lines(settings))

    assert "environment (LLEM_OUT)" in text
    assert "warning: LLEM_METRE is not a setting: did you mean 'LLEM_METER'?" in text


def test_llem_config_finds_what_pytest_finds(tmp_path: Path) -> None:
    """It read no ini file, and so told a CI engineer of another meter and folder than the run had."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nllem_out = kept\nllem_cycles = 7\naddopts = --llem-meter=none\n")
    (tmp_path / "tests").mkdir()
    settings = user_file(tmp_path, "execution: {timeout_s: 60}\nmeter: nvml\n")
    (tmp_path / "llem").mkdir()
    settings.rename(tmp_path / "llem" / "config.yaml")

    def config(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), **variables}
        command = [sys.executable, "-m", "pytest_llem.cli", "config"]
        return subprocess.run(command, cwd=tmp_path / "tests", env=environment, capture_output=True, text=True)

    done = config(LLEM_CYCLES="5")
    assert done.returncode == 0, done.stderr
    found = {words[0]: words[1:] for line in done.stdout.splitlines() if (words := line.split(maxsplit=2))}
    assert found["out"] == ["kept", "pytest.ini (llem_out)"]
    assert found["meter"] == ["none", "addopts (--llem-meter)"]
    assert found["cycles"] == ["5", "environment (LLEM_CYCLES)"]
    assert found["execution.timeout_s"] == ["60.0", "user settings"]
    assert f"ini file: {tmp_path / 'pytest.ini'}" in done.stdout

    wrong = config(LLEM_ORDER="shufled")
    assert wrong.returncode == 2
    assert "did you mean 'shuffled'?" in wrong.stderr


def test_a_users_percentiles_hold_for_studies_that_choose_none(tmp_path: Path) -> None:
    settings = load_settings(env={}, path=user_file(tmp_path, "percentiles: [95, 99.9]\n"))
    assert settings.percentiles == (95.0, 99.9)
    assert any(line.split()[0] == "percentiles" and "user settings" in line for line in report_lines(settings))
    study = tmp_path / "study.yaml"
    study.write_text("model: m\n")
    assert load_study(study, percentiles=settings.percentiles).percentiles == (95.0, 99.9)
    study.write_text("model: m\npercentiles: [75]\n")
    assert load_study(study, percentiles=settings.percentiles).percentiles == (75.0,)


def test_a_users_percentiles_are_checked_as_a_studys(tmp_path: Path) -> None:
    path = user_file(tmp_path, "strict: true\npercentiles: [99, 95]\n")
    with pytest.raises(SettingsError, match=r"config\.yaml:2:19: percentiles: 95 comes after 99"):
        load_settings(env={}, path=path)
