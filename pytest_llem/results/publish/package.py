"""The data package of a paper: results, rows as Parquet, the studies, and metadata that archives read.

`command` calls it. The files are the same bytes for the same results: no date in them is that of their making.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pytest_llem import __version__
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.files import open_regular, slug
from pytest_llem.job.job import JobDir
from pytest_llem.results.exports.requests import OF_RESULT, export
from pytest_llem.results.layout import RESULT, CycleKey
from pytest_llem.results.packaged import SUMS
from pytest_llem.results.publish.scan import without_hosts
from pytest_llem.results.publish.studies import directory_of, from_study, json_file, study_files
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.report.content import Content
from pytest_llem.results.schema import Result

RESULTS = "data/results"
"""Where the results lie as `load` reads them, so that verbs which take results take a package."""
CRATE = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/crate/1.1"
AUTHOR = "--author 'Family, Given; 0000-0002-1825-0097'"
TYPES = {
    ".tex": "application/x-tex",
    ".md": "text/markdown",
    ".csv": "text/csv",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".parquet": "application/vnd.apache.parquet",
    ".yaml": "application/yaml",
    ".cff": "application/yaml",
    ".json": "application/json",
}
"""Media types by ending, as IANA registers them; TeX's is that of common use."""


@dataclass(frozen=True)
class Author:
    """A person or a group. `orcid` is the identifier alone, without its address."""

    name: str
    orcid: str | None = None

    @classmethod
    def of(cls, text: str) -> Author:
        """From `Family, Given`, with `; ORCID` behind it or without; a name without a comma is a group's."""
        name, _, orcid = (part.strip() for part in text.partition(";"))
        if not all(part.strip() for part in name.split(",", 1)):
            raise SettingsError(f"--author {text!r}: no name", fix=AUTHOR)
        orcid = orcid.removeprefix("https://orcid.org/")
        if orcid and not (re.fullmatch(r"(?:\d{4}-){3}\d{3}[\dX]", orcid) and _is_orcid(orcid.replace("-", ""))):
            raise SettingsError(f"--author {text!r}: {orcid!r} is no ORCID", fix=AUTHOR)
        return cls(name, orcid or None)


def _is_orcid(digits: str) -> bool:
    """Whether the last digit is that of the others (ISO/IEC 7064, MOD 11-2): a mistyped one is somebody else's."""
    total = 0
    for digit in digits[:-1]:
        total = (total + int(digit)) * 2
    return "0123456789X"[(12 - total % 11) % 11] == digits[-1]


def data(content: Content, *, with_inputs: bool = True) -> dict[str, bytes]:
    """Results, requests and readings of all results, valid or not, and the studies with the files that they name."""
    directories = {study: directory_of(content.manifests.values(), study) for study in content.axes}
    results = replace(content.results, items=tuple(_from_study(each, directories) for each in content.results))
    files = {"data/results.parquet": _parquet(results.to_table())}
    for result in results:
        ran = result.experiment
        cycle = CycleKey(result.study, ran.id, ran.config_hash, result.cycle).directory.as_posix()
        files[f"{RESULTS}/{slug(result.run_id)}/{cycle}/{RESULT}"] = _whole(result)
    with_requests = results.where(lambda each: (job := _job(results, each)) is not None and job.requests.exists())
    if with_requests:
        with TemporaryDirectory() as directory:
            export(with_requests, Path(directory) / "requests.parquet")
            files["data/requests.parquet"] = (Path(directory) / "requests.parquet").read_bytes()
    power = _power(results)
    if power is not None:
        files["data/power.parquet"] = _parquet(power)
    return files | study_files(content, with_inputs=with_inputs)


def _from_study(result: Result, directories: Mapping[str, Path | None]) -> Result:
    """A result whose paths start at its study, where that has them."""
    config: Any = from_study(result.experiment.config, directories.get(result.study))
    return result.model_copy(update={"experiment": replace(result.experiment, config=config)})


def _whole(result: Result) -> bytes:
    """A result's file, without what is withheld."""
    content: dict[str, JsonValue] = json.loads(result.model_dump_json())
    content |= {part: without_hosts(content[part]) for part in ("engine", "runner", "environment")}
    return json_file(content)


def _job(results: Results, result: Result) -> JobDir | None:
    directory = results.directories.get(measurement_id(result))
    return None if directory is None else JobDir(directory)


def _power(results: Results) -> pa.Table | None:
    """The readings of every cycle that has some, behind the columns that say which result they belong to."""
    beside = results.to_table().select(OF_RESULT)
    found = []
    for place, result in enumerate(results):
        job = _job(results, result)
        if job is None or not job.power.exists():
            continue
        with open_regular(job.power) as stream:
            readings = pq.ParquetFile(stream, pre_buffer=False).read(use_threads=False)
        of = beside.take(pa.array([place] * readings.num_rows, pa.int64()))
        schema = pa.schema([*of.schema, *readings.schema], metadata=readings.schema.metadata)
        found.append(pa.Table.from_arrays([*of.columns, *readings.columns], schema=schema))
    return pa.concat_tables(found, promote_options="default") if found else None


def _parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    written: bytes = stream.getvalue().to_pybytes()
    return written


def metadata(
    files: Mapping[str, bytes], title: str, text: str, day: str, authors: Sequence[Author], license: str | None
) -> dict[str, bytes]:
    """What archives read: RO-Crate always, CITATION.cff and `.zenodo.json` where there are authors; then checksums.

    `text` describes the package, and `day` is that of the last measurement.
    """
    if license is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", license):
        raise SettingsError(
            f"--license {license!r}: no SPDX name", fix="one of https://spdx.org/licenses, as CC-BY-4.0"
        )
    made = dict(files)
    if authors:
        made["CITATION.cff"] = _citation(title, text, authors, license)
        made[".zenodo.json"] = _zenodo(title, text, authors, license)
    made[CRATE] = _crate(made, title, text, day, authors, license)
    sums = "".join(f"{hashlib.sha256(made[name]).hexdigest()}  {name}\n" for name in sorted(made))
    return {**made, SUMS: sums.encode()}


def _crate(
    files: Mapping[str, bytes], title: str, text: str, day: str, authors: Sequence[Author], license: str | None
) -> bytes:
    """RO-Crate 1.1 (https://w3id.org/ro/crate/1.1): the folder, its files, who made them and with what."""
    tool = {"@id": "https://github.com/pytest-llem/pytest-llem"}
    people: list[dict[str, JsonValue]] = []
    for each in authors:
        id = f"https://orcid.org/{each.orcid}" if each.orcid else f"#{slug(each.name)}"
        people.append({"@id": id, "@type": "Person" if "," in each.name else "Organization", "name": each.name})
    root: dict[str, JsonValue] = {
        "@id": "./",
        "@type": "Dataset",
        "name": title,
        "description": text,
        "datePublished": day,
        "hasPart": [{"@id": quote(name)} for name in sorted(files)],
        "license": "No license has been stated.",
        "mentions": {"@id": "#publish"},
    }
    if people:
        root["author"] = [{"@id": each["@id"]} for each in people]
    graph: list[JsonValue] = [
        {"@id": CRATE, "@type": "CreativeWork", "about": {"@id": "./"}, "conformsTo": {"@id": PROFILE}},
        root,
        *(
            {
                "@id": quote(name),
                "@type": "File",
                "name": name,
                "encodingFormat": TYPES.get(Path(name).suffix, "text/plain"),
                "contentSize": str(len(files[name])),
            }
            for name in sorted(files)
        ),
        *people,
        {
            "@id": "#publish",
            "@type": "CreateAction",
            "name": "llem publish",
            "instrument": tool,
            "result": {"@id": "./"},
        },
        {
            **tool,
            "@type": "SoftwareApplication",
            "name": "pytest-llem",
            "url": tool["@id"],
            "version": __version__,
        },
    ]
    if license is not None:
        address = f"https://spdx.org/licenses/{license}"
        root["license"] = {"@id": address}
        graph.append({"@id": address, "@type": "CreativeWork", "name": license, "description": f"SPDX {license}"})
    return json_file({"@context": f"{PROFILE}/context", "@graph": graph})


def _citation(title: str, text: str, authors: Sequence[Author], license: str | None) -> bytes:
    """Citation File Format 1.2.0."""
    people = []
    for each in authors:
        family, comma, given = (part.strip() for part in each.name.partition(","))
        person = {"family-names": family, "given-names": given} if comma else {"name": each.name}
        people.append(person | ({"orcid": f"https://orcid.org/{each.orcid}"} if each.orcid else {}))
    content = {
        "cff-version": "1.2.0",
        "message": "If you use these data, please cite them as below.",
        "type": "dataset",
        "title": title,
        "abstract": text,
        "authors": people,
        **({"license": license} if license else {}),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).encode()


def _zenodo(title: str, text: str, authors: Sequence[Author], license: str | None) -> bytes:
    """The metadata of Zenodo's deposit API (https://developers.zenodo.org/#representation)."""
    people: list[JsonValue] = [{"name": each.name, **({"orcid": each.orcid} if each.orcid else {})} for each in authors]
    content: dict[str, JsonValue] = {
        "title": title,
        "upload_type": "dataset",
        "description": text,
        "creators": people,
        **({"license": license.lower()} if license else {}),
    }
    return json_file(content)
