"""Runners: one file or package each, opened by name.

The session and the cluster's nodes open them with `open_runner`; the session reads `RUNNERS` for what they can do. A
new runner is a row there; only the chosen one may be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from pytest_llem.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llem.job.report import RunnerName, RunnerSpec
    from pytest_llem.runners.protocol import Runner, RunnerSettings


@dataclass(frozen=True)
class RunnerInfo:
    """What is known of a runner before it is imported: how it is opened (`module:callable`), and what it can do.

    `distributed` as in `Runner.distributed`; `keeps_engines` says that it can keep an engine loaded between cycles.
    `module` must be importable here, `install` says how it gets there, and `pitfall` what else can be in the way.
    """

    runner: str
    distributed: bool = False
    keeps_engines: bool = False
    module: str | None = None
    install: str | None = None
    pitfall: str | None = None


RUNNERS: Mapping[RunnerName, RunnerInfo] = {
    "local": RunnerInfo("pytest_llem.runners.local:LocalRunner.open", keeps_engines=True),
    "docker": RunnerInfo("pytest_llem.containers.runner:DockerRunner.open"),
    "ray": RunnerInfo(
        "pytest_llem.cluster.runner:RayRunner",
        distributed=True,
        module="ray",
        install="pip install 'pytest-llem[ray]'",
        # Ray imports `amdsmi` where zeus brought it, and that raises KeyError on machines without ROCm.
        pitfall="where the problem names libamd_smi, also: pip uninstall amdsmi",
    ),
}


def open_runner(spec: RunnerSpec, settings: RunnerSettings) -> Runner:
    """A runner for the spec; `RunnerError` where it cannot keep engines loaded as asked, or cannot be imported."""
    info = RUNNERS[spec.name]
    if settings.isolation != "process" and not info.keeps_engines:
        raise RunnerError(
            f"execution.isolation: {settings.isolation} cannot be combined with the runner {spec.name}",
            fix="use execution.isolation: process, or the runner local",
        )
    try:
        opened: Callable[[RunnerSpec, RunnerSettings], Runner] = resolve_name(info.runner)
    except (ImportError, KeyError, OSError) as problem:
        if info.module is None:
            raise
        raise RunnerError(
            f"{info.module} cannot be imported: {type(problem).__name__}: {problem}",
            fix="; ".join(filter(None, (info.install, info.pitfall))),
        ) from None
    return opened(spec, settings)
