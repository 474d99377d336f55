"""Which settings of GPUs are refused: before anything runs where the board is visible, and where a cycle is measured.

The session asks for a study's experiments, `runners.measure_here` once more under the lease. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pynvml

from pytest_llem.energy.nvml_devices import nvml, remedy
from pytest_llem.energy.processes import ancestors, is_here
from pytest_llem.engines import engine_info
from pytest_llem.errors import DeviceSettingsError
from pytest_llem.job.gpu_setting import SETTING_NAMES, SettingName
from pytest_llem.job.job import Job, MeterSettings
from pytest_llem.machine.device_checks import Place
from pytest_llem.machine.devices import (
    asked_kind,
    gpu_kind,
    named_gpus,
    names_gpus,
    serves_already,
    visible_gpus,
    visible_of,
)
from pytest_llem.machine.gpu_settings.board import ORDER, Board, Refusal
from pytest_llem.machine.gpu_settings.ways import require_way
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE, leases_are_off
from pytest_llem.machine.occupancy import Occupancy
from pytest_llem.worker.servers import running_server

if TYPE_CHECKING:
    from pytest_llem.study import Experiment, Study

CLOCKS: frozenset[SettingName] = frozenset({"sm_clock_mhz", "memory_clock_mhz"})
VERIFYING_METERS = ("auto", "nvml")
LEAVE_OUT = "leave the settings of `device` out"


def refused_settings(study: Study, place: Place) -> dict[str, str]:
    """Experiments (by id) whose settings of GPUs cannot be made here, with the reason to skip them.

    Of engines elsewhere the boards are not visible: only what holds everywhere is judged. Raises
    `DeviceSettingsError`, at the place of the setting, unless the study skips what cannot run.
    """
    option = f", leave --llem-device={place.kind} out" if place.kind in ("cpu", "rocm") else ""
    refused: dict[str, str] = {}
    known: dict[object, tuple[SettingName, Refusal] | None] = {}
    for experiment in study.experiments:
        asked = _asked(experiment)
        if not asked:
            continue
        flat = experiment.flat_settings
        url = flat.get(f"{experiment.engine}.base_url") if engine_info(experiment.engine).serves_over_http else None
        here = experiment.engine not in place.elsewhere
        kind = asked_kind(experiment)
        key = (*asked.items(), kind, str(flat.get("device.gpus")), url, here)
        if key not in known:
            runs_on = kind if not here else gpu_kind(kind) if names_gpus(experiment) else visible_of(kind)[0]
            refusal = _everywhere(runs_on, url, place.meter)
            name = next(iter(asked))
            known[key] = (name, refusal) if refusal is not None else _on_boards(asked, experiment) if here else None
        found = known[key]
        if found is None:
            continue
        name, refusal = found
        path = f"device.{name}"
        if not study.skips_invalid:
            value = flat[path]
            raise DeviceSettingsError(
                f"{study.locate(path, value)}: {experiment.id}: {path} {_shown(value)}: {refusal.text}",
                fix=f"{refusal.fix}{option}, or set on_invalid: skip",
            )
        refused[experiment.id] = f"{path}: {refusal.text}; {refusal.fix}"
    return refused


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _asked(experiment: Experiment) -> dict[SettingName, float | str]:
    flat = experiment.flat_settings
    values = {name: flat.get(f"device.{name}") for name in SETTING_NAMES}
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str))}


def _everywhere(kind: str, url: object, meter: str) -> Refusal | None:
    """What refuses all settings, whatever the board."""
    if kind in ("cpu", "rocm"):
        runs_on = "the CPU" if kind == "cpu" else "an AMD GPU"
        return Refusal(f"it runs on {runs_on} here, and only NVIDIA GPUs can be set", LEAVE_OUT)
    if leases_are_off():
        return Refusal(
            f"{LEASE_DIR_VARIABLE}=none: without leases two runs would set one GPU at a time",
            f"unset {LEASE_DIR_VARIABLE}, or {LEAVE_OUT}",
        )
    if meter not in VERIFYING_METERS:
        return Refusal(
            f"the meter {meter} does not read clocks and limits, so that nobody would know whether they held",
            f"use the meter auto or nvml, or {LEAVE_OUT}",
        )
    if isinstance(url, str) and is_here(urlsplit(url).hostname or "") is False:
        return Refusal(f"the server at {url} is another machine's", f"set its GPUs there, and {LEAVE_OUT}")
    return None


def _on_boards(asked: Mapping[SettingName, float | str], experiment: Experiment) -> tuple[SettingName, Refusal] | None:
    """What refuses a setting on a GPU that is visible here; any of them may be leased."""
    first = next(iter(asked))
    gpus = named_gpus(experiment.config) or visible_gpus()
    try:
        with nvml():
            for board in map(Board, gpus):
                if board.mig():
                    return first, _divided(board)
                held = _application_clocks(board, asked)
                if held is not None:
                    return next(name for name in asked if name in CLOCKS), held
                for name, requested in asked.items():
                    refusal = board.refusal(name, requested, asked)
                    if refusal is not None:
                        return name, refusal
                for name in ORDER:
                    if name in asked:
                        try:
                            require_way(board, name, board.target(name, asked[name]))
                        except DeviceSettingsError as problem:
                            return name, Refusal(problem.message, problem.fix or LEAVE_OUT)
    except pynvml.NVMLError as problem:
        return first, Refusal(f"the NVIDIA driver does not answer: {problem}", remedy(problem))
    return None


def _divided(board: Board) -> Refusal:
    return Refusal(
        f"{board.uuid} is divided by MIG, and its settings are those of all its parts",
        f"let the experiment have a whole GPU, or {LEAVE_OUT}",
    )


def require_settable(job: Job, leased: Sequence[str], occupied: Sequence[Occupancy]) -> None:
    """Raise `DeviceSettingsError` where the devices of a job must not be set; `occupied` is what is on the GPUs."""
    refusal = _everywhere(job.devices.kind, job.config.settings.get("base_url"), _meter(job.meter))
    if refusal is None and (job.devices.kind != "cuda" or not leased):
        refusal = Refusal("no NVIDIA GPU was leased", LEAVE_OUT)
    try:
        refusal = refusal or _on_occupied(job, occupied) or _on_board(job)
    except pynvml.NVMLError as problem:
        refusal = Refusal(f"the NVIDIA driver does not answer: {problem}", remedy(problem))
    if refusal is not None:
        raise DeviceSettingsError(f"{', '.join(job.config.device.gpu_settings)}: {refusal.text}", fix=refusal.fix)


def _meter(meter: MeterSettings) -> str:
    return meter.name if meter.explicit else "auto"


def _on_board(job: Job) -> Refusal | None:
    asked = job.config.device.gpu_settings
    with nvml():
        for board in map(Board, job.devices.uuids):
            if board.mig():
                return _divided(board)
            for name, requested in asked.items():
                refusal = board.refusal(name, requested, asked)
                if refusal is not None:
                    return Refusal(f"device.{name} {_shown(requested)}: {refusal.text}", refusal.fix)
            refusal = _application_clocks(board, asked)
            if refusal is None and CLOCKS & set(asked) and board.lock_shows():
                command = f"sudo nvidia-smi -i {board.uuid}"
                text = f"somebody's setting holds the clocks of {board.uuid}, and no driver tells which"
                refusal = Refusal(f"{text}: it could not be put back", f"{command} -rgc; {command} -rmc")
            if refusal is not None:
                return refusal
    return None


def _application_clocks(board: Board, asked: Mapping[SettingName, float | str]) -> Refusal | None:
    clocks = board.application_clocks() if CLOCKS & set(asked) else None
    if clocks is None:
        return None
    return Refusal(f"somebody has set clocks of {board.uuid}: {clocks}", f"sudo nvidia-smi -i {board.uuid} -rac")


def _on_occupied(job: Job, occupied: Sequence[Occupancy]) -> Refusal | None:
    """Who else computes on the GPUs: everybody but a server that runs already, which must be on all of them."""
    server: int | None = None
    if serves_already(job.config):
        tree = running_server(str(job.config.settings["base_url"])).tree
        server = tree.pid if tree is not None else None
        if server is None:
            return Refusal("which process is the server's is not known, and so not which GPUs are", LEAVE_OUT)
    for gpu in occupied:
        own = {pid: used for pid, used in gpu.processes.items() if server is not None and server in ancestors(pid)}
        if gpu.others(own):
            return Refusal(f"{gpu.uuid} is shared: {gpu.text(own)}", f"end these processes, or {LEAVE_OUT}")
        if server is not None and not own:
            return Refusal(f"the server (process {server}) is not on {gpu.uuid}", "name its GPUs in device.gpus")
    return None
