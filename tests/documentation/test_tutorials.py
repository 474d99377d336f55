"""The studies of docs/tutorials are collected, and their code runs, as the pages have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL))


def code(page: str, name: str) -> str:
    """A piece of code of a page, by the name in the comment above it."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    (block,) = re.findall(rf"<!-- test: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    return str(block)


def write(pytester: pytest.Pytester, page: str) -> None:
    for name, text in files(page).items():
        (pytester.path / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "study", "items"),
    [("paper.md", "paper.yaml", 30), ("paper.md", "paper-gpu.yaml", 60), ("gate.md", "gate.yaml", 6)],
)
def test_a_study_is_collected(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, page: str, study: str, items: int
) -> None:
    monkeypatch.setenv("MODEL", "builtin:tiny-llama")
    write(pytester, page)
    done = pytester.runpytest_subprocess(f"--llem-study={study}", "--collect-only", "-q", "--llem-cycles=5")
    assert done.ret == 0, done.stdout.str()
    assert len([line for line in done.outlines if "::test_" in line]) == items


@pytest.mark.engine
def test_asserts_of_ones_own_pass_and_can_be_evaluated(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    write(pytester, "asserts.md")
    done = pytester.runpytest_subprocess("-q", "--llem-cycles=2", "--llem-meter=estimate")
    assert done.ret == 0, done.stdout.str()
    done.assert_outcomes(passed=7)

    exec(compile(code("paper.md", "evaluate"), "paper.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(
        r"^my-own-assert \{'transformers.batch_size': 4\}: \S+ ± \S+ J/token \(95 %, 2 cycles\)$", printed, re.MULTILINE
    )


def test_the_gate_of_ones_own_fails_on_a_regression(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code("gate.md", "gate"), "gate.md", "exec"), {})
    assert capsys.readouterr().out.startswith("fail 1.09")
