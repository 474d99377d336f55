"""What the models of a study file have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Section(BaseModel):
    """A mapping of a study file: unknown keys are errors, and values are never converted between types.

    Validators are built when they are first used: a study needs those of a few sections, and all of them cost time.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


PositiveInt = Annotated[int, Field(ge=1, le=2**53)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**53)]
Fraction = Annotated[float, Field(gt=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e12)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e12)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Dtype = Literal["float32", "float16", "bfloat16"]
Extra = dict[str, JsonValue]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
