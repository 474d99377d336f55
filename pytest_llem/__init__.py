"""The public names of pytest-llem: what other code may import and rely on.

Users' tests, scripts and packages import from here; docs/api.md lists the same names. A name may be added at any time,
and leaves only after a release that warns of it. A worker inside an image imports this file too, so nothing is loaded
before it is asked for; the types of the names are in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0.dev0"

_HOMES = {
    "results": ("Result", "Results", "load"),
    "results.metrics": ("Metric",),
    "results.gates": ("Verdict", "judge_budget", "judge_ratio", "judge_runs"),
    "session.code_meter": ("CodeMeter",),
    "errors": (
        "DeviceError",
        "EngineError",
        "EngineNotInstalledError",
        "EngineSettingError",
        "LlemError",
        "MeterError",
        "ModelNotFoundError",
        "OutOfMemoryError",
        "RunnerError",
        "ServerError",
        "SettingsError",
        "StoreError",
        "StudyError",
        "WorkerError",
        "WorkloadError",
    ),
    "containers.errors": ("DockerError", "translate_docker_error"),
    "engines.protocol": ("Capabilities", "Completion", "Engine", "Request", "Tokenizer"),
    "energy.protocol": ("Meter", "MeterRequest"),
    "job.config": ("WorkloadSettings",),
    "job.measurement": ("EnergyReport", "Window", "WindowEnergy"),
}
"""The public names by the module that defines them, or that promises to keep them."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
