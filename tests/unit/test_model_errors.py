"""What is said of a model that could not be loaded, by what its loader raised."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_llem.engines.model_files import find_model, unreachable
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


def test_files_that_git_lfs_has_not_fetched_are_named(tmp_path: Path) -> None:
    """Loaders fail on them with words such as `header too large`."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "config.json").write_text("{}")
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_text(pointer)

    with pytest.raises(ModelNotFoundError, match=r"model-1.safetensors \(and 1 more\) is a git-lfs pointer") as raised:
        find_model(str(tmp_path))
    assert str(raised.value.fix) == f"fetch what it points to: git -C {tmp_path} lfs pull"
    assert find_model(str(tmp_path), weights=False).local
    (tmp_path / "tokenizer.json").write_text(pointer)
    with pytest.raises(ModelNotFoundError, match=r"tokenizer.json is a git-lfs pointer"):
        find_model(str(tmp_path), weights=False)
