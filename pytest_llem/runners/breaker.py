"""Repeated failure: what failed twice in a row for a cause that does not heal by itself is not tried a third time.

`session.measuring` asks it before each cycle; the Ray runner looks up `LASTING`. Only what it lists may stop a run.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.errors import LlemError

THRESHOLD = 2
"""Chosen: one failure may be an accident; a third would only cost time."""

LASTING = {
    "engine_not_installed": "engine",
    "model_not_found": "model",
    "hf_gated": "model",
    "hf_not_found": "model",
    "workload": "dataset",
    "image_not_found": "image",
    "registry_auth": "image",
    "image_contents": "image",
    "arch_mismatch": "image",
    "daemon_down": "runner",
    "daemon_permission": "runner",
    "gpu_runtime_missing": "runner",
    "gpu_driver_missing": "runner",
    "driver_mismatch": "machine",
    "gpu_not_visible": "machine",
    "not_released": "device",
    "disk_full": "machine",
    "server_start": "server",
    "server_not_ready": "server",
}
"""Categories of errors that do not heal by themselves, and what an item must share to be hit by the same cause."""


class Breaker:
    """Counts consecutive failures of one cause in this process; a changed cause or a success starts anew."""

    def __init__(self) -> None:
        self._cause: LlemError | None = None
        self._shared: tuple[str, str | None] | None = None
        self._count = 0

    def refuse(self, dependencies: Mapping[str, str | None]) -> LlemError | None:
        """Why an item with these dependencies need not be tried; `None` when it should."""
        if self._cause is None or self._shared is None or self._count < THRESHOLD:
            return None
        kind, value = self._shared
        if dependencies.get(kind) != value:
            return None
        return self._cause.restated(f"not run: {self._cause.message} (the same in the {self._count} cycles before)")

    def record(self, error: LlemError | None, dependencies: Mapping[str, str | None]) -> None:
        """Take note of how a cycle that was tried ended."""
        kind = LASTING.get(error.category) if error is not None else None
        if error is None or kind is None:
            self._cause, self._shared, self._count = None, None, 0
            return
        shared = (kind, dependencies.get(kind))
        same = self._cause is not None and (self._cause.category, self._shared) == (error.category, shared)
        self._count = self._count + 1 if same else 1
        self._cause, self._shared = error, shared
