"""What a workload needs of an engine's tokenizer.

`build_workload` uses it, and engines provide it; those of other packages import it from `pytest_llem.engines.protocol`,
so its methods must stay, and none may be added. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from pytest_llem.errors import EngineSettingError, JsonValue


class Tokenizer(Protocol):
    """The little that workloads need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def chat(self, text: str) -> list[int]:
        """Token ids of a user's message in the model's chat template; `EngineSettingError` when it has none."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, where the model wants one."""


@runtime_checkable
class ChatTokenizer(Protocol):
    """What sessions need of a tokenizer besides, for engines that take token ids; a `Tokenizer` may have it."""

    def render(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]] | None
    ) -> list[int]:
        """Token ids of a chat in the model's template, up to the answer; `EngineSettingError` when it has none."""


@runtime_checkable
class AnswerTokenizer(Protocol):
    """What answers that are scored need of a tokenizer besides, where some tokens are no text; it may have it."""

    def answer(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, without special tokens."""


class TextOnly:
    """Stands in for a `Tokenizer` where an engine takes texts, and nothing here can turn them into tokens.

    Texts of a data set then go as they are; whatever needs tokens is an `EngineSettingError` that says `reason`.
    """

    def __init__(self, reason: str, fix: str) -> None:
        self._reason = reason
        self._fix = fix

    def encode(self, text: str) -> list[int]:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    def decode(self, ids: Sequence[int]) -> str:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    def chat(self, text: str) -> list[int]:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    @property
    def bos_id(self) -> int | None:
        """Nothing is known of the model's tokens."""
        return None
