"""Studies small enough to run in a moment, and an environment in which the faulty engine is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# pytester forgets modules that an inner run imported: yaml's and pydantic's compiled parts do not survive a second
# import, hypothesis' plugin would import all of it in every run, and ours is half of the time of a short one.
import hypothesis
import pytest

import pytest_llem.session.measuring
import pytest_llem.session.reporting.summary
import pytest_llem.session.run_results
import pytest_llem.session.start
import pytest_llem.session.study_tests
import pytest_llem.study.loader
from tests.installed import forget

PREIMPORTED = (hypothesis, pytest_llem)
FAULTY = Path(__file__).parent / "faulty_engine"

SWEEP = """\
name: small
model: builtin:tiny-llama
engine: transformers
dtype: float32
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement: {min_duration_s: 0.05, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
sweep:
  transformers.batch_size: [1, 2, 16]
  dtype: [float32, bfloat16]
execution: {cycles: 2}
"""

FAULTS = """\
name: faults
engine: faulty
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.05}}, warmup: {{max_repeats: 1}}}}
sweep:
  model: [{faults}]
execution: {{cycles: 1, retries: 0, timeout_s: {timeout}}}
"""


@pytest.fixture(autouse=True)
def own_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The faulty engine is installed, leases are this test's own, and nothing of the outer run leaks in."""
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # which forgets PYTEST_ADDOPTS when it begins
    path = os.pathsep.join(filter(None, [str(FAULTY), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(FAULTY)
    forget()
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.delenv("CI", raising=False)
    # Plugins of others have tests/plugin/test_other_plugins.py: elsewhere they would cost each inner run half a second.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p llem -p xdist")
    yield
    forget()


@pytest.fixture
def sweep(pytester: pytest.Pytester) -> Path:
    """A study of six experiments with two cycles each, in the test's directory."""
    path = pytester.path / "small.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def faults(pytester: pytest.Pytester) -> Callable[..., Path]:
    """Writes a study of the faulty engine, an experiment per fault."""

    def write(*names: str, timeout: float = 60.0) -> Path:
        path = pytester.path / "faults.yaml"
        path.write_text(FAULTS.format(faults=", ".join(names), timeout=timeout))
        return path

    return write
