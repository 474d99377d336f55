"""Refuses what must not be published: secrets, paths of people's homes, and names of hosts, wherever they stand.

`command` calls `refuse` before anything is written. Texts are searched by line, Parquet files by row and column; PDF
figures are drawings of the SVG files beside them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.redaction import hidden, redact
from pytest_llem.results.report.content import Content

HOME = re.compile(
    r"(?<![\w.])(?:"
    r"(?:(?<!/)(?:/(?:var|export|mnt|net|nfs|cluster|gpfs|lustre|scratch|storage|data)\d*){1,2})?"
    r"/(?:home|Users)\d*/[^/\s\"'<>:,;|]+|/root(?=/)|[A-Za-z]:\\+Users\\+[^\\\s\"'<>:,;|]+)"
)
NO_HOSTS = ("localhost", "localhost.localdomain", "127.0.0.1", "0.0.0.0", "::1")
WITHHELD = frozenset({"hostname", "address", "executable", "repository"})
"""Facts of a machine and a runner that name hosts or people's directories, and tell nothing of a joule."""
SHOWN = 5
"""Places of a finding that are listed. Chosen: all of it fits on a screen; the rest is counted."""


def hosts(content: Content) -> set[str]:
    """The names of machines that the runs know of: those that measured, and servers that were asked."""
    found: set[object] = set()
    for manifest in content.manifests.values():
        found.add(manifest.environment.get("hostname"))
        found.add(manifest.invocation.holder.hostname if manifest.invocation else None)
    for result in content.results:
        found.update(part.get("hostname") for part in (result.environment.host, result.environment.worker))
        node = result.runner.facts.get("node")
        found.update((node.get("hostname"), node.get("address")) if isinstance(node, Mapping) else ())
        settings = result.experiment.config.get("settings")
        url = settings.get("base_url") if isinstance(settings, Mapping) else None
        if isinstance(url, str) and (host := re.match(r"\w+://(?:[^@/]*@)?([^/:\s]+)", url)):
            found.add(host[1])
    names = {name for name in found if isinstance(name, str) and name}
    short = {name.partition(".")[0] for name in names if not name.replace(".", "").isdigit()}
    return (names | short) - {*NO_HOSTS}


def without_homes(text: str) -> str:
    """A text in which `~` stands for homes: what caches and environments are called is nobody's business."""
    return HOME.sub("~", _own_home().sub("~", text))


def without_hosts(facts: JsonValue) -> JsonValue:
    """Facts without those that are `WITHHELD`, and with `~` for homes."""
    if isinstance(facts, Mapping):
        return {name: without_hosts(value) for name, value in facts.items() if name not in WITHHELD}
    if isinstance(facts, (list, tuple)):
        return [without_hosts(each) for each in facts]
    return without_homes(facts) if isinstance(facts, str) else facts


def _own_home() -> re.Pattern[str]:
    home = str(Path.home())
    return re.compile(rf"{re.escape(home)}(?![\w-])" if len(home) > 1 else r"(?!)")


def refuse(files: Mapping[str, bytes], names: Collection[str], allowed: Collection[str]) -> None:
    """`StoreError` that names file and place of each finding, but for those texts that are allowed."""
    host = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![\w-])")
    home = _own_home()
    secrets = hidden()
    found: dict[str, list[str]] = {}
    for name, data in sorted(files.items()):
        for place, text in _texts(name, data):
            for each in allowed:
                text = text.replace(each, "")
            kinds = []
            if redact(text, secrets) != text:
                kinds.append("a secret")
            kinds += [f"a home's path, {match[0]}" for match in HOME.finditer(text)]
            if (own := home.search(text)) and not HOME.search(text):
                kinds.append(f"a home's path, {own[0]}")
            kinds += [f"a host's name, {match[0]}" for match in host.finditer(text)] if names else []
            for kind in dict.fromkeys(kinds):
                found.setdefault(kind, []).append(f"{name}: {place}")
    if found:
        lines = [f"{place}: {kind}" for kind, places in found.items() for place in places[:SHOWN]]
        more = [f"and {len(each) - SHOWN} more places of {kind}" for kind, each in found.items() if len(each) > SHOWN]
        raise StoreError(
            "nothing is written, since this must not be published:\n" + "\n".join([*lines, *more]),
            fix="--allow TEXT lets a text pass as it is shown here (repeatable); a study's own texts are in its file",
        )


def _texts(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Each text of a file with its place, its name first; of a Parquet file each distinct one, at its first row."""
    yield "its name", name
    if name.endswith(".pdf"):
        return
    if not name.endswith(".parquet"):
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            yield f"line {number}", line
        return
    table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False)
    for field in table.schema:
        if pa.types.is_string(field.type):
            column = table.column(field.name)
            for value in pc.unique(column).to_pylist():
                if value is not None:
                    yield f"row {pc.index(column, value).as_py() + 1}, column {field.name}", value
