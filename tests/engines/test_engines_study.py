"""The study that is shipped for comparing engines, on the two that run in this environment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.servers.starting import llama_cpp

pytestmark = pytest.mark.engine
pytest.importorskip("transformers")

SHORTENED = """\
base: {study}
dtype: float32
workload: {{prompts: 4, input_tokens: 16, output_tokens: 8}}
measurement: {{min_duration_s: 0.1, idle: {{duration_s: 0.1}}, warmup: {{max_repeats: 1}}}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of llama.cpp with the tiny model."""
    with llama_cpp(tmp_path) as running:
        yield running.url


def test_the_ready_study_does_the_same_work(
    server: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """studies/engines.yaml itself, shortened and on the tiny model, on what runs here."""
    study = Path(__file__).parents[2] / "studies" / "engines.yaml"
    (pytester.path / "short.yaml").write_text(SHORTENED.format(study=study), encoding="utf-8")
    monkeypatch.setenv("MODEL", "builtin:tiny-llama")
    monkeypatch.setenv("SERVER", server)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    chosen = "llem(engine='openai', concurrency=8) or llem(engine='transformers', batch_size=8)"
    run = pytester.runpytest_subprocess(
        *("--llem-study=short.yaml", "--llem-cycles=1", "--llem-meter=estimate", "-m", chosen),
        *("--llem-runner=transformers=local", "--llem-runner=vllm=docker", "-p", "no:cacheprovider"),
    )
    run.assert_outcomes(passed=2, deselected=8)
    found = [json.loads(path.read_text()) for path in pytester.path.rglob("result.json")]
    assert {result["engine"]["name"] for result in found} == {"transformers", "openai"}
    for result in found:
        assert (result["validity"]["valid"], result["validity"]["reasons"]) == (True, [])
        assert (result["workload"]["input_tokens"], result["workload"]["output_tokens"]) == (64, 32)
    assert len({result["workload"]["prompts_hash"] for result in found}) == 1
