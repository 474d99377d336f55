"""The `docker:` section of a study, and that it says what the Docker runner understands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.study import Study
from pytest_llem.study.declared import keys_of
from pytest_llem.study.runner_settings import DockerSettings

Load = Callable[..., Study]


def test_the_section_has_the_names_and_defaults_of_the_runner() -> None:
    """A key that only one side knows would be refused, or never reach a container."""
    written_out = {name: key.default for name, key in keys_of(DockerSettings).items()}

    assert DockerSettings.from_mapping(written_out) == DockerSettings()


@pytest.mark.parametrize(
    "section",
    [
        "{lifecycle: session, max_restarts: 0}",
        "{memory: 1.5g, shm_size: 512m, residual: 1024}",
        "{memory: 2GiB, shm_size: 0.5t, residual: 0.5 mb}",
        "{memory: null, network: host, pull: never, pull_timeout_s: 5}",
        "{pids_limit: 100, capabilities: [IPC_LOCK]}",
    ],
)
def test_what_a_study_may_say_the_runner_takes(load: Load, section: str) -> None:
    study = load(f"model: m\ndocker: {section}\n")

    changed = DockerSettings.from_mapping(study.docker)

    assert changed != DockerSettings()


@pytest.mark.parametrize("size", ["0", "0g", "much", "1x", "-1g", "1.g", "true", "0.0m"])
def test_a_wrong_size_is_refused_by_both(load: Load, size: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml:2:18: docker\.memory: .*got"):
        load(f"model: m\ndocker: {{memory: {size}}}\n")
    with pytest.raises(SettingsError, match=r"docker\.memory"):
        DockerSettings.from_mapping({"memory": {"0": 0, "true": True}.get(size, size)})


def test_a_number_below_its_limit_is_refused(load: Load) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml:2:24: docker\.max_restarts: .*got"):
        load("model: m\ndocker: {max_restarts: -1}\n")


def test_relative_mounts_start_at_the_study(load: Load, tmp_path: Path) -> None:
    study = load("model: m\ndocker: {mounts: [/data, ../models]}\n")

    assert study.docker == {"mounts": ["/data", str(tmp_path.parent / "models")]}


def test_containers_do_not_change_what_an_experiment_is(load: Load) -> None:
    one = load("model: m\n")
    other = load("model: m\ndocker: {memory: 1g}\nmeter: none\n")

    assert [e.config_hash for e in one.experiments] == [e.config_hash for e in other.experiments]
    assert one.study_hash == other.study_hash


def test_a_base_may_hold_the_section(load: Load, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("docker: {memory: 1g, network: host}\n")

    assert load("base: base.yaml\nmodel: m\ndocker: {memory: 2g}\n").docker == {"memory": "2g", "network": "host"}


@pytest.mark.parametrize(
    ("sections", "residual", "thresholds"),
    [
        ("", None, {}),
        ("execution: {residual_memory_bytes: 0}\n", None, {}),
        ("execution: {residual_memory_bytes: 500000000}\n", 500_000_000, {}),
        ("execution: {residual_memory_bytes: 2000000000}\n", 2_000_000_000, {"residual_memory_bytes": 2e9}),
        (
            "execution: {residual_memory_bytes: 2000000000}\ndocker: {residual: 1g}\n"
            "measurement: {validity: {residual_memory_bytes: 5.0}}\n",
            "1g",
            {"residual_memory_bytes": 5.0},
        ),
    ],
)
def test_memory_that_execution_allows_offends_no_other_limit(
    load: Load, sections: str, residual: int | str | None, thresholds: dict[str, float]
) -> None:
    """A cycle that `execution` let begin was invalid all the same, or cost its container, above the other defaults."""
    study = load(f"model: m\n{sections}")

    assert study.docker.get("residual") == residual
    assert study.thresholds == thresholds
