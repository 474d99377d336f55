"""A study on a cluster of four nodes: nothing lost, nothing measured twice, and each result tells where it is from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.ray.clusters import Machines
from tests.ray.conftest import Run, Write, results, states

EXPERIMENTS, CYCLES = 10, 2


def test_every_cycle_is_measured_once_on_the_node_that_its_result_names(
    machines: Machines, write: Write, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "one?", "answer": 1}\n{"question": "none?", "answer": 0}\n')
    (tmp_path / "grading.py").write_text("def grade(answer, target):\n    return float(target)\n")
    asked = "dataset: q.jsonl, column: question, answer_column: answer, score: {python: 'grading.py:grade'}"
    study = write(experiments=EXPERIMENTS, cycles=CYCLES, asked=asked)

    done = run(study)

    count = EXPERIMENTS * CYCLES
    assert f"{count} passed" in done.stdout, done.stdout
    assert [state["attempts"] for state in states(tmp_path)] == [["valid"]] * count
    _check_places(machines, results(tmp_path), count)
    assert [result["quality"]["scores"] for result in results(tmp_path)] == [[1.0, 0.0]] * count, "answers came along"
    manifest = json.loads(next(tmp_path.glob("llem-results/*/run.json")).read_text())
    assert manifest["environment"]["gpus"] == []
    assert [item["state"] for item in manifest["items"]] == ["valid"] * count

    again = run(study, "--llem-resume", "-k", "seed:1-")

    assert "2 passed" in again.stdout, again.stdout
    assert [(state["attempts"], state["source_run"]) for state in states(tmp_path)] == [([], manifest["run_id"])] * 2


def _check_places(machines: Machines, found: list[dict[str, Any]], count: int) -> None:
    owners = {uuid: machine for machine in machines.nodes.values() for uuid in machine.uuids}
    nodes: Counter[str] = Counter()
    processes = set()
    for result in found:
        facts = result["runner"]["facts"]
        (uuid,) = result["runner"]["device_ids"]
        gpus = {gpu["uuid"] for gpu in result["environment"]["host"]["gpus"]}
        assert gpus == set(owners[uuid].uuids), "the environment is that of the node"
        assert result["runner"]["name"] == "ray"
        assert (facts["lease"], facts["node_losses"], facts["preflight"]) == ([uuid], [], "passed")
        assert result["environment"]["worker"]["variables"]["CUDA_VISIBLE_DEVICES"] == uuid
        nodes[facts["node"]["id"]] += 1
        processes.add((facts["node"]["id"], json.dumps(result["timing"])))
    assert len(nodes) == 4
    assert len(processes) == count
