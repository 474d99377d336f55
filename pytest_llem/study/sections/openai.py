"""The `openai` section."""

from __future__ import annotations

from pydantic import Field

from pytest_llem.study.sections.section import Extra, Section


class OpenAI(Section):
    """Settings of openai."""

    extra: Extra = Field(default_factory=dict, description="Passed through to the engine.")
