"""BoAmps for `llem export`: Boavizta's report of the energy of an AI task, a JSON file per valid result with energy.

`exports` loads it by name. Fields, units (kWh, s, GB) and lists of values are those of the schemas in github.com/
Boavizta/BoAmps, `model/`, format 1.1.0 (CC BY 4.0); docs/results.md says what each is filled with. A field whose
meaning is not ours, or that a run does not know, is absent. What only people know is `stated` by its path there,
`infrastructure.infraType` always, since the schema requires it. Uncertainty and scope, for which it has no fields,
are in `task.taskDescription`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import cast
from uuid import NAMESPACE_URL, uuid5

from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.job.files import slug, write_json
from pytest_llem.results.comparability import conditions
from pytest_llem.results.exports.sensor import sensor_of
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import IDLE

VERSION = "1.1.0"
JOULES_PER_KWH = 3.6e6
"""By definition."""
INFRASTRUCTURE = "infrastructure.infraType"
TEXT, NUMBER = "text", "number"
STATED: Mapping[str, str | tuple[str, ...]] = {
    INFRASTRUCTURE: ("publicCloud", "privateCloud", "onPremise", "other"),
    "infrastructure.cloudProvider": TEXT,
    "infrastructure.cloudInstance": TEXT,
    "infrastructure.cloudService": TEXT,
    "environment.country": TEXT,
    "environment.location": TEXT,
    "environment.latitude": NUMBER,
    "environment.longitude": NUMBER,
    "environment.powerSupplierType": ("public", "private", "internal", "other"),
    "environment.powerSource": ("solar", "wind", "nuclear", "hydroelectric", "gas", "coal", "other"),
    "environment.powerSourceCarbonIntensity": NUMBER,
    "header.licensing": TEXT,
    "header.reportStatus": ("draft", "final", "corrective", "other"),
    "header.publisher.confidentialityLevel": ("public", "internal", "confidential", "secret"),
    "header.publisher.name": TEXT,
    "header.publisher.division": TEXT,
    "header.publisher.projectName": TEXT,
    "header.publisher.publicKey": TEXT,
    "task.taskFamily": TEXT,
}
"""Fields that only people know, with their values."""
NEEDED = {"header.publisher": "header.publisher.confidentialityLevel", "environment": "environment.country"}
"""What the schema requires of a part, where there is one."""
QUANTIZATION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PACKAGES = ("zeus", "codecarbon")
"""Meters that are other tools, with versions of their own."""
QUALITY = {"high": 0.10, "medium": 0.25, "low": 0.50}
"""The schema's percentage errors of the information."""


def export(results: Results, out: Path, stated: Mapping[str, str]) -> None:
    """A file per valid result with energy in the folder `out`; `SettingsError` for what is stated wrongly."""
    parts = checked(stated)
    measured = [each for each in results.valid if each.energy.energy_j is not None and each.tokens.output]
    if not measured:
        fix = "see llem list; energy needs a meter, and tokens of a command llem attach --server"
        raise StoreError("no valid result has energy and tokens, which BoAmps reports", fix=fix)
    out.mkdir(parents=True, exist_ok=True)
    for result in measured:
        name = slug(f"{result.study}-{result.experiment.id}")
        source = f"{slug(result.experiment.config_hash[:8])}-{slug(measurement_id(result).run)}"
        write_json(out / f"{name}-c{result.cycle}-{source}.json", report(result, parts))


def checked(stated: Mapping[str, str]) -> dict[str, str | float]:
    """What is stated, in the types of its fields."""
    found: dict[str, str | float] = {}
    for name, text in stated.items():
        kind = STATED.get(name)
        if kind is None:
            raise SettingsError(f"--set {name}: no field of BoAmps that is yours to state", fix=f"{', '.join(STATED)}")
        if isinstance(kind, tuple) and text not in kind:
            raise SettingsError(f"--set {name}={text}: no value of BoAmps", fix=f"use one of: {', '.join(kind)}")
        found[name] = _number(name, text) if kind == NUMBER else text
    needed = [
        INFRASTRUCTURE,
        *(field for part, field in NEEDED.items() if any(n.startswith(f"{part}.") for n in found)),
    ]
    for field in needed:
        if field not in found:
            kind = STATED[field]
            fix = f"--set {field}=... ({', '.join(kind) if isinstance(kind, tuple) else kind})"
            raise SettingsError(f"BoAmps requires {field}, which no run knows", fix=fix)
    return found


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"--set {name}={text}: not a number", fix=f"as --set {name}=12.5")
    return value


def report(result: Result, stated: Mapping[str, str | float]) -> dict[str, JsonValue]:
    """One result as a report."""
    measured, host = measurement_id(result), result.environment.host
    address = f"pytest-llem:{measured.run}/{result.study}/{result.experiment.id}/{result.cycle}"
    work, quality = result.workload, result.quality
    failed, tokens = work.failed_requests, {"input": result.tokens.input, "output": result.tokens.output}
    requests = None if work.requests is None or failed is None else work.requests * work.repeats - failed
    system, software = _known(os=_lower(host.get("os"))), _known(version=result.environment.worker.get("python"))
    found: dict[str, JsonValue] = {
        "header": {
            "formatVersion": VERSION,
            "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model",
            "reportId": str(uuid5(NAMESPACE_URL, address)),
            "reportDatetime": _moment(datetime.now(timezone.utc).isoformat()),
        },
        "task": {
            "taskStage": "inference",
            "taskFamily": "textGeneration",
            **_known(nbRequest=requests),
            "algorithms": [_algorithm(result)],
            "dataset": [
                {
                    "dataUsage": usage,
                    "dataType": "token",
                    **_known(dataQuantity=count / requests if requests and count is not None else None),
                }
                for usage, count in tokens.items()
            ],
            **_known(measuredAccuracy=None if quality is None else quality.accuracy),
            "taskDescription": _described(result),
        },
        "measures": [_measure(result)],
        "infrastructure": {"components": _components(result)},
    }
    found |= {"system": system} if system else {}
    found |= {"software": {"language": "python", **software}} if software and result.engine.name != "openai" else {}
    error = _error_rel(result)
    found |= _known(quality=next((name for name, most in QUALITY.items() if error is not None and error <= most), None))
    for name, value in stated.items():
        *parts, field = name.split(".")
        part = found
        for each in parts:
            part = part.setdefault(each, {})  # type: ignore[assignment]
        part[field] = value
    return found


def _algorithm(result: Result) -> dict[str, JsonValue]:
    model, effective = result.experiment.config.get("model"), result.engine.effective
    dtype, quantization = (conditions(result)[name] for name in ("dtype", "quantization"))
    dtype = str(dtype).removeprefix("torch.") if dtype else None
    quantization = QUANTIZATION.get(dtype, dtype) if dtype and quantization == "none" else quantization
    parameters = result.compute.parameters
    on_hub = (
        result.environment.comparable.get("model_commit") is not None or effective.get("model_revision") is not None
    )
    return {
        "algorithmType": "llm",
        **_known(
            foundationModelName=model if isinstance(model, str) else None,
            foundationModelUri=f"https://huggingface.co/{model}" if on_hub else None,
            parametersNumber=None if parameters is None else parameters / 1e9,
            quantization=quantization,
        ),
        "framework": result.engine.name,
        "frameworkVersion": result.engine.version,
    }


def _measure(result: Result) -> dict[str, JsonValue]:
    """The energy of the measure windows; what an idle window of this very cycle drew is the calibration."""
    energy, host = result.energy, result.environment.host
    idle = [each for each in energy.windows if each.name == IDLE and each.energy_j is not None]
    idle = [] if energy.idle_power_w is None or energy.idle_power_reused_from else idle
    packages = host.get("packages")
    foreign = energy.meter in PACKAGES
    version = packages.get(energy.meter) if foreign and isinstance(packages, Mapping) else host.get("pytest_llem")
    mode = sensor_of(result) if energy.measured else "estimate"
    return {
        "measurementMethod": energy.meter if foreign else "pytest-llem",
        **_known(version=version),
        **_known(**{"cpuTrackingMode" if result.runner.device_kind == "cpu" else "gpuTrackingMode": mode}),
        "powerConsumption": (energy.energy_j or 0.0) / JOULES_PER_KWH,
        **_known(
            powerCalibrationMeasurement=sum(each.energy_j or 0.0 for each in idle) / JOULES_PER_KWH if idle else None,
            durationCalibrationMeasurement=sum(e.end_ns - e.start_ns for e in idle) / 1e9 if idle else None,
            measurementDuration=result.throughput.duration_s,
            measurementDateTime=None if result.measured_from is None else _moment(result.measured_from),
        ),
    }


def _components(result: Result) -> list[JsonValue]:
    """The leased GPUs of each model, and the processor and memory beside them, as CodeCarbon's are counted there."""
    host, leased = result.environment.host, result.runner.device_ids
    gpus, cpu, memory = host.get("gpus"), host.get("cpu"), host.get("memory_total_bytes")
    boards: Counter[tuple[str, object]] = Counter(
        (str(gpu.get("name")), gpu.get("memory_total_bytes"))
        for gpu in (gpus if isinstance(gpus, list) else ())
        if isinstance(gpu, Mapping) and gpu.get("uuid") in leased
    )
    if not boards and leased:
        boards = Counter((str(each.name), None) for each in result.energy.devices if each.leased and each.id in leased)
    found: list[JsonValue] = [
        {"componentType": "gpu", "nbComponent": count, **_known(componentName=name, memorySize=_gigabytes(size))}
        for (name, size), count in boards.items()
    ]
    if isinstance(cpu, Mapping) and isinstance(cpu.get("logical_cores"), int):
        found.append(
            {"componentType": "cpu", **_known(nbComponent=cpu["logical_cores"], componentName=cpu.get("model"))}
        )
    if isinstance(memory, int):
        found.append({"componentType": "ram", "nbComponent": 1, "memorySize": _gigabytes(memory)})
    kind = "cpu" if result.runner.device_kind == "cpu" else "gpu"
    return found or [{"componentType": kind, "nbComponent": max(1, len(leased))}]


def _described(result: Result) -> str:
    """What the format has no field for."""
    energy, failed = result.energy, result.workload.failed_requests
    source = "measured" if energy.measured else "estimated by a model of the hardware, NOT measured"
    parts = [
        f"Study {result.study}, experiment {result.experiment.id}, cycle {result.cycle} of run {result.run_id}.",
        f"Energy of {energy.scope}, {source} ({energy.meter}).",
    ]
    if energy.uncertainty_j is not None:
        parts.append(f"Its expanded uncertainty (k=2) is {energy.uncertainty_j / JOULES_PER_KWH:.3g} kWh")
        gain = energy.gain_uncertainty_rel
        parts[-1] += "." if gain is None else f", to which the gain of the board's sensor adds {100 * gain:.3g} %."
    if result.experiment.config.get("weights") == "dummy":
        parts.append("The model's weights are random.")
    if result.experiment.config.get("lora") is not None:
        parts.append("An adapter was on top of the model.")
    if failed:
        parts.append(f"{failed} more requests failed.")
    return " ".join(parts)


def _error_rel(result: Result) -> float | None:
    """Sensor and board's gain together, k=2 (JCGM 100:2008, 5.1.2); `None` for what is estimated or not known."""
    energy = result.energy
    if not energy.measured or energy.uncertainty_j is None or energy.gain_uncertainty_rel is None:
        return None
    return math.hypot(energy.uncertainty_j / energy.energy_j, energy.gain_uncertainty_rel) if energy.energy_j else None


def _known(**fields: object) -> dict[str, JsonValue]:
    """Those that are known; they are of JSON."""
    return cast("dict[str, JsonValue]", {name: value for name, value in fields.items() if value is not None})


def _lower(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and value else None


def _gigabytes(size: object) -> int | None:
    """Whole ones, as the schema asks for, of 2^30 bytes, as memory is sold."""
    return round(size / 2**30) if isinstance(size, int) else None


def _moment(text: str) -> str:
    """As the schema writes times, in UTC."""
    return datetime.fromisoformat(text).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
