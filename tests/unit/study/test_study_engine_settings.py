"""Engines of other packages declare their section of a study, as a dataclass or as a pydantic model."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_llem import engines
from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.study import Study
from tests.installed import Site, forget

Load = Callable[..., Study]

DECLARATIONS = {
    "dataclass": """
        from dataclasses import dataclass
        from pytest_llem.study.sections.section import PositiveInt, setting

        @dataclass(frozen=True)
        class Settings:
            speed: PositiveInt = setting(3, "How fast.")
            names: tuple[str, ...] = setting((), "Its names.")
        """,
    "model": """
        from pydantic import Field
        from pytest_llem.study.sections.section import PositiveInt, Section

        class Settings(Section):
            speed: PositiveInt = Field(3, description="How fast.")
            names: list[str] = Field(default_factory=list, description="Its names.")
        """,
}


@pytest.fixture(params=DECLARATIONS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package whose engine `theirs` has a section."""
    module = f"llem_theirs_{request.param}"
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(DECLARATIONS[request.param]))
    installed = tmp_path / f"{module}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = {"pytest_llem.engines": "Engine", "pytest_llem.engine_settings": "Settings"}
    groups = [f"[{group}]\ntheirs = {module}:{name}\n" for group, name in points.items()]
    (installed / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield
    forget()


def test_an_engine_cannot_take_the_name_of_a_shipped_one(site: Site) -> None:
    site.add("llem-vllm", "", engines="vllm = llem_vllm:Engine")
    try:
        with pytest.raises(SettingsError, match=r"llem-vllm 1.0 registers the engine 'vllm', which pytest-llem itself"):
            engines.engine_names()
    finally:
        forget()


@pytest.mark.usefixtures("theirs")
def test_its_values_are_checked_and_reach_the_engine(load: Load) -> None:
    study = load("model: m\nengine: theirs\nsweep: {theirs.speed: [1, 2]}\ntheirs: {names: [a]}\n")

    assert [experiment.config.settings for experiment in study.experiments] == [
        {"speed": 1, "names": ["a"]},
        {"speed": 2, "names": ["a"]},
    ]


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{speed: 0}", r"study\.yaml:3:17: theirs\.speed: .*greater than or equal to 1, got the number 0"),
        ("{speed: fast}", r"study\.yaml:3:17: theirs\.speed: expected an integer, got the text 'fast'"),
        ("{sped: 1}", r"study\.yaml:3:10: .*did you mean 'theirs\.speed'\?"),
        ("{names: a}", r"study\.yaml:3:17: theirs\.names: expected a list, got the text 'a'"),
    ],
)
def test_what_is_wrong_is_reported_at_its_position(load: Load, section: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load(f"model: m\nengine: theirs\ntheirs: {section}\n")
