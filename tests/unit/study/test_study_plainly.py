"""Values that are taken without asking pydantic: it must agree about each of them, or studies would mean two things."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.study import declared
from pytest_llem.study.declared import BadValueError, Key, check, keys_of
from pytest_llem.study.schema import ExplicitExperiment, StudyDocument, UserFile
from pytest_llem.study.values import OldBoolean

NUMBERS: list[JsonValue] = [
    -2, -1, 0, 1, 2, 100, 2**31, 2**53, 2**53 + 1, 10**13, 10**400, 0.5, 1.0, -0.0, float("inf"), float("nan")
]  # fmt: skip
TEXTS: list[JsonValue] = ["", "auto", "name", "na me", "name\n", "-", "1", "x" * 121, "x" * 5000, "ä", OldBoolean("no")]


def _keys() -> list[Key]:
    found: dict[tuple[type, str], Key] = {}
    waiting: list[type] = [StudyDocument, ExplicitExperiment, UserFile]
    while waiting:
        for name, key in keys_of(waiting.pop()).items():
            if (key.owner, name) not in found:
                found[key.owner, name] = key
                sections = filter(declared.is_section, declared.options(key.hint))
                waiting += [section for section in sections if isinstance(section, type)]
    return list(found.values())


def test_pydantic_agrees_with_what_is_taken_without_it() -> None:
    keys, taken = _keys(), 0
    for key in keys:
        choices = [choice for option in declared.options(key.hint) for choice in get_args(option)]
        for value in (*NUMBERS, *TEXTS, *filter(lambda choice: isinstance(choice, (str, int)), choices), True, None):
            plain = declared._as_declared(key.hint, value)
            if declared._is_plainly(key.hint, plain):
                checked: Any = declared._adapter(key.owner, key.name).validate_python(value)
                assert repr(checked) == repr(plain), f"{key.owner.__name__}.{key.name}"
                taken += 1
    assert len(keys) > 200
    assert taken > 3 * len(keys)


def test_ordinary_values_are_taken_and_wrong_ones_are_not() -> None:
    taken = {"name": "a-b", "engine": "vllm", "dtype": "float16", "on_invalid": "skip"}
    assert all(declared._is_plainly(keys_of(StudyDocument)[name].hint, value) for name, value in taken.items())
    wrong: dict[str, JsonValue] = {"name": "a b", "on_invalid": "never", "engine": 3, "title": OldBoolean("no")}
    assert not any(declared._is_plainly(keys_of(StudyDocument)[name].hint, value) for name, value in wrong.items())
    with pytest.raises(BadValueError, match="expected an integer"):
        check(keys_of(StudyDocument)["workload"].section or object, "prompts", True)
