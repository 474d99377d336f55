"""The pydantic model that all sections of a study are checked and published by.

`declared` makes them of it when a value needs pydantic, and engines of other packages subclass it by way of `sections`.
Most studies are loaded without it, and importing pydantic costs as much as collecting hundreds of items.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of a study file: unknown keys are errors, and values are never converted between types.

    Validators are built when they are first used: a study needs those of a few sections, and all of them cost time.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)
