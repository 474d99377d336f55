"""The `ray` section: what cycles ask of a cluster. It never changes what an experiment is, and so not its hash.

The names and defaults are those of `cluster.settings.RaySettings`, which is not imported here: a test holds both
together.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from pytest_llem.study.sections.section import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class RuntimeEnvironment(Section):
    """What Ray installs or sets on a node for this study's cycles, in Ray's own words."""

    pip: list[Name] | dict[str, JsonValue] | Name | None = Field(
        None, description="Packages to install, or the path of a requirements file.", examples=[["pytest-llem"]]
    )
    uv: list[Name] | dict[str, JsonValue] | Name | None = Field(None, description="The same, with uv.")
    conda: dict[str, JsonValue] | Name | None = Field(None, description="A conda environment.")
    py_modules: list[Name] | None = Field(None, description="Python modules to upload: paths or URIs.")
    working_dir: Name | None = Field(None, description="A directory to upload: a path or a URI.")
    env_vars: dict[str, str] | None = Field(None, description="Environment variables; never for secrets.")
    image_uri: Name | None = Field(None, description="An image for the whole Ray worker (Ray needs podman there).")
    config: dict[str, JsonValue] | None = Field(None, description="Options of Ray's set-up, e.g. its time limit.")


class Ray(Section):
    """Cycles of this study on a Ray cluster."""

    accelerator_type: Name | None = Field(None, description="Only nodes with this accelerator.", examples=["H100"])
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Named resources that a cycle takes, by amount.", examples=[{"lab_a": 1}]
    )
    cpus: PositiveFloat | None = Field(
        None, description="CPUs that a cycle takes; default is 1 beside GPUs, and a whole node for the CPU itself."
    )
    image: Name | None = Field(None, description="Run each cycle in a container of this image on its node.")
    runtime_env: RuntimeEnvironment = Field(
        default_factory=RuntimeEnvironment,
        description="What Ray installs or sets on the nodes.",
        examples=[{"pip": ["pytest-llem"]}],
    )
    max_in_flight: Annotated[PositiveInt, Field(le=10_000)] | None = Field(
        None, description="Most cycles submitted at a time; default is twice what the cluster runs, at most 512."
    )
    node_losses: NonNegativeInt = Field(2, description="How often a cycle whose node is lost is tried again.")
    wait_for_nodes_s: NonNegativeFloat = Field(
        0.0, description="How long to wait for a node that can run a cycle, where the cluster grows by itself."
    )
