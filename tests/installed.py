"""Packages that add something by entry points: those that pages show, installed by pip, and small ones by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```', text, re.DOTALL | re.MULTILINE))


def install(page: str, folder: Path, target: Path) -> None:
    """Write the files of a page into a folder, and run there what it says, `pip install .`, into `target`."""
    for name, text in files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    # No network: the back end and the dependencies are those of this environment.
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Site:
    """A directory on the path of this process, into which packages of one module are written."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._patch = path, monkeypatch
        monkeypatch.syspath_prepend(path)

    def add(self, package: str, source: str, **entry_points: str) -> None:
        """A package whose module has this source, and entry points such as `metrics="name = module:NAME"`."""
        module = package.replace("-", "_")
        file = self.path / f"{module}.py"
        file.write_text(source, encoding="utf-8")
        # Python takes what it compiled a moment ago for this source, where size and second are the same.
        Path(cache_from_source(str(file))).unlink(missing_ok=True)
        about = self.path / f"{module}-1.0.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        points = "".join(f"[pytest_llem.{group}]\n{point}\n" for group, point in entry_points.items())
        (about / "entry_points.txt").write_text(points, encoding="utf-8")
        self._patch.delitem(sys.modules, module, raising=False)
        forget()


def forget() -> None:
    """Empty the caches of all functions of the package: it looks for packages and devices anew."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "pytest_llem"]
    for value in [value for module in ours for value in vars(module).values()]:
        if hasattr(value, "cache_clear"):
            value.cache_clear()
