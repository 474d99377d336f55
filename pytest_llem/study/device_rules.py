"""Rules for the section `device`: which kind of device an engine can compute on, and what goes with which kind.

`rules` has them among its own. They know no machine: what this one lacks, `machine.device_checks` says.
"""

from __future__ import annotations

from collections.abc import Iterable

from pytest_llem.engines import engine_info, shipped_engines
from pytest_llem.engines.info import PARALLEL_SIZES, EngineInfo, parallel_product
from pytest_llem.errors import SettingsError
from pytest_llem.job.config import AskedKind
from pytest_llem.job.gpu_setting import SETTING_NAMES
from pytest_llem.study.canonical import Get
from pytest_llem.study.fields import Clear, WrittenSetting
from pytest_llem.study.rule import Rule, refused
from pytest_llem.study.values import shown
from pytest_llem.worker.pinning import parse_cpus

KIND, GPUS, CPUS, NODE = "device.kind", "device.gpus", "device.cpus", "device.numa_node"
PINNED = (CPUS, NODE)


def on_device(kind: AskedKind, settings: Iterable[WrittenSetting]) -> list[WrittenSetting]:
    """The settings with this kind of device where they leave it open: an `auto`, or a section that is cleared."""
    told: list[WrittenSetting] = []
    for each in settings:
        told.append(each._replace(value=kind) if each.path == KIND and each.value == "auto" else each)
        if each.path == "device" and isinstance(each.value, Clear):
            told.append(WrittenSetting(KIND, kind, each.origin))
    return told


def _possible_kind(get: Get) -> str | None:
    kind, engine = get(KIND), str(get("engine"))
    kinds = engine_info(engine).device_kinds
    if kind == "auto" or kind in kinds:
        return None
    return refused(
        f"{KIND} {kind} cannot be combined with engine {engine}, which computes on {' or '.join(kinds)}",
        f"leave {KIND} out, or use another engine",
    )


def _running_server(get: Get) -> str | None:
    if get("openai.base_url") is None:
        return None
    fix = "leave it out; a server that is started for the study (openai.command, openai.image) can be told"
    if get(KIND) == "cpu":
        return refused(f"{KIND} cpu cannot be combined with openai.base_url: that server has its devices already", fix)
    for path in PINNED:
        if get(path) is not None:
            return refused(f"{path} cannot be combined with openai.base_url: that server runs already", fix)
    if isinstance(get(GPUS), int):
        return refused(
            f"{GPUS} {get(GPUS)} cannot be combined with openai.base_url: which of them it uses is decided already",
            f"name the server's GPUs, such as {GPUS}: [0, 1]",
        )
    return None


def _of_one_kind(get: Get) -> str | None:
    kind = get(KIND)
    if kind == "cpu" and get(GPUS):
        return refused(f"{GPUS} {shown(get(GPUS))} cannot be combined with {KIND} cpu", "leave one of them out")
    setting = next((f"device.{name}" for name in SETTING_NAMES if get(f"device.{name}") is not None), None)
    if kind in ("cpu", "rocm") and setting is not None:
        text = f"{setting} cannot be combined with {KIND} {kind}: only NVIDIA GPUs can be set"
        return refused(text, f"leave {setting} out")
    for path in PINNED:
        if get(path) is None:
            continue
        other = f"{KIND} {kind}" if kind not in ("auto", "cpu") else GPUS if get(GPUS) else None
        if other is not None:
            text = f"{path} {get(path)} cannot be combined with {other}: it pins an experiment on the CPU"
            return refused(text, f"leave {path} out, or write {KIND}: cpu")
    return None


def _written_cpus(get: Get) -> str | None:
    try:
        if get(CPUS) is not None:
            parse_cpus(str(get(CPUS)))
    except SettingsError as problem:
        return refused(problem.message, str(problem.fix))
    return None


def _count(info: EngineInfo) -> Rule:
    """How many GPUs go with the parallel sizes of an engine; a list of names is what they are chosen from."""
    sizes = tuple(f"{info.name}.{name}" for name in PARALLEL_SIZES)

    def check(get: Get) -> str | None:
        count = get(GPUS)
        if not isinstance(count, int):
            return None
        needed = parallel_product(lambda name: get(f"{info.name}.{name}"))
        if count < needed:
            return refused(
                f"{GPUS} {count} is less than the {needed} that the parallel sizes of engine {info.name} ask for",
                f"raise {GPUS}, or leave it out: as many are taken as they ask for",
            )
        if count > needed and info.gpus_by_sizes:
            return refused(
                f"{GPUS} {count} is more than the {needed} that the parallel sizes of engine {info.name} ask for: the "
                "others would idle, and their energy count",
                f"raise {info.name}.tensor_parallel_size, or leave {GPUS} out",
            )
        return None

    return Rule((GPUS, *sizes), check, info.name)


def _spread(get: Get) -> str | None:
    count = get(GPUS)
    if isinstance(count, int) and count > 1 and get("transformers.device_map") is None:
        return refused(
            f"{GPUS} {count} cannot be combined with transformers.device_map null: one GPU would have the model, and "
            "the others idle",
            "write transformers.device_map: auto",
        )
    return None


DEVICE_RULES = (
    Rule((KIND, "engine"), _possible_kind),
    Rule((KIND, GPUS, *PINNED), _of_one_kind),
    Rule((CPUS,), _written_cpus),
    Rule((KIND, GPUS, *PINNED, "openai.base_url"), _running_server, "openai"),
    *(_count(info) for info in shipped_engines().values()),
    Rule((GPUS, "transformers.device_map"), _spread, "transformers"),
)
