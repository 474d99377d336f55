"""A few of the wrong options, in CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_wrong_options_are_named_before_anything_is_measured() -> None:
    # A process of its own, as it forks: pytest's has threads.
    command = [sys.executable, "-m", "tests.hostile.options", "--tries", "12"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
