"""An engine of this package is a folder: everything else finds it there, without being told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pytest_llem
from tests.installed import files

PACKAGE = Path(pytest_llem.__file__).parent

INFO = """
from pytest_llem.engines.info import EngineInfo, Inactive, Layout, Target

INFO = EngineInfo(
    name="parrot",
    engine="pytest_llem.engines.parrot.engine:Parrot",
    settings="pytest_llem.engines.parrot.settings:ParrotSettings",
    title="A parrot",
    order=9,
    modules=("json", "parrot_food"),
    packages=("pytest-llem", "parrot-food"),
    install="pip install parrot-food",
    stock_image="example.org/parrot:latest",
    preload=("json", "decimal:Decimal"),
    verified=False,
    signatures=Layout(main=(Target(("parrot_food:feed",)),), decoding=Target(("parrot_food:feed",))),
    inactive=(Inactive(("pitch",), "tokens_per_s", (500.0,), "at its own speed"),),
)
"""
SETTINGS = '''
from dataclasses import dataclass

from pytest_llem.job.setting import PositiveFloat, setting


@dataclass(frozen=True)
class ParrotSettings:
    """Settings of the parrot."""

    tokens_per_s: PositiveFloat = setting(500.0, "How fast it speaks.")
    pitch: PositiveFloat | None = setting(None, "How high it speaks.")
'''
STUDY = """\
model: none
engine: parrot
workload: {prompts: 2, input_tokens: 16, output_tokens: 4}
measurement: {min_duration_s: 0.1, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
sweep:
  parrot.tokens_per_s: [1000, 2000.0]
execution: {cycles: 1, order: sequential}
"""
ASK = """
import gc, io, json, sys, tarfile
from pytest_llem.containers.archive import worker_archive
from pytest_llem.containers.images import own_image
from pytest_llem.engines import engine_names
from pytest_llem.machine import environment
from pytest_llem.runners.resolution import missing_modules
from pytest_llem.runners.resolution import plan_runners
from pytest_llem.job.report import RunnerSpec
from pytest_llem.study.canonical import canonical
from pytest_llem.worker.forkserver import preload

preload("parrot")
facts = environment.gather()
identity = environment.identity(
    facts, engine="parrot", runner="local", image=None, device_kind="cpu", device_count=1, meter="none", inputs={}
)
carried = tarfile.open(fileobj=io.BytesIO(worker_archive())).getnames()
print(json.dumps({
    "names": engine_names(),
    "preloaded": [name for name in ("decimal", "pytest_llem.engines.parrot.engine") if name in sys.modules],
    "kept_from_collections": gc.get_freeze_count() > 1000,
    "missing": missing_modules("parrot"),
    "packages": {name: version for name, version in identity.items() if name.startswith("package_")},
    "image": own_image("parrot"),
    "problem": plan_runners(["parrot"], {"parrot": RunnerSpec("local", "default")}, [], False).problems[0].fix,
    "inactive": canonical({"model": "m", "engine": "parrot", "parrot.pitch": 2.0}, "parrot")[1],
    "carried": [name for name in carried if "/parrot/" in name],
}))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package with one more folder, which new interpreters import in place of the package."""
    copy = tmp_path / "site" / "pytest_llem"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    folder = copy / "engines" / "parrot"
    folder.mkdir()
    example = files("engines.md")["llem_parrot/engine.py"]
    for name, text in {"__init__": INFO, "settings": SETTINGS, "engine": example}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    return copy.parent


def python(*arguments: str) -> Any:
    """The JSON that a new interpreter prints, in the copy's directory: `-c` would prefer the current one to it."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.environ["PYTHONPATH"])
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def llem(*arguments: str) -> Any:
    """The JSON that a verb of the command line prints."""
    return python("-c", "import sys; from pytest_llem.cli import main; sys.exit(main(sys.argv[1:]))", *arguments)


def test_every_part_of_the_package_knows_the_engine(site: Path) -> None:
    known = python("-c", ASK)
    assert known["names"] == ["transformers", "vllm", "sglang", "tensorrt_llm", "openai", "parrot"]
    assert known["preloaded"] == ["decimal", "pytest_llem.engines.parrot.engine"]
    assert known["kept_from_collections"]
    assert known["missing"] == ["parrot_food"]
    assert set(known["packages"]) == {"package_pytest-llem", "package_parrot-food"}
    assert known["image"] == f"ghcr.io/pytest-llem/parrot:{pytest_llem.__version__}"
    assert known["problem"].endswith("pip install parrot-food")
    assert known["inactive"] == {"parrot.pitch": "at its own speed"}
    assert "llem/site/pytest_llem/engines/parrot/engine.py" in known["carried"]


def test_the_published_schema_describes_its_section(site: Path) -> None:
    schema = llem("schema", "study")
    assert "parrot" in schema["properties"]
    assert set(schema["$defs"]["Parrot"]["properties"]) == {"tokens_per_s", "pitch"}


def test_doctor_says_how_to_get_it(site: Path) -> None:
    found = {item["subject"]: item for item in llem("doctor", "--json")["findings"] if item["section"] == "engines"}
    assert "parrot_food" in found["parrot"]["message"]
    assert "not yet verified" in found["parrot"]["message"]
    assert "pip install parrot-food" in found["parrot"]["fix"]
    assert "--llem-runner=parrot=docker" in found["parrot"]["fix"]


def test_studies_of_it_are_checked_and_measured(site: Path, pytester: pytest.Pytester) -> None:
    (site / "parrot_food.py").write_text("def feed(tokens_per_s: float = 1.0, pitch: float = 1.0) -> None: ...\n")
    study = pytester.path / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    arguments = ("--llem-study=study.yaml", "--llem-meter=estimate", "-p", "no:cacheprovider")
    listed = pytester.runpytest_subprocess(*arguments, "--collect-only", "-q")
    listed.stdout.fnmatch_lines(["*tokens_per_s:1000.0*", "*tokens_per_s:2000.0*"])
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=2)
    [result, _] = [json.loads(path.read_text()) for path in pytester.path.rglob("result.json")]
    assert result["runner"]["start_method"] == "forkserver"
    assert "engine_not_verified" in [warning["code"] for warning in result["warnings"]]

    study.write_text(STUDY.replace("[1000,", "[fast,"), encoding="utf-8")
    pytester.runpytest_subprocess(*arguments).stdout.fnmatch_lines(["*study.yaml:6:*expected a number*'fast'*"])


def test_a_probe_in_an_image_asks_for_its_modules(site: Path) -> None:
    modules = ("json", "parrot_food")
    done = subprocess.run(
        [sys.executable, "-m", "pytest_llem.worker.probe", "parrot", *modules],
        capture_output=True,
        text=True,
        cwd=site,
        check=True,
    )
    assert json.loads(done.stdout.rpartition("LLEM-PROBE ")[2])["missing"] == ["parrot_food"]
