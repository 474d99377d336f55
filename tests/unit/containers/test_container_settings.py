"""The `docker:` section, and what a workload needs from outside its container."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_llem
from pytest_llem.containers.daemon import ssh_command
from pytest_llem.containers.images import own_image, split_name
from pytest_llem.containers.inputs import Mounted, inputs_of, with_absolute_paths
from pytest_llem.containers.options import (
    ENVIRONMENT,
    ContainerRequest,
    ImageFacts,
    container_environment,
    cpusets,
    recorded_options,
)
from pytest_llem.containers.preflight import PreflightSubject, _judge
from pytest_llem.engines import shipped_engines
from pytest_llem.engines.builtin import builtin_place
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.config import (
    Arrival,
    Decoding,
    DeviceKind,
    DeviceSettings,
    ExperimentConfig,
    MeasurementSettings,
    WorkloadSettings,
)
from pytest_llem.job.job import DeviceSet
from pytest_llem.study.runner_settings import DockerSettings

FACTS = ImageFacts("an/image", "sha256:1", None, None, {})
IMAGES = Path(__file__).parents[3] / "images"


@pytest.fixture
def config() -> ExperimentConfig:
    return ExperimentConfig(
        model="builtin:tiny-llama",
        engine="transformers",
        dtype=None,
        weights="real",
        workload=WorkloadSettings("synthetic", 1, 8, 8, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(0.0),
        settings={},
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_sizes_and_choices_are_read() -> None:
    settings = DockerSettings.from_mapping(
        {"lifecycle": "session", "memory": "1.5g", "shm_size": "512m", "network": "host", "mounts": ["/data"]}
    )

    assert settings.lifecycle == "session"
    assert settings.memory_bytes == 3 * 2**29
    assert settings.shm_size_bytes == 2**29
    assert settings.mounts == ("/data",)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"lifecyle": "session"}, "docker: unknown key 'lifecyle'"),
        ({"lifecycle": "forever"}, "docker.lifecycle"),
        ({"memory": "much"}, "docker.memory"),
        ({"memory": 0}, "docker.memory"),
        ({"shm_size": True}, "docker.shm_size"),
        ({"mounts": "/data"}, "docker.mounts"),
    ],
)
def test_a_wrong_section_is_named(data: dict[str, JsonValue], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        DockerSettings.from_mapping(data)


def test_a_built_in_model_needs_nothing_from_outside(config: ExperimentConfig, hub: Path) -> None:
    inputs = inputs_of(config)

    assert (inputs.mounts, inputs.downloads, inputs.network("auto")) == ((), (), "none")


def test_a_built_in_model_of_a_package_is_mounted_where_the_worker_looks_for_it(
    config: ExperimentConfig, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image has no such package, and making the model there would take each cycle's time."""
    place = builtin_place("builtin:smollm2-135m")

    inputs = inputs_of(replace(config, model="builtin:smollm2-135m"))

    monkeypatch.setenv("XDG_CACHE_HOME", ENVIRONMENT["XDG_CACHE_HOME"])
    assert inputs.mounts == (Mounted(str(place), str(builtin_place("builtin:smollm2-135m"))),)
    assert inputs.network("auto") == "none"


def test_a_local_model_keeps_its_path(config: ExperimentConfig, hub: Path, tmp_path: Path) -> None:
    inputs = inputs_of(replace(config, model=str(tmp_path)))

    assert inputs.mounts == (Mounted(str(tmp_path), str(tmp_path)),)
    assert inputs.network("auto") == "none"


def test_the_authority_that_a_server_is_trusted_by_comes_along(
    config: ExperimentConfig, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    url = {"base_url": "https://h/v1", "ca_file": "ca.pem"}
    resolved = with_absolute_paths(replace(config, engine="openai", settings=url))
    assert resolved.settings["ca_file"] == str(tmp_path / "ca.pem")
    assert inputs_of(resolved).mounts == (Mounted(str(tmp_path / "ca.pem"), str(tmp_path / "ca.pem")),)


def test_a_file_of_arrival_times_comes_along(config: ExperimentConfig, hub: Path, tmp_path: Path) -> None:
    times = tmp_path / "times.txt"
    times.touch()
    workload = replace(config.workload, arrival=Arrival("schedule", file=str(times)))
    assert inputs_of(replace(config, workload=workload)).mounts == (Mounted(str(times), str(times)),)


def test_a_relative_path_means_the_same_inside(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()

    assert with_absolute_paths(replace(config, model="model")).model == str(tmp_path / "model")
    assert with_absolute_paths(config) == config


def test_a_model_in_the_hub_cache_is_mounted_and_needs_no_network(config: ExperimentConfig, hub: Path) -> None:
    cached = hub / "models--org--name"
    (cached / "snapshots" / "abc").mkdir(parents=True)

    inputs = inputs_of(replace(config, model="org/name"))

    assert inputs.mounts == (Mounted(str(cached), "/llem/hub/models--org--name"),)
    assert inputs.network("auto") == "none"


def test_an_absolute_path_that_is_not_here_is_the_images(config: ExperimentConfig, hub: Path) -> None:
    """The hub was asked for a path, and its answer refused a model that the image brings."""
    workload = replace(config.workload, dataset="/in/the/image.jsonl")

    inputs = inputs_of(replace(config, model="/in/the/image", workload=workload))

    assert (inputs.mounts, inputs.downloads, inputs.network("auto")) == ((), (), "none")


def test_a_parquet_file_need_not_be_mounted(config: ExperimentConfig, hub: Path, tmp_path: Path) -> None:
    """Its texts come with the job: so it can be used by a daemon on another machine as well."""
    (tmp_path / "p.parquet").touch()
    workload = replace(config.workload, dataset=str(tmp_path / "p.parquet"))
    assert inputs_of(replace(config, workload=workload)).mounts == ()


def test_what_is_not_here_comes_over_the_network(config: ExperimentConfig, hub: Path) -> None:
    workload = replace(config.workload, dataset="aienergyscore")

    inputs = inputs_of(replace(config, model="org/name", workload=workload))

    assert inputs.downloads == ("org/name", "EnergyStarAI/text_generation")
    assert inputs.network("auto") == "bridge"
    assert inputs.network("none") == "none", "what the study says goes"


@pytest.mark.parametrize(
    ("url", "network"), [("http://localhost:8000/v1", "host"), ("http://gpu7:8000/v1", "bridge"), (None, "none")]
)
def test_an_endpoint_decides_the_network(config: ExperimentConfig, hub: Path, url: str | None, network: str) -> None:
    served = replace(config, engine="openai", model="org/name", settings={"base_url": url})

    assert inputs_of(served).network("auto") == network


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vllm", ("vllm", "latest")),
        ("host:5000/a/vllm", ("host:5000/a/vllm", "latest")),
        ("host:5000/a/vllm:1.2-cuda12", ("host:5000/a/vllm", "1.2-cuda12")),
        ("a/b@sha256:00ff", ("a/b", "sha256:00ff")),
    ],
)
def test_names_of_images_are_split(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt_llm"])
def test_stock_images_are_pinned_and_what_the_own_ones_are_built_on(engine: str) -> None:
    """`latest` gave another engine, and other joules, from one pull to the next."""
    stock = str(shipped_engines()[engine].stock_image)

    assert split_name(stock)[1][:1] in "v0123456789"
    assert f"ARG BASE_IMAGE={stock}\n" in (IMAGES / engine / "Dockerfile").read_text()


def test_own_images_carry_the_version_and_are_what_the_bake_file_builds() -> None:
    bake = (IMAGES / "docker-bake.hcl").read_text()

    assert own_image("vllm") == f"ghcr.io/pytest-llem/vllm:{pytest_llem.__version__}"
    assert 'variable "REGISTRY" { default = "ghcr.io/pytest-llem" }' in bake
    assert 'tags     = ["${REGISTRY}/vllm:${VERSION}"]' in bake


def test_the_way_over_ssh() -> None:
    command = ssh_command("ssh://me@gpu7:2222")

    assert command[0] == "ssh"
    assert command[-6:] == ["me", "-p", "2222", "--", "gpu7", "docker system dial-stdio"]
    with pytest.raises(SettingsError):
        ssh_command("ssh://")


def subject(engine: str, devices: DeviceSet) -> PreflightSubject:
    return PreflightSubject(engine, "an/image", (), devices, DockerSettings())


@pytest.mark.parametrize(
    ("engine", "kind", "build", "said"),
    [
        ("transformers", "cuda", "cpu", "its torch was built for cpu, and engine transformers would run on cuda"),
        ("vllm", "cpu", "cuda", "its torch was built for cuda, and engine vllm would run on cpu"),
        ("transformers", "cpu", "cuda", None),
        ("vllm", "cpu", None, None),
    ],
)
def test_an_image_whose_torch_is_for_another_kind_of_device_is_refused(
    engine: str, kind: DeviceKind, build: str | None, said: str | None
) -> None:
    """The cycle began with a GPU leased, and failed once the engine had been imported in the container."""
    gpu = {"uuids": ["GPU-1"], "driver": "580", "cuda": 13000}
    answer = {"python": "3.12", "missing": [], "writable": True, "shm_bytes": None, "torch_cuda": None, "gpu": gpu}
    devices = DeviceSet(kind, ("GPU-1",) if kind == "cuda" else ())

    problems = list(_judge({**answer, "torch_build": build}, FACTS, subject(engine, devices)))

    assert [said in str(problem) for problem in problems if said] == [True] * (said is not None)
    assert bool(problems) == (said is not None)


def test_a_container_without_a_gpu_sees_none_of_either_maker() -> None:
    request = ContainerRequest("n", FACTS, (), DeviceSet("cpu"), DockerSettings(), "none")
    environment = container_environment(request)
    hidden = {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    assert hidden.items() <= environment.items()


def test_a_container_gets_the_cpus_that_its_experiment_is_pinned_to() -> None:
    """Inside, the affinity alone would leave the memory of all nodes, and the kernel's choice to what is started."""
    first = min(os.sched_getaffinity(0))
    pinned = DeviceSettings(cpus=str(first))
    request = ContainerRequest("n", FACTS, (), DeviceSet("cpu"), DockerSettings(), "none", pinned=pinned)
    assert cpusets(request) == {"cpuset_cpus": str(first), "cpuset_mems": None}
    assert recorded_options(request)["cpuset_cpus"] == str(first)
    assert cpusets(replace(request, pinned=DeviceSettings())) == {"cpuset_cpus": None, "cpuset_mems": None}
