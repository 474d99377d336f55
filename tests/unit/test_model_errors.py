"""What is said of a model that could not be loaded, by what its loader raised."""

from __future__ import annotations

import errno
import os

import pytest

from pytest_llem.engines.model_files import unreachable
from pytest_llem.errors import EngineError, ModelNotFoundError

OFFLINE = "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOENT, errno.EADDRINUSE])
@pytest.mark.parametrize("offline", [None, OFFLINE])
def test_what_failed_on_this_machine_is_not_taken_for_a_missing_model(code: int, offline: str | None) -> None:
    error = unreachable("owner/name", OSError(code, os.strerror(code), "ninja"), offline)

    assert type(error) is EngineError
    assert os.strerror(code) in str(error)
    assert "worker.log" in str(error.fix)


def test_a_model_that_is_not_in_the_cache_is_told_with_its_loaders_words() -> None:
    error = unreachable("owner/name", OSError("owner/name has no\n file named config.json"), OFFLINE)

    assert isinstance(error, ModelNotFoundError)
    assert OFFLINE in str(error)
    assert error.details["cause"] == "owner/name has no file named config.json"
