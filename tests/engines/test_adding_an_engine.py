"""The documentation's page on engines: its worked example runs as written, and its table says what the code says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines import open_engine, shipped_engines
from pytest_llem.engines.protocol import Engine
from pytest_llem.errors import SettingsError
from pytest_llem.runners.resolution import missing_modules
from pytest_llem.study.fields import settings_model
from tests.installed import DOCS, files, forget, install

PAGE = (DOCS / "engines.md").read_text(encoding="utf-8")
ARGUMENTS = ("--llem-study=parrot.yaml", "--llem-meter=estimate", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` makes of the example's files; it once refused them for their layout."""
    target = tmp_path_factory.mktemp("site")
    install("engines.md", tmp_path_factory.mktemp("llem-parrot"), target)
    return target


@pytest.fixture
def example(pytester: pytest.Pytester, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as it was installed, on the path, with its study."""
    shutil.copytree(installed, pytester.path, dirs_exist_ok=True)
    (pytester.path / "parrot.yaml").write_text(files("engines.md")["parrot.yaml"], encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(pytester.path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(pytester.path / "leases"))
    return pytester.path


def test_the_worked_example_is_measured(pytester: pytest.Pytester, example: Path) -> None:
    run = pytester.runpytest_subprocess(*ARGUMENTS)
    run.assert_outcomes(passed=2)
    run.stdout.fnmatch_lines(["*1000 *1/1 *", "*2000 *1/1 *"])
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in example.rglob("result.json")]
    assert len(found) == 2
    assert {result["engine"]["effective"]["tokens_per_s"] for result in found} == {1000.0, 2000.0}
    for result in found:
        assert (result["validity"]["valid"], result["validity"]["reasons"]) == (True, [])
        assert (result["engine"]["name"], result["engine"]["version"]) == ("parrot", "1.0")
        assert result["workload"]["output_tokens"] == 128
        assert result["latency"]["tpot_s"]["p50"] >= 1 / result["engine"]["effective"]["tokens_per_s"]
        assert result["compute"]["flops"] is None
        assert result["memory"]["devices"] == []
    assert sorted(result["runner"]["facts"]["engine_reused"] for result in found) == [False, True]


def test_an_info_in_place_of_the_class_says_more(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example / "llem_parrot" / "info.py").write_text(
        "from pytest_llem.engines.info import EngineInfo\n"
        "INFO = EngineInfo('parrot', engine='llem_parrot.engine:Parrot',\n"
        "                  settings='llem_parrot.settings:ParrotSettings',\n"
        "                  modules=('parrot_food',), install='pip install parrot-food')\n"
    )
    points = example / "llem_parrot-1.0.dist-info" / "entry_points.txt"
    points.write_text("[pytest_llem.engines]\nparrot = llem_parrot.info:INFO\n")
    monkeypatch.syspath_prepend(example)
    forget()
    try:
        assert missing_modules("parrot") == ("parrot_food",)
        assert isinstance(open_engine("parrot"), Engine)
        declared = settings_model("parrot")
    finally:
        forget()
    assert declared is not None
    assert declared.__name__ == "ParrotSettings"


def test_its_settings_are_checked_where_the_study_has_them(pytester: pytest.Pytester, example: Path) -> None:
    study = example / "parrot.yaml"
    wrong = study.read_text(encoding="utf-8").replace("[1000,", "[fast,") + "parrot: {token_per_s: 3}\n"
    study.write_text(wrong, encoding="utf-8")
    run = pytester.runpytest_subprocess(*ARGUMENTS)
    run.stdout.fnmatch_lines_random(
        [
            "*parrot.yaml:6:*expected a number*'fast'*",
            "*parrot.yaml:8:10: *'parrot.token_per_s'*did you mean 'parrot.tokens_per_s'?*",
        ]
    )


def test_a_study_with_stop_strings_wants_an_engine_that_says_it_ends_there(
    pytester: pytest.Pytester, example: Path
) -> None:
    """One that passes over them would answer more than is asked, and nothing in a result would show it."""
    study = example / "parrot.yaml"
    study.write_text(study.read_text(encoding="utf-8").replace("prompts: 4", 'ignore_eos: false, stop: ["Q:"]'))
    run = pytester.runpytest_subprocess(*ARGUMENTS, "--collect-only")
    run.stdout.fnmatch_lines(["*parrot.yaml:3:*workload.stop*cannot be combined with engine parrot*stop_strings*"])


def test_settings_that_are_no_model_are_refused(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example / "llem_parrot" / "settings.py").write_text("ParrotSettings = 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(example)
    forget()
    with pytest.raises(SettingsError, match=r"'parrot'.*no pydantic model"):
        settings_model("parrot")
    (example / "llem_parrot" / "settings.py").unlink()
    monkeypatch.delitem(sys.modules, "llem_parrot.settings")
    with pytest.raises(SettingsError, match="cannot be imported"):
        settings_model("parrot")
    forget()


def test_the_table_says_of_every_engine_what_its_code_says() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")
    ]
    table = {row[0].strip("`"): row for row in rows if len(row) == 11 and row[0] != "engine"}
    assert set(table) == set(shipped_engines())
    for name, row in table.items():
        capabilities = open_engine(name).capabilities
        said = {"prefix_cache": row[5], "serves": row[6]}
        assert {key: getattr(capabilities, key) for key in said} == {key: text == "yes" for key, text in said.items()}
        assert capabilities.token_times in (row[2] == "yes", False)
        assert capabilities.separable_phases == (row[3] == "yes")
        assert (row[9] == "yes") == shipped_engines()[name].stop_strings
        assert ("not yet verified" in row[10]) == (not shipped_engines()[name].verified)
