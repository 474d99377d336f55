"""The `ray:` section of a study, and how a study's cycles are to be run on a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llem.errors import JsonValue
from pytest_llem.job.wire import decode
from pytest_llem.machine.cooldown import Setting as Cooldown
from pytest_llem.study.runner_settings import RaySettings

if TYPE_CHECKING:
    from pytest_llem.study import Study


@dataclass(frozen=True)
class NodeTerms:
    """The study's terms that a node keeps to by itself: see `execution` and `docker`."""

    residual_memory_bytes: int
    cooldown: Cooldown
    docker: Mapping[str, JsonValue] = field(default_factory=dict)


def settings_of(study: Study) -> RaySettings:
    """The study's section `ray`, which was checked when the study was loaded."""
    return decode(RaySettings, study.ray, "ray")


def terms_of(study: Study) -> NodeTerms:
    """What a node has to know of a study besides the job."""
    execution = study.execution
    return NodeTerms(execution.residual_memory_bytes, execution.cooldown, dict(study.docker))
