"""Which of the GPUs that were read are the cycle's own: the leased ones, or those that hold a process of its server.

`gpu_meter` calls it after the cycle, with the process listings of the sampler. It must never guess: energy of a GPU
that may be another's is no energy of the cycle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llem.energy import nvml_devices
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import GpuFacts
from pytest_llem.job.config import DeviceKind
from pytest_llem.job.report import Note

NAME_THEM = "name them in the study: `device: {gpus: [0, 1]}`"


@dataclass(frozen=True)
class Attribution:
    """The GPUs whose energy is the cycle's, by UUID; reasons against that, and what to know about it."""

    gpus: frozenset[str]
    invalid: tuple[Note, ...] = ()
    notes: tuple[Note, ...] = ()


def own_pids(event: Mapping[str, Any], containers: frozenset[str]) -> set[int]:
    """Of an event `processes` the ids in the trees of meter and server, or in one of the measured containers."""
    inside = {int(pid) for pid, name in event["containers"].items() if name in containers}
    return (set(event.get("pids", ())) - set(event["foreign"]) - set(event["unknown"])) | inside


def attribute(
    request: MeterRequest,
    kind: DeviceKind,
    gpus: Sequence[GpuFacts],
    events: Iterable[Mapping[str, Any]],
    containers: frozenset[str],
) -> Attribution:
    """The GPUs of the cycle among those of a `kind` that were read.

    Which of AMD's GPUs HIP calls by which number only `amdsmi` says: the driver must show the cycle on no other than
    the leased ones. A server may compute on others than those leased: its are those on which the driver shows a process
    of its tree, unless the study names them. Where nothing is leased, the GPUs that hold a process of the cycle count.
    """
    listed = [event for event in events if event["event"] == "processes"]
    seen = {str(event["device"]) for event in listed if own_pids(event, containers)}
    read = {gpu.uuid for gpu in gpus}
    leased = {gpu.uuid for gpu in gpus if gpu.leased}
    if request.devices.kind != kind:
        own = (seen & read) or (read if len(read) == 1 and not listed else set())
        message = "no process of the cycle was seen on a GPU that was read, whose energy is not the engine's"
        return Attribution(frozenset(own), () if own else (Note("meter_not_on_device", message),))
    if request.server is None:
        return Attribution(frozenset(leased), _misplaced(leased, seen) if kind == "rocm" else ())
    problem = _server_problem(request.server.pid, seen, read, any(event["unknown"] for event in listed))
    if request.settings.named_gpus:
        notes = (Note("server_gpu_unknown", f"{problem}; the GPUs are those that the study names"),) if problem else ()
        return Attribution(frozenset(leased), notes=notes)
    if problem is not None:
        return Attribution(frozenset(leased), (Note("server_gpu_unknown", f"{problem}: {NAME_THEM}"),))
    return Attribution(frozenset(seen), notes=_not_leased(request, seen))


def _misplaced(leased: set[str], seen: set[str]) -> tuple[Note, ...]:
    """The reason against a cycle that the driver shows on others than its leased GPUs."""
    if seen <= leased:
        return ()
    return (
        Note("meter_not_on_device", f"the cycle ran on {', '.join(sorted(seen - leased))}, which it did not lease"),
    )


def leased_gpus(request: MeterRequest) -> list[nvml_devices.Gpu]:
    """The cycle's NVIDIA GPUs; none for one on other devices."""
    if request.devices.kind != "cuda":
        return []
    with nvml_devices.nvml():
        return nvml_devices.find(request.devices.uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))


def server_elsewhere(request: MeterRequest) -> tuple[Note, ...]:
    """For meters that list no processes: the reason against a server whose GPUs are not exactly the leased ones."""
    if request.server is None or request.devices.kind == "cpu" or request.settings.named_gpus:
        return ()
    if request.devices.kind != "cuda":
        return (
            Note("server_gpu_unknown", f"this meter does not see which AMD GPUs a server computes on: {NAME_THEM}"),
        )
    pid, leased = request.server.pid, {gpu.uuid for gpu in leased_gpus(request)}
    with nvml_devices.nvml():
        seen = {gpu.uuid for gpu in nvml_devices.holding(pid)} if pid is not None else set()
    problem = _server_problem(pid, seen, leased, unknown=False)
    if problem is None and seen != leased:
        problem = f"the server computes on {', '.join(sorted(seen))} only"
    return () if problem is None else (Note("server_gpu_unknown", f"{problem}: {NAME_THEM}"),)


def _server_problem(pid: int | None, seen: set[str], read: set[str], unknown: bool) -> str | None:
    if pid is None:
        return "the server's process is not known here, and so its GPUs are not"
    if not seen:
        reason = "their processes have ids of another namespace" if unknown else "there may be none"
        return f"the driver shows no process of the server on any GPU ({reason})"
    if not seen <= read:
        return f"the server computes on {', '.join(sorted(seen - read))} as well, which was not metered"
    return None


def _not_leased(request: MeterRequest, seen: set[str]) -> tuple[Note, ...]:
    names = {name.removeprefix("GPU-") for name in request.devices.uuids}
    others = sorted(uuid for uuid in seen if uuid.removeprefix("GPU-") not in names)
    if not others or any(name.startswith("MIG-") for name in names):
        return ()
    return (Note("server_gpu_not_leased", f"the server computes on {', '.join(others)}, which others may lease"),)
