"""The import rules that keep the worker portable and a plain pytest run cheap."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llem.containers.archive import WORKER_MODULES, WORKER_PACKAGES

PACKAGE = Path(__file__).resolve().parents[2] / "pytest_llem"
WORKER_SIDE = tuple(name.removesuffix(".py") for name in (*WORKER_MODULES, *WORKER_PACKAGES) if name != "py.typed")
ENGINES = ("torch", "transformers", "vllm", "sglang", "tensorrt_llm", "aiohttp")
"""What an image may lack: then only the files of that engine cannot be imported."""

PYTEST_SIDE = {"pytest", "_pytest", "pydantic", "docker", "yaml", "pyarrow", "psutil", "filelock", "platformdirs"}

IMPORT_EVERYTHING = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
wanted = sys.argv[2].split(",")
for path in sorted((root / "pytest_llem").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__main__" or parts[1:2] and parts[1] not in wanted:
        continue
    try:
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
    except ModuleNotFoundError as missing:
        if parts[1] != "engines" or missing.name not in sys.argv[3].split(","):
            raise
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def carried(tmp_path: Path) -> Path:
    """A folder with the worker side and pynvml alone, as it is carried into an image."""
    import pynvml

    (tmp_path / "pytest_llem").mkdir()
    shutil.copy(str(pynvml.__file__), tmp_path)
    for name in WORKER_SIDE:
        source = PACKAGE / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / "pytest_llem" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source.with_suffix(".py"), tmp_path / "pytest_llem")
    return tmp_path


def run(code: str, *arguments: str, isolated: Path | None = None) -> set[str]:
    """Top-level modules that a new interpreter has loaded after `code`; `isolated` leaves it the standard library."""
    prefix = f"import sys; sys.path.insert(0, {str(isolated)!r})\n" if isolated else ""
    flags = ["-I", "-S"] if isolated else []
    done = subprocess.run([sys.executable, *flags, "-c", prefix + code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_worker_side_needs_nothing_but_the_standard_library_and_pynvml(tmp_path: Path) -> None:
    root = carried(tmp_path)
    run(IMPORT_EVERYTHING, str(root), ",".join(WORKER_SIDE), ",".join(ENGINES), isolated=root)


@pytest.mark.engine
def test_an_engine_brings_its_own_packages_and_not_the_pytest_side(tmp_path: Path) -> None:
    root = carried(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n{IMPORT_EVERYTHING}"
    before = run("import torch, transformers, sys; print(*sorted({n.partition('.')[0] for n in sys.modules}))")
    assert not (run(code, str(root), ",".join(WORKER_SIDE), ",".join(ENGINES)) - before) & PYTEST_SIDE


def test_the_plugin_costs_a_plain_pytest_run_no_heavy_import(tmp_path: Path) -> None:
    heavy = sorted(PYTEST_SIDE - {"pytest", "_pytest"} | {"torch", "pynvml"})
    (tmp_path / "test_plain.py").write_text(
        f"import sys\ndef test_plain():\n    assert not [name for name in {heavy!r} if name in sys.modules]\n"
        "    assert 'pytest_llem.plugin' in sys.modules and 'pytest_llem.session.session' not in sys.modules\n"
    )
    # Other plugins of this environment may import what they like.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "pytest_llem.plugin",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    )
    assert done.returncode == 0, done.stdout
