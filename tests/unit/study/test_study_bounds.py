"""A study that is no file, or far too large, is refused at once with the limit that it breaks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.study import Study, load_study
from pytest_llem.study.document import read_document

Load = Callable[..., Study]

SWEEP = "model: m\nsweep:\n  seed: "
TOO_LARGE = {
    "values in a list": ("model: m\ntags: [" + "a, " * 3_300_000 + "]", "more than 750,000 values"),
    "keys": ("model: m\n" + "".join(f"k{index}: 1\n" for index in range(900_000)), "more than 750,000 values"),
    "a long text": ("model: m\ntitle: " + "x" * 10_000_000, "2:8: a text of 10,000,000 characters"),
    "a long key": ("x" * 500_000 + ": 1", "a text of 500,000 characters"),
    "placeholders": ("model: m\ntitle: " + "${X:-" * 2_000_000, "a text of 10,000,000 characters"),
    "problems": (
        "model: m\n" + "".join(f"unknown{index}: 1\n" for index in range(20_000)),
        "2:1: unknown setting 'unknown0'",
    ),
    "ranges": (SWEEP + "[" + "{range: [0, 99999]}, " * 200 + "]", "seed has more than 100,000 values"),
    "a group": (
        "model: m\nsweep:\n  g: [" + "{seed: {range: [0, 99999]}}, " * 200 + "]",
        "group g: more than 100,000 alternatives",
    ),
    "exclusions": (
        SWEEP + "{range: [0, 9999]}\nexclude:\n" + "- {seed: 1}\n" * 10_000,
        "10,000 points with 10,000 exclusions",
    ),
    "experiments": (
        "model: m\nexperiments:\n" + "- a\n" * 100_001,
        "2:1: 100,001 experiments, more than 100,000",
    ),
}


@pytest.mark.parametrize(("text", "message"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_what_is_too_large_is_refused_at_once(load: Load, text: str, message: str) -> None:
    """A file of 10 MB in a few lines took more than 90 s."""
    begun = time.thread_time()

    with pytest.raises(StudyError, match=message):
        load(text)

    assert time.thread_time() - begun < 8


def test_only_regular_files_are_studies_and_bases(tmp_path: Path) -> None:
    """A FIFO blocked for ever; a device was read up to the limit of size."""
    pipe, study = tmp_path / "pipe.yaml", tmp_path / "study.yaml"
    os.mkfifo(pipe)

    with pytest.raises(StudyError, match=r"pipe\.yaml:1:1: cannot be read: not a regular file"):
        load_study(pipe)
    for base in ("pipe.yaml", "/dev/zero", "/dev/tty"):
        study.write_text(f"model: m\nbase: {base}\n")
        with pytest.raises(StudyError, match=rf"study\.yaml:2:7: base: \S*{base}: cannot be read: not a regular file"):
            load_study(study)


def test_ten_thousand_experiments_of_thirty_settings_are_not_too_large(tmp_path: Path) -> None:
    entry = "{" + ", ".join(f"setting_{index}: {index}" for index in range(30)) + "}"
    (tmp_path / "study.yaml").write_text("experiments:\n" + f"- {entry}\n" * 10_000)
    assert len(read_document(tmp_path / "study.yaml", {}).data["experiments"]) == 10_000  # type: ignore[arg-type]
