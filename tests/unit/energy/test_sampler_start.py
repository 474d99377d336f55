"""What the sampler process loads before its first reading: time in which the measured process waits."""

from __future__ import annotations

import subprocess
import sys
from ctypes.util import find_library

CODE = """
import sys
sys.path[:] = sys.argv[1].split(":")
from pytest_llem.energy import sampler
sampler.spare_pynvml_an_import()
from pytest_llem.energy import nvml_source, nvml_devices
print(*sys.modules)
from ctypes.util import find_library
print(find_library("c"))
"""


def test_the_sampler_loads_none_of_what_takes_long_and_the_stand_in_answers_as_the_real_module() -> None:
    done = subprocess.run([sys.executable, "-S", "-c", CODE, ":".join(sys.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, library = done.stdout.splitlines()

    loaded = set(modules.split())
    assert "pynvml" in loaded
    assert not loaded & {"argparse", "dataclasses", "statistics", "subprocess", "tempfile", "inspect", "site"}
    assert library == str(find_library("c"))
