"""The settings of a run as pytest hands them over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.session.options import run_options
from pytest_llem.session.run import RunOptions
from pytest_llem.study import load_study

STUDY = "model: builtin:tiny-llama\n"


@pytest.mark.parametrize(
    ("arguments", "ini", "variable", "user", "study", "expected"),
    [
        (["--llem-meter=none"], "", "", "", "meter: rapl", "none"),
        (["--llem-meter=auto"], "", "", "", "meter: rapl", "auto"),
        ([], "", "nvml", "", "meter: rapl", "nvml"),
        ([], "nvml", "", "", "meter: rapl", "nvml"),
        ([], "", "", "meter: nvml", "meter: rapl", "rapl"),
        ([], "", "", "meter: nvml", "", "nvml"),
        ([], "", "", "", "meter: rapl", "rapl"),
        ([], "", "", "", "", "auto"),
    ],
)
def test_a_study_names_its_meter_above_the_users_file_and_below_this_run(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    ini: str,
    variable: str,
    user: str,
    study: str,
    expected: str,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LLEM_METER", variable)
    (tmp_path / "llem").mkdir()
    (tmp_path / "llem" / "config.yaml").write_text(user)
    pytester.makeini(f"[pytest]\nllem_meter = {ini}\n")
    path = tmp_path / "study.yaml"
    path.write_text(f"{STUDY}{study}\n")

    options: RunOptions = run_options(pytester.parseconfig(*arguments))

    assert options.meter_of(load_study(path)) == expected
