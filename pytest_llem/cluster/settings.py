"""The `ray:` section of a study, and how a study's cycles are to be run on a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llem.errors import JsonValue
from pytest_llem.machine.cooldown import Setting as Cooldown

if TYPE_CHECKING:
    from pytest_llem.study import Study


@dataclass(frozen=True)
class RaySettings:
    """What cycles of a study ask of Ray. Names and defaults are those of `study.sections.ray.Ray`.

    `cpus` of `None` is one CPU beside GPUs, and a whole node for a measurement of the CPU. `image` runs the worker in a
    container on the node. `max_in_flight` of `None` follows the cluster's size. A cycle whose node is lost is tried
    `node_losses` times more; one that no node can run waits `wait_for_nodes_s` seconds for the cluster to grow.
    """

    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    cpus: float | None = None
    image: str | None = None
    runtime_env: Mapping[str, JsonValue] = field(default_factory=dict)
    max_in_flight: int | None = None
    node_losses: int = 2
    wait_for_nodes_s: float = 0.0


@dataclass(frozen=True)
class NodeTerms:
    """The study's terms that a node keeps to by itself: see `execution` and `docker`."""

    residual_memory_bytes: int
    cooldown: Cooldown
    docker: Mapping[str, JsonValue] = field(default_factory=dict)


def settings_of(study: Study) -> RaySettings:
    """The study's section `ray`, which was checked when the study was loaded."""
    return RaySettings(**dict(study.ray))  # type: ignore[arg-type]


def terms_of(study: Study) -> NodeTerms:
    """What a node has to know of a study besides the job."""
    execution = study.execution
    return NodeTerms(execution.residual_memory_bytes, execution.cooldown, dict(study.docker))
