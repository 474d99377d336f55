"""Pages that are generated, names that pages mention, and metadata beside them: all as the code has it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_llem.job.config import Thresholds
from pytest_llem.study.declared import keys_of
from pytest_llem.study.fields import defaults
from pytest_llem.study.model import Execution
from pytest_llem.study.schema import Compare

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {
    "docs/command-line.md": ".ci/command_line_page.py",
    "docs/errors.md": ".ci/errors_page.py",
    "docs/metrics.md": ".ci/metrics_page.py",
}
GUIDES = ("docs/architecture.md", "CONTRIBUTING.md", "README.md")


@pytest.mark.parametrize("page", GENERATED)
def test_a_generated_page_is_current(page: str) -> None:
    """Renew it with `nox -s pages`."""
    done = subprocess.run([sys.executable, ROOT / GENERATED[page]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (ROOT / page).read_text(encoding="utf-8") == done.stdout


@pytest.mark.parametrize("page", GUIDES)
def test_every_path_of_a_guide_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    top = r"(?:pytest_llem|tests|docs|studies|images|\.ci|\.github)/"
    named = set(re.findall(rf"`({top}[\w./-]*)`", text)) | set(re.findall(rf"\]\(({top}[\w./-]+)[)#]", text))
    named |= {f"pytest_llem/{path}" for path in re.findall(r"[`\[\"]((?:session|results|study)/[\w/]*\.py)\b", text)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".ci/run"])
def test_every_session_that_is_named_exists(page: str) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sessions = set(re.findall(r"^[*-] (\w+)", listed.stdout, re.MULTILINE))
    named = {
        name
        for words in re.findall(r"nox -s ((?:\w+ ?)+)", (ROOT / page).read_text(encoding="utf-8"))
        for name in words.split()
    }
    assert named
    assert named <= sessions


def test_the_value_of_an_option_is_no_path() -> None:
    """`nox -s plugin -- -k gate -x` once ran every test there is, and not those of the plugin alone."""
    command = [sys.executable, "-m", "nox", "-s", "gpu", "--", "--collect-only", "-q", "-k", "sensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert collected
    assert [line for line in collected if not line.startswith("tests/gpu/")] == []


def test_the_floors_are_drawn_as_they_are_checked() -> None:
    contract = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.S | re.M)
    assert contract is not None
    checked = [set(line.split(" : ")) for line in re.findall(r'"(.+)"', contract[1])]
    drawn = [
        set(names.split(" · "))
        for names in re.findall(r'\["<b>(.+?)</b>', (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    ]
    # The lowest two are drawn as one: job and errors are read together.
    assert drawn == [*checked[:-2], checked[-2] | checked[-1]]


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(re.findall(r"[\w/-]+\.md", text))


def test_every_default_of_the_protocol_is_grounded() -> None:
    """Each setting that decides how a number is made, with its default as the code has it."""
    text = (ROOT / "docs/grounding.md").read_text(encoding="utf-8")
    grounded = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", text, re.MULTILINE))
    protocol = {
        **{path: value for path, value in defaults().items() if path.startswith("measurement.")},
        **{f"measurement.validity.{name}": key.default for name, key in keys_of(Thresholds).items()},
        **{f"execution.{name}": key.default for name, key in keys_of(Execution).items()},
        **{f"compare.{name}": key.default for name, key in keys_of(Compare).items()},
    }
    unset = {path for path, value in protocol.items() if value in (None, (), [], {})} | {
        "execution.timeout_s", "execution.residual_memory_bytes", "execution.headline"
    }  # fmt: skip
    assert set(protocol) - unset <= set(grounded)
    known = {**defaults(), **protocol}
    shown = {path: yaml.safe_load(text) for path, text in grounded.items()}
    wrong = {
        path: value for path, value in shown.items() if value != known[path] and (value, known[path]) != ("none", [])
    }
    assert wrong == {}
