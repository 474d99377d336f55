"""What the sampler process loads before its first reading: time in which the measured process waits."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys

CODE = """
import sys
sys.path[:] = sys.argv[1].split(":")
from pytest_llem.energy import sampler
sampler.spare_pynvml_an_import()
from pytest_llem.energy import gpu_source, nvml_devices
import ctypes.util
print(ctypes.util.find_library("c"))
"""


def loaded(code: str) -> tuple[set[str], str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", code.replace("print(", "print(*sys.modules);print("), ":".join(sys.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    modules, answer = done.stdout.splitlines()
    return set(modules.split()), answer


def test_the_sampler_loads_none_of_what_takes_long() -> None:
    modules, _ = loaded(CODE)

    assert "pynvml" in modules
    assert not modules & {"argparse", "dataclasses", "statistics", "subprocess", "tempfile", "inspect", "site"}


def test_the_stand_in_for_an_import_answers_as_the_real_one() -> None:
    _, answer = loaded(CODE)

    assert answer == str(ctypes.util.find_library("c"))
