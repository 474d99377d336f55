"""The fingerprint changes with what makes energy comparable, and with nothing else."""

from __future__ import annotations

import json

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.machine.environment import changes, fingerprint, gather, identity
from pytest_llem.results.sections.compute import peak_flops_per_s

GPU: dict[str, JsonValue] = {"uuid": "GPU-1", "driver": "570.1", "power_limit_w": 700.0, "ecc": True, "mig": False}
HOST: dict[str, JsonValue] = {
    "cpu": {"model": "X", "logical_cores": 8, "governor": "performance"},
    "gpus": [GPU],
    "packages": {"torch": "2.13", "transformers": "5.23", "pytest": "9.2"},
    "hostname": "here",
}


def facts(
    host: dict[str, JsonValue], runner: str = "local", image: str | None = None, kind: str = "cuda"
) -> dict[str, JsonValue]:
    return identity(
        host,
        engine="transformers",
        runner=runner,
        image=image,
        device_kind=kind,
        device_count=1,
        meter="auto",
        inputs={},
    )


def test_gathered_facts_are_json_and_name_the_machine() -> None:
    found = json.loads(json.dumps(gather()))
    assert found["cpu"]["logical_cores"] >= 1
    assert found["memory_total_bytes"] > 0
    assert found["packages"]["pytest"]
    assert found["gathered_at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpus": [{**GPU, "power_limit_w": 500.0}]}, "gpu0_power_limit_w: 700.0 -> 500.0"),
        ({"gpus": [{**GPU, "uuid": "GPU-2"}]}, "gpu0_uuid: GPU-1 -> GPU-2"),
        ({"cpu": {"model": "Y", "logical_cores": 8, "governor": "performance"}}, "cpu_model: X -> Y"),
        ({"packages": {"torch": "2.14", "transformers": "5.23"}}, "package_torch: 2.13 -> 2.14"),
    ],
)
def test_what_matters_changes_the_fingerprint_and_is_named(change: dict[str, JsonValue], told: str) -> None:
    before, now = facts(HOST), facts({**HOST, **change})
    assert fingerprint(now) != fingerprint(before)
    assert changes(before, now) == [told]


@pytest.mark.parametrize(
    "change",
    [{"hostname": "there"}, {"packages": {"torch": "2.13", "transformers": "5.23", "pytest": "8.3"}}, {"git": "abc"}],
)
def test_what_does_not_matter_leaves_it(change: dict[str, JsonValue]) -> None:
    assert fingerprint(facts({**HOST, **change})) == fingerprint(facts(HOST))


def test_the_packages_of_this_python_say_nothing_about_a_container() -> None:
    changed: dict[str, JsonValue] = {**HOST, "packages": {"torch": "9.9"}}
    assert facts(changed, "docker", "sha256:1") == facts(HOST, "docker", "sha256:1")
    assert facts(HOST, "docker", "sha256:1") != facts(HOST, "docker", "sha256:2")


def test_a_result_on_fewer_cpus_is_not_reused_on_all() -> None:
    """`taskset -c 0 pytest` and `pytest --llem-resume` would make one mean of two machines."""
    eight: dict[str, JsonValue] = {"model": "X", "logical_cores": 8, "governor": "performance", "usable_cores": 8}
    all_of_them, one = ({**HOST, "cpu": {**eight, "usable_cores": usable}} for usable in (8, 1))
    assert changes(facts(all_of_them, kind="cpu"), facts(one, kind="cpu")) == ["cpu_usable_cores: 8 -> 1"]
    assert facts(all_of_them) == facts(one), "of a GPU it is the host's"
    image = ("docker", "sha256:1")
    assert facts(all_of_them, *image, kind="cpu") == facts(one, *image, kind="cpu"), "a container has all"


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "float16", 312.0),
        ("NVIDIA L40S", "float8_e4m3fn", 733.0),
        ("NVIDIA L4", "float32", 30.3),
        ("NVIDIA A100-SXM4-80GB", "int4", None),
        ("NVIDIA X9000", "bfloat16", None),
    ],
)
def test_peaks_are_known_by_board_and_dtype_or_not_at_all(name: str, dtype: str, tflops: float | None) -> None:
    assert peak_flops_per_s(name, dtype) == (None if tflops is None else tflops * 1e12)
