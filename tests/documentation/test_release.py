"""What a release has to agree on, as `.ci/release.py` checks and writes it."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("release", ROOT / ".ci/release.py")
assert SPEC is not None
assert SPEC.loader is not None
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

CHANGES = "# Changes\n\n## 1.1.0 (unreleased)\n\n- New ([how](docs/new.md#how)).\n\n## 1.0.0 (2026-01-02)\n\n- Old.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository's files that have a version, of 1.1.0.dev0, and changes of two versions."""
    for name in release.PLACES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    release.set_version(tmp_path, "1.1.0.dev0", "2026-03-04")
    return tmp_path


def test_the_repositorys_files_agree_on_the_version() -> None:
    assert release.problems(ROOT, None) == []


@pytest.mark.parametrize("name", [name for name in release.PLACES if name != release.SOURCE])
def test_a_file_that_was_forgotten_is_named(root: Path, name: str) -> None:
    """The bake file once called images of a new version by the old one's name."""
    shutil.copy(ROOT / name, root / name)

    (problem,) = release.problems(root, None)

    assert problem.startswith(f"{name}: ")
    assert problem.endswith("has 1.1.0.dev0")


def test_a_tag_is_of_a_finished_version_and_of_this_one(root: Path) -> None:
    assert release.problems(root, None) == []
    assert release.problems(root, "v1.1.0.dev0") == [
        "tag v1.1.0.dev0: 1.1.0.dev0 is under way (fix: python .ci/release.py set 1.1.0)"
    ]
    release.set_version(root, "1.1.0", "2026-03-04")
    assert release.problems(root, "v1.1.0") == []
    assert release.problems(root, "v1.2.0") == ["tag v1.2.0: the version is 1.1.0"]
    (root / "CHANGELOG.md").write_text(CHANGES)
    assert release.problems(root, "v1.1.0") == [
        "CHANGELOG.md: ## 1.1.0 (unreleased) does not go with version 1.1.0"
    ]  # fmt: skip


def test_a_release_dates_the_changes_and_the_next_version_begins_a_section(root: Path) -> None:
    release.set_version(root, "1.1.0", "2026-03-04")
    assert "## 1.1.0 (2026-03-04)\n\n- New" in (root / "CHANGELOG.md").read_text()

    release.set_version(root, "1.2.0.dev0", "2026-03-05")

    assert release.problems(root, None) == []
    changes = (root / "CHANGELOG.md").read_text()
    assert "## 1.2.0 (unreleased)\n\n## 1.1.0 (2026-03-04)\n\n- New" in changes
    with pytest.raises(SystemExit, match=re.escape("1.2 is neither X.Y.Z nor X.Y.Z.devN")):
        release.set_version(root, "1.2", "2026-03-05")


def test_the_notes_are_the_newest_section_with_links_that_lead_somewhere(root: Path) -> None:
    where = "https://github.com/pytest-llem/pytest-llem/blob/v1.1.0/docs/new.md#how"
    assert release.notes(root) == f"- New ([how]({where})).\n"


def test_links_and_pictures_of_the_readme_lead_somewhere_on_pypi() -> None:
    text = release.absolute((ROOT / "README.md").read_text(), "v1.1.0")

    assert "](https://raw.githubusercontent.com/pytest-llem/pytest-llem/v1.1.0/docs/quickstart.svg)" in text
    assert release.RELATIVE.search(text) is None


def test_what_was_built_is_looked_into(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wheel without its studies installs well, and says so to the first who types `builtin:quickstart`."""
    folder = tmp_path_factory.mktemp("dist")
    name = "pytest_llem-1.1.0.dev0"
    studies = {f"studies/{path.name}": path.read_bytes() for path in (root / "studies").iterdir()}
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as sdist:
        for path in studies:
            sdist.addfile(tarfile.TarInfo(f"{name}/{path}"), io.BytesIO())
    assert "not pytest_llem-1.1.0.dev0-py3-none-any.whl" in release.dist_problems(root, folder)[0]

    def build(description: str, files: dict[str, bytes]) -> list[str]:
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.dist-info/METADATA", f"Version: 1.1.0.dev0\n\n{description}")
            for path, content in files.items():
                wheel.writestr(f"pytest_llem/{path}", content)
        problems: list[str] = release.dist_problems(root, folder)
        return problems

    assert build("[a](https://b.org/c)", studies) == []
    assert build("", studies | {"studies/quickstart.yaml": b""}) == [
        "the wheel does not hold quickstart.yaml as it is in studies/"
    ]
    (problem,) = build("[a](docs/a.md)", studies)
    assert "docs/a.md leads nowhere on PyPI" in problem
