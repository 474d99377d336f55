"""What a release has to agree on. `pytest_llem/__init__.py` has the version; other files repeat it.

python .ci/release.py check [TAG]    the files agree, and a tag is theirs; without a tag a test runs it
python .ci/release.py set VERSION    write a version into all of them; 0.2.0.dev0 begins the work on 0.2.0
python .ci/release.py notes          the newest section of CHANGELOG.md, for the release's page
python .ci/release.py readme         make the links of README.md absolute, as PyPI's page needs them; before a build
python .ci/release.py dist DIR       what was built is of this version, and holds the studies
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "pytest_llem/__init__.py"
PLACES = {
    SOURCE: r'^(__version__ = ")([^"]+)(")$',
    "CITATION.cff": r"^(version: )(\S+)()$",
    "images/docker-bake.hcl": r'^(variable "VERSION" \{ default = ")([^"]+)(" \})$',
}
VERSION = r"(\d+\.\d+\.\d+)(\.dev\d+)?"
HEADING = re.compile(r"^## (\S+) \((.+)\)$", re.MULTILINE)
RELATIVE = re.compile(r"\]\((?!https?://|#)([^)]+)\)")
REPOSITORY = "pytest-llem/pytest-llem"


def written(root: Path) -> dict[str, str]:
    """The version that each file has."""
    found = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if match is None:
            raise SystemExit(f"{name}: no version\nfix: write one as {pattern}")
        found[name] = match[2]
    return found


def problems(root: Path, tag: str | None) -> list[str]:
    """Where the files, or a tag, do not agree. A version under way is `X.Y.Z.dev0`, and its changes are unreleased."""
    versions = written(root)
    version = versions[SOURCE]
    found = [f"{name}: {each}, but {SOURCE} has {version}" for name, each in versions.items() if each != version]
    parts = re.fullmatch(VERSION, version)
    if parts is None:
        return [*found, f"{SOURCE}: {version} is neither X.Y.Z nor X.Y.Z.devN"]
    heading = HEADING.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if heading is None or heading[1] != parts[1]:
        found.append(f"CHANGELOG.md: the newest section is not {parts[1]}")
    elif (heading[2] == "unreleased") != (parts[2] is not None):
        found.append(f"CHANGELOG.md: {heading[0]} does not go with version {version}")
    if tag is not None and tag != f"v{version}":
        found.append(f"tag {tag}: the version is {version}")
    if tag is not None and parts[2] is not None:
        found.append(f"tag {tag}: {version} is under way (fix: python .ci/release.py set {parts[1]})")
    return found


def set_version(root: Path, version: str, day: str) -> None:
    """Write a version into each file, and date the newest section of the changes, or begin one."""
    parts = re.fullmatch(VERSION, version)
    if parts is None:
        raise SystemExit(f"{version} is neither X.Y.Z nor X.Y.Z.devN")
    for name, pattern in PLACES.items():
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(
            re.sub(pattern, rf"\g<1>{version}\g<3>", text, count=1, flags=re.MULTILINE), encoding="utf-8"
        )
    changes = root / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8")
    heading = HEADING.search(text)
    if heading is None:
        raise SystemExit("CHANGELOG.md: no section")
    new = f"## {parts[1]} ({'unreleased' if parts[2] else day})"
    begun = heading[1] != parts[1] and parts[2] is not None
    start, end = (heading.start(), heading.start()) if begun else heading.span()
    changes.write_text(text[:start] + new + "\n\n" * begun + text[end:], encoding="utf-8")


def absolute(text: str, tag: str) -> str:
    """Markdown whose links lead from anywhere to the files at a tag, and whose pictures are shown anywhere."""

    def link(match: re.Match[str]) -> str:
        shown = match[1].endswith((".svg", ".png"))
        place = "https://raw.githubusercontent.com/{}/{}/" if shown else "https://github.com/{}/blob/{}/"
        return f"]({place.format(REPOSITORY, tag)}{match[1]})"

    return RELATIVE.sub(link, text)


def notes(root: Path) -> str:
    """The newest section of the changes."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = HEADING.search(text)
    if heading is None:
        raise SystemExit("CHANGELOG.md: no section")
    following = HEADING.search(text, heading.end())
    section = text[heading.end() : following.start() if following else len(text)].strip()
    return absolute(section, f"v{heading[1]}") + "\n"


def dist_problems(root: Path, folder: Path) -> list[str]:
    """What is wrong with the sdist and the wheel in a folder."""
    version = written(root)[SOURCE]
    names = {f"pytest_llem-{version}.tar.gz", f"pytest_llem-{version}-py3-none-any.whl"}
    found = sorted(path.name for path in folder.iterdir())
    if set(found) != names:
        return [f"{folder}: {', '.join(found)}, not {', '.join(sorted(names))}"]
    with zipfile.ZipFile(folder / f"pytest_llem-{version}-py3-none-any.whl") as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(folder / f"pytest_llem-{version}.tar.gz") as sdist:
        packed = set(sdist.getnames())
    metadata = HeaderParser().parsestr(held[f"pytest_llem-{version}.dist-info/METADATA"].decode())
    wrong = [] if metadata["Version"] == version else [f"METADATA: version {metadata['Version']}"]
    nowhere = RELATIVE.search(str(metadata.get_payload()))
    if nowhere is not None:
        wrong.append(f"METADATA: {nowhere[1]} leads nowhere on PyPI (fix: python .ci/release.py readme)")
    for study in sorted((root / "studies").iterdir()):
        if held.get(f"pytest_llem/studies/{study.name}") != study.read_bytes():
            wrong.append(f"the wheel does not hold {study.name} as it is in studies/")
        if f"pytest_llem-{version}/studies/{study.name}" not in packed:
            wrong.append(f"the sdist does not hold studies/{study.name}")
    return wrong


def main() -> None:
    """The command line; any problem ends it with all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check").add_argument("tag", nargs="?")
    verbs.add_parser("set").add_argument("version")
    verbs.add_parser("notes")
    verbs.add_parser("readme")
    verbs.add_parser("dist").add_argument("folder", type=Path)
    options = parser.parse_args()
    wrong: list[str] = []
    if options.verb == "check":
        wrong = problems(ROOT, options.tag or None)
    elif options.verb == "set":
        set_version(ROOT, options.version, datetime.datetime.now(datetime.timezone.utc).date().isoformat())
    elif options.verb == "notes":
        sys.stdout.write(notes(ROOT))
    elif options.verb == "readme":
        readme = ROOT / "README.md"
        text = readme.read_text(encoding="utf-8")
        readme.write_text(absolute(text, f"v{written(ROOT)[SOURCE]}"), encoding="utf-8")
    else:
        wrong = dist_problems(ROOT, options.folder)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
