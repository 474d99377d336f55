"""What a reviewer asks of a figure or a table, in words: measured how, on what machine, with what software, when.

Captions and the paragraphs of `llem publish` are made of it. Each sentence is without its full stop, empty where
nothing is known: texts may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_llem.results.schema import Result


def measured(results: Sequence[Result]) -> Iterator[str]:
    """Which meter, what its joules cover, and what the uncertainty leaves out."""
    metered = [result.energy for result in results if result.energy.meter != "none"]
    for meter, scope, sensed in dict.fromkeys((energy.meter, energy.scope, energy.measured) for energy in metered):
        kind = "measured" if sensed else "NOT measured but estimated"
        yield f"Energy is {kind} (meter {meter}{f', scope {scope}' if scope else ''})"
    gains = sorted({gain for energy in metered if (gain := energy.gain_uncertainty_rel) is not None})
    if gains:
        stated = f"±{gains[-1] * 100:.2g} %"
        yield f"The sensor's gain error, {stated} (k=2) and alike in all values of one board, is not in the intervals"


def machine(results: Sequence[Result]) -> str:
    """The devices that were used, by name, with driver and power limit."""
    machines: list[str] = []
    for result in results:
        host, used = result.environment.host, set(result.runner.device_ids)
        gpus = [gpu for gpu in _list(host.get("gpus")) if isinstance(gpu, Mapping) and gpu.get("uuid") in used]
        named: dict[str, int] = {}
        for gpu in gpus:
            facts = [("driver", gpu.get("driver"), ""), ("power limit", gpu.get("power_limit_w"), " W")]
            told = ", ".join(f"{fact} {_plain(value)}{unit}" for fact, value, unit in facts if value is not None)
            name = f"{gpu.get('name')} ({told})" if told else str(gpu.get("name"))
            named[name] = named.get(name, 0) + 1
        cpu = host.get("cpu")
        model = cpu.get("model") if isinstance(cpu, Mapping) else None
        devices = [f"{count} × {name}" if count > 1 else name for name, count in named.items()]
        if not devices and used:
            devices = [f"{len(used)} {result.runner.device_kind} device{'s' * (len(used) != 1)}"]
        machines.append(", ".join([*devices, *([str(model)] if model else [])]))
    told = each_once(machines)
    return f"Machine: {told}" if told else ""


def software(results: Sequence[Result]) -> str:
    """Engines, torch, image and this package, with their versions."""
    engines = each_once(f"{result.engine.name} {result.engine.version}" for result in results)
    images = each_once(str(result.runner.image_digest or result.runner.image or "") for result in results)
    torch = each_once(_version(result, "torch") for result in results)
    own = each_once(str(result.environment.host.get("pytest_llem") or "") for result in results)
    named = {"torch": torch, "image": images, "pytest-llem": own}
    return ", ".join([engines, *(f"{what} {version}" for what, version in named.items() if version)])


def _version(result: Result, package: str) -> str:
    packages = result.environment.worker.get("packages")
    return str(packages.get(package) or "") if isinstance(packages, Mapping) else ""


def when(results: Sequence[Result]) -> str:
    """The day on which it was measured, or the first and the last."""
    days = sorted({(result.measured_from or result.created_at)[:10] for result in results})
    if not days:
        return ""
    return f"Measured on {days[0]}" if len(days) == 1 else f"Measured from {days[0]} to {days[-1]}"


def each_once(texts: Iterator[str] | Sequence[str]) -> str:
    """Each text once."""
    return "; ".join(text for text in dict.fromkeys(texts) if text)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()
