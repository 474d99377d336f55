"""Check the artifacts of a run against the published JSON Schema, as a consumer of the files would."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema


def main(out: Path, least_accuracy: float | None) -> None:
    """Check the newest run under `out`, with a least accuracy its answers too; any problem ends it with a message."""
    schema = json.loads(
        subprocess.run(
            [Path(sys.executable).with_name("llem"), "schema", "result"], check=True, capture_output=True, text=True
        ).stdout
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    run = max(path.parent for path in out.glob("*/run.json"))
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    states = [item["state"] for item in manifest["items"]]
    if not states or set(states) != {"valid"}:
        raise SystemExit(f"{run}: expected valid cycles only, got {states}")
    for item in manifest["items"]:
        directory = run / item["directory"]
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        jsonschema.validate(result, schema)
        expected = ["job.json", "events.jsonl", "measurement.json", "worker.log"]
        if least_accuracy is not None:
            expected.append("answers.jsonl")
            accuracy = result["quality"]["accuracy"]
            if accuracy is None or accuracy < least_accuracy:
                raise SystemExit(f"{directory}: an accuracy of {accuracy}, expected at least {least_accuracy}")
        for name in expected:
            if not (directory / name).is_file():
                raise SystemExit(f"{directory}: no {name}")
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    with_energy = [case for case in cases if case.find(".//property[@name='llem_energy_j']") is not None]
    if len(with_energy) != len(states):
        raise SystemExit(f"{run / 'junit.xml'}: {len(with_energy)} of {len(states)} test cases hold their energy")
    for name in ("summary.json", "summary.csv"):
        if not (run / name).is_file():
            raise SystemExit(f"{run}: no {name}")
    print(f"{run}: {len(states)} results match the schema")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--least-accuracy", type=float)
    arguments = parser.parse_args()
    main(arguments.out, arguments.least_accuracy)
