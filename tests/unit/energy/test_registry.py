from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llem.energy import registry
from pytest_llem.errors import MeterError, SettingsError
from pytest_llem.job.job import DeviceSet, MeterSettings
from tests.installed import Site


def test_none_measures_nothing(tmp_path: Path) -> None:
    assert registry.open_meter(MeterSettings("none"), DeviceSet("cpu"), tmp_path) is None


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="unknown meter 'wattmeter'") as caught:
        registry.open_meter(MeterSettings("wattmeter"), DeviceSet("cpu"), tmp_path)

    assert caught.value.fix is not None
    for name in registry.known_meters():
        assert name in caught.value.fix


def test_every_known_meter_says_whether_it_works_here() -> None:
    obstacles = registry.obstacles()

    assert list(obstacles) == list(registry.known_meters())
    assert obstacles["estimate"] is None
    assert all(obstacle is None or obstacle.message for obstacle in obstacles.values())


BROKEN = """
from pytest_llem import Meter

def function(request): ...

class Unfinished(Meter): ...

class Raising(Meter):
    def start(self): ...
    def mark(self): ...
    def stop(self, windows): ...

    @staticmethod
    def obstacle():
        raise RuntimeError("no bus")
"""


@pytest.mark.parametrize(
    "value", ["absent:Meter", "broken:Absent", "broken:function", "broken:Unfinished", "broken:Raising"]
)
def test_a_packages_broken_meter_is_named_and_is_no_traceback(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them ended `llem doctor` for all."""
    (tmp_path / "broken.py").write_text(BROKEN)
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[pytest_llem.meters]\nbad = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(MeterError, match="the meter 'bad' cannot be used") as caught:
        registry.open_meter(MeterSettings("bad"), DeviceSet("cpu"), tmp_path)

    assert caught.value.fix is not None
    found = registry.obstacles()
    assert found["estimate"] is None
    if not value.endswith("Unfinished"):  # which says so when it is opened
        assert found["bad"] is not None


@pytest.mark.parametrize("name", ["nvml", "auto"])
def test_a_package_cannot_take_a_name_that_is_there(name: str, site: Site) -> None:
    """It was passed over without a word, and its users thought that it measured."""
    site.add("llem-meter", "", meters=f"{name} = llem_meter:Meter")

    with pytest.raises(SettingsError, match=f"llem-meter 1.0 registers the meter '{name}', which pytest-llem itself"):
        registry.known_meters()


def test_importing_the_package_loads_no_meter_and_no_nvml() -> None:
    code = (
        "import sys, pytest_llem.energy; "
        "print([m for m in sys.modules if m == 'pynvml' or m.startswith('pytest_llem.energy.')])"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == "[]"
