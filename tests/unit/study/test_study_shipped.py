"""Studies that come with the package: `builtin:NAME` wherever a study is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.study import Study, load_study
from pytest_llem.study.shipped import shipped_studies, study_file

STUDIES = Path(__file__).resolve().parents[3] / "studies"


def test_each_study_of_the_repository_is_built_in_and_loads() -> None:
    """One of them that needed a file from outside its folder would load in a clone and nowhere else."""
    files = {f"builtin:{path.stem}": path for path in STUDIES.glob("*.yaml")}

    assert shipped_studies() == files
    for name, path in files.items():
        assert load_study(Path(name)).path == path


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match="no built-in study 'builtin:zzz'") as caught:
        load_study(Path("builtin:zzz"))
    assert "use one of: builtin:engines, builtin:optimize, builtin:power-limit, " in str(caught.value.fix)


def test_a_name_without_the_prefix_is_a_path() -> None:
    assert study_file("quickstart") == Path("quickstart")


def test_a_study_may_be_based_on_a_built_in_one(load: Callable[[str], Study]) -> None:
    study = load("base: builtin:quickstart\nname: mine\nexecution: {cycles: 7}\n")

    assert (study.name, study.execution.cycles, len(study.experiments)) == ("mine", 7, 4)
    with pytest.raises(StudyError, match=r"study.yaml:1:7: base: .* \(use one of: .*builtin:quickstart,"):
        load("base: builtin:quickstar\n")
