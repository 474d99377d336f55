"""`llem init`: the first study, and what the command `llem` says to someone who knows nothing of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_llem import __version__
from pytest_llem.cli import main
from pytest_llem.engines import shipped_engines
from pytest_llem.study import load_study


@pytest.mark.parametrize("engine", shipped_engines())
@pytest.mark.parametrize("model", [None, "meta-llama/Llama-3.2-1B", "./weights of mine: all"])
def test_the_study_loads_as_it_is(
    engine: str, model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"--engine={engine}", *([f"--model={model}"] if model else [])]
    if engine == "openai" and model is None:
        assert main(["init", *given]) == 2
        assert "--model=NAME" in capsys.readouterr().err
        return
    assert main(["init", "studies/first.yaml", *given]) == 0
    study = load_study(Path("studies/first.yaml"), env={})
    assert not study.notices
    assert [experiment.engine for experiment in study.experiments] == [engine] * 2
    local = str(tmp_path / "weights of mine: all")
    expected = {None: "builtin:tiny-llama", "./weights of mine: all": local}.get(model, model)
    assert {experiment.config.model for experiment in study.experiments} == {expected}
    assert "pytest --llem-study=studies/first.yaml" in capsys.readouterr().out
    schema = json.loads(Path("studies/study.schema.json").read_text())
    assert "sweep" in schema["properties"]
    assert Path("studies/first.yaml").read_text().startswith("# yaml-language-server: $schema=study.schema.json\n")


def test_the_engine_is_one_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytest_llem.study.first_study.find_spec", lambda name: None if name != "vllm" else object())
    main(["init"])
    assert "engine: vllm\n" in Path("study.yaml").read_text()
    assert "install" not in capsys.readouterr().out

    main(["init", "other.yaml", "--engine=transformers"])
    assert "pip install 'pytest-llem[transformers]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study.yaml"], "study.yaml: exists already"),
        (["new.yaml", "--engine=transformer"], "did you mean 'transformers'?"),
        (["study.toml"], "ends with .yaml"),
    ],
)
def test_nothing_is_overwritten_and_a_wrong_word_has_a_remedy(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text("mine\n")
    assert main(["init", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "fix: " in error
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
    assert Path("study.yaml").read_text() == "mine\n"


def test_without_a_verb_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """It was an error that named no verb."""
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: llem ")
    assert re.search(r"init +write a commented study", shown)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"pytest-llem {__version__}\n")
