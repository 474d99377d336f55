"""Where a cycle runs: resolution, and one file per runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.errors import JsonValue, RunnerError
from pytest_llem.study.runner_settings import DockerSettings, RaySettings

if TYPE_CHECKING:
    from pytest_llem.cluster.settings import NodeTerms
    from pytest_llem.job.report import RunnerSpec
    from pytest_llem.runners.protocol import Isolation, Runner

__all__ = ["open_runner"]


def open_runner(
    spec: RunnerSpec,
    log_dir: Path,
    *,
    isolation: Isolation = "process",
    docker: Mapping[str, JsonValue] | None = None,
    ray: tuple[RaySettings, NodeTerms] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Runner:
    """A runner for the spec; only the chosen one is imported.

    `isolation` says for how long an engine stays loaded, which only the local runner can choose. `log_dir` receives
    logs that outlive a cycle, `docker` is the study's section of that name, `ray` what it says for a cluster and its
    nodes, and `tell` gets a sentence now and then while something takes long.
    """
    if isolation != "process":
        if spec.name != "local":
            raise RunnerError(
                f"execution.isolation: {isolation} cannot be combined with the runner {spec.name}",
                fix="use execution.isolation: process, or the runner local",
            )
        from pytest_llem.runners.resident import ResidentRunner

        return ResidentRunner(spec, log_dir, isolation)
    if spec.name == "local":
        from pytest_llem.runners.local import LocalRunner

        return LocalRunner(spec, log_dir)
    if spec.name == "docker":
        from pytest_llem.containers.runner import DockerRunner

        return DockerRunner(spec, DockerSettings.from_mapping(docker or {}), tell)
    try:
        from pytest_llem.cluster.runner import RayRunner
    except (ImportError, KeyError, OSError) as problem:
        # Ray imports `amdsmi` where zeus brought it, and that raises KeyError on machines without ROCm.
        raise RunnerError(
            f"ray cannot be imported: {type(problem).__name__}: {problem}",
            fix="pip install 'pytest-llem[ray]'; where the problem names libamd_smi, also: pip uninstall amdsmi",
        ) from None

    assert ray is not None, "a runner on a cluster needs the study's settings for it"
    return RayRunner(spec, log_dir, *ray)
