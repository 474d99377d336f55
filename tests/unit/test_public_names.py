"""The public names: they resolve, cost nothing until then, and are the same for type checkers and in docs/api.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_llem

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name in pytest_llem.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_resolves(name: str) -> None:
    assert getattr(pytest_llem, name).__module__.startswith("pytest_llem.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = pytest_llem.laod  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "pytest_llem" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))

    assert imported == set(NAMES)
    assert set(listed) == set(pytest_llem.__all__)


def test_type_checkers_find_each_name_where_it_comes_from() -> None:
    stub = ast.parse((ROOT / "pytest_llem" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        name: home.removeprefix("pytest_llem.")
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and (home := node.module)
        for name in (alias.name for alias in node.names)
    }
    assert homes == vars(pytest_llem)["_HOME_OF"]


def test_importing_the_package_loads_none_of_it() -> None:
    code = "import sys, pytest_llem; dir(pytest_llem); print(*(n for n in sys.modules if n.startswith('pytest_llem.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_reference_lists_every_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: pytest_llem\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(NAMES)
