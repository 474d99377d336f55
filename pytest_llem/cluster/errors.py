"""Translates Ray's errors for a cycle: a lost node, an interruption, or a failure with its remedy.

The runner and the tasks call it with whatever `ray.get` raised.
"""

from __future__ import annotations

from ray import exceptions as ray_errors

from pytest_llem.errors import InterruptedCycleError, LlemError, NodeLostError, OutOfMemoryError, RunnerError

LOST = (
    ray_errors.NodeDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.LocalRayletDiedError,
    ray_errors.TaskUnschedulableError,
)
"""The node, Ray's process on it, or what it sent is gone: the cycle may be tried on another."""


def translate_ray_error(error: BaseException, title: str) -> LlemError:
    """The error of a cycle whose Ray task ended with this exception; a `NodeLostError` is worth another try."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray_errors.TaskCancelledError) or isinstance(cause, ray_errors.TaskCancelledError):
        return InterruptedCycleError(f"{title}: its Ray task was cancelled")
    if isinstance(error, LOST):
        return NodeLostError(f"{title}: {_sentence(error)}", details={"error": type(error).__name__})
    if isinstance(error, ray_errors.OutOfMemoryError):
        return OutOfMemoryError(
            f"{title}: Ray ended it because the node was running out of memory: {_sentence(error)}",
            fix="use a smaller model, batch or dtype, or a node with more memory",
        )
    if isinstance(error, ray_errors.RuntimeEnvSetupError):
        return RunnerError(
            f"{title}: the runtime environment cannot be set up on the node: {_cause(error)}",
            fix="correct the study's ray.runtime_env, or install what it names in the nodes' image; pip and uv need "
            "ray[default] on the nodes",
        )
    missing = cause if isinstance(cause, ImportError) else error if isinstance(error, ImportError) else None
    if missing is not None:
        return RunnerError(
            f"{title}: the node cannot import what it needs: {missing}",
            fix="install the same version of pytest-llem, with the engine, on every node (in its image), or name them "
            "in the study's ray.runtime_env: {pip: [...]}",
        )
    return RunnerError(f"{title}: the task failed on its node: {_sentence(cause or error)}")


def _cause(error: BaseException) -> str:
    """What a long report with tracebacks says went wrong: its last errors."""
    lines = [line.strip() for line in str(error).splitlines()]
    errors = [
        line for line in lines if line.startswith("ERROR") or line.partition(":")[0].endswith(("Error", "Exception"))
    ]
    return "; ".join(dict.fromkeys(errors[-2:])) or _sentence(error)


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if isinstance(error, ray_errors.RayTaskError) and lines else " ".join(lines)
    return text[:400] or type(error).__name__
