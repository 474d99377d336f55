"""The fingerprint changes with what makes energy comparable, and with nothing else."""

from __future__ import annotations

import json

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.results.environment import fingerprint, gather

GPU: dict[str, JsonValue] = {"uuid": "GPU-1", "driver": "570.1", "power_limit_w": 700.0, "ecc": True, "mig": False}
HOST: dict[str, JsonValue] = {
    "cpu": {"model": "X", "logical_cores": 8, "governor": "performance"},
    "gpus": [GPU],
    "packages": {"torch": "2.13", "transformers": "5.23", "pytest": "9.2"},
    "hostname": "here",
}
PARTS: dict[str, JsonValue] = {"engine": "transformers", "runner": "local", "meter": "auto"}


def test_gathered_facts_are_json_and_name_the_machine() -> None:
    facts = json.loads(json.dumps(gather()))
    assert facts["cpu"]["logical_cores"] >= 1
    assert facts["memory_total_bytes"] > 0
    assert facts["packages"]["pytest"]
    assert facts["gathered_at"].endswith("+00:00")


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": [{**GPU, "power_limit_w": 500.0}]},
        {"gpus": [{**GPU, "uuid": "GPU-2"}]},
        {"cpu": {"model": "Y", "logical_cores": 8, "governor": "performance"}},
        {"packages": {"torch": "2.14", "transformers": "5.23"}},
    ],
)
def test_what_matters_changes_the_fingerprint(change: dict[str, JsonValue]) -> None:
    assert fingerprint({**HOST, **change}, PARTS) != fingerprint(HOST, PARTS)


@pytest.mark.parametrize(
    "change",
    [{"hostname": "there"}, {"packages": {"torch": "2.13", "transformers": "5.23", "pytest": "8.3"}}, {"git": "abc"}],
)
def test_what_does_not_matter_leaves_it(change: dict[str, JsonValue]) -> None:
    assert fingerprint({**HOST, **change}, PARTS) == fingerprint(HOST, PARTS)


def test_the_packages_of_this_python_say_nothing_about_a_container() -> None:
    docker: dict[str, JsonValue] = {**PARTS, "runner": "docker", "image": "sha256:1"}
    changed = {**HOST, "packages": {"torch": "9.9"}}
    assert fingerprint(changed, docker) == fingerprint(HOST, docker)
    assert fingerprint(HOST, {**docker, "image": "sha256:2"}) != fingerprint(HOST, docker)
