"""The studies that the package ships, which `builtin:NAME` stands for wherever a study is named.

The command line, a test's marker, the loader and `base:` of a study ask for their files. Names are public: keep them.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llem.errors import SettingsError

PREFIX = "builtin:"
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_studies() -> dict[str, Path]:
    """The file of each study by its `builtin:NAME`: beside this code in a wheel, beside the package in a clone."""
    inside = _PACKAGE / "studies"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "studies"
    return {f"{PREFIX}{path.stem}": path for path in sorted(folder.glob("*.yaml"))}


def study_file(name: str | Path) -> Path:
    """The path of a study, which may be called `builtin:NAME`. Raises `SettingsError` for a name that there is not."""
    text = str(name)
    if not text.startswith(PREFIX):
        return Path(name)
    known = shipped_studies()
    if text not in known:
        raise SettingsError(f"there is no built-in study {text!r}", fix=f"use one of: {', '.join(known)}")
    return known[text]
