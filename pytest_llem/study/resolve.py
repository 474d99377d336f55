"""From canonical leaves to the resolved configuration that a worker gets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pytest_llem.decode import decode
from pytest_llem.errors import JsonValue
from pytest_llem.job import ExperimentConfig
from pytest_llem.study.canonical import asleep_by_default, same
from pytest_llem.study.engine_names import engine_names
from pytest_llem.study.fields import Leaves, defaults
from pytest_llem.study.flatten import unflatten

_LOCAL = ("./", "../", "~/")
_FILES = (".jsonl", ".json", ".csv", ".txt", ".parquet")


@cache
def _common_defaults() -> Mapping[str, JsonValue]:
    return {path: value for path, value in defaults().items() if path.partition(".")[0] not in engine_names()}


def resolve(kept: Leaves, directory: Path) -> ExperimentConfig:
    """The configuration with every default spelled out; relative paths start at `directory`, the study's."""
    engine = str(kept.get("engine", defaults()["engine"]))
    asleep = asleep_by_default(kept)
    common = {**_common_defaults(), **{path: kept[path] for path in kept if path.partition(".")[0] != engine}}
    common.pop("decoding.preset", None)
    for path in asleep & common.keys():
        common[path] = defaults()[path]
    data = unflatten(common)
    data["settings"] = _engine_settings(kept, engine, asleep)
    for key in ("model", "lora"):
        data[key] = _local(data.get(key), directory, files=False)
    workload = data["workload"]
    if isinstance(workload, dict):
        workload["dataset"] = _local(workload["dataset"], directory, files=True)
    return decode(ExperimentConfig, data)


def _engine_settings(kept: Leaves, engine: str, asleep: set[str]) -> dict[str, JsonValue]:
    known = defaults()
    prefix = f"{engine}."
    found: Leaves = {}
    for path, default in known.items():
        if path.startswith(prefix) and path not in asleep:
            value = kept.get(path, default)
            if value is not None and _speaks(path, kept):
                found[path] = value
    found.update({path: kept[path] for path in kept if path.startswith(prefix) and path not in known})
    settings = unflatten(found).get(engine, {})
    return settings if isinstance(settings, dict) else {}


def _speaks(path: str, kept: Leaves) -> bool:
    """Whether a setting's section is in use: a nested section counts once something in it is set."""
    section = path.rpartition(".")[0]
    if "." not in section:
        return True
    return any(other.startswith(f"{section}.") and not same(kept[other], defaults().get(other)) for other in kept)


def _local(value: JsonValue, directory: Path, *, files: bool) -> JsonValue:
    if not isinstance(value, str):
        return value
    if value.startswith(_LOCAL) or (files and value.endswith(_FILES) and "://" not in value):
        path = Path(value).expanduser()
        return str(path if path.is_absolute() else (directory / path).resolve())
    return value
