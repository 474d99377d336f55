"""The run of what no study planned: its directory, manifest, states and summary, as those of any run.

`command` and `imports` write with it. A run that is killed says so, and every file is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError
from pytest_llem.job.job import JobDir
from pytest_llem.job.redaction import redact_arguments
from pytest_llem.results.attempts import write_power
from pytest_llem.results.layout import CycleKey, new_run_id
from pytest_llem.results.manifest import Invocation, PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.schema import Result
from pytest_llem.results.state import CycleState, Holder, StateName, begin, write_state
from pytest_llem.results.store import RunStore, write_result
from pytest_llem.results.summary import summarise, write_summary

ENERGY = "energy_j"
"""The headline where tokens are not counted."""


def key_of(study: str, name: str, config: Mapping[str, JsonValue]) -> CycleKey:
    """The key of what was measured: the same for the same configuration, so that runs of it compare."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return CycleKey(study, name, digest, 1)


class Recording:
    """A run with one cycle of each of `keys`, all of one study."""

    def __init__(
        self,
        out: Path,
        keys: Sequence[CycleKey],
        command: Sequence[str],
        headline: str | None = None,
        environment: Mapping[str, JsonValue] | None = None,
    ) -> None:
        planned = tuple(PlannedCycle(key.experiment_id, key.config_hash, key.cycle) for key in keys)
        plan = StudyPlan(keys[0].study, None, cycles=planned, required_cycles=1, headline=headline)
        self.store = RunStore.create(out, new_run_id(), studies=(plan,), environment=environment)
        here = str(Path.cwd())
        invocation = Invocation(tuple(redact_arguments(command)), here, here, Holder.me())
        rebuild_manifest(self.store.run_dir, invocation=invocation)
        self._keys = keys
        self._states: dict[CycleKey, CycleState] = {}

    def begin(self, key: CycleKey) -> JobDir:
        """The directory of a cycle that is measured from now on."""
        self._states[key] = begin(key, None)
        write_state(self.store.directory(key), self._states[key])
        return JobDir(self.store.directory(key))

    def end(self, key: CycleKey, result: Result) -> None:
        """Write a cycle's result, and its readings where there are any."""
        job_dir = JobDir(self.store.directory(key))
        write_power(job_dir.samples, job_dir.power)
        write_result(job_dir, result)
        self._ended(key, result.status, tuple(reason.code for reason in result.validity.reasons))

    def fail(self, key: CycleKey, error: LlemError) -> None:
        """Write why a cycle has no result."""
        JobDir(self.store.directory(key)).write_error(error, origin="llem")
        self._ended(key, "interrupted" if isinstance(error, InterruptedCycleError) else "failed", (error.message,))

    def finish(self, *, interrupted: bool = False) -> None:
        """Write the summary, and the run's end."""
        write_summary(self.store.run_dir, [*summarise(self._keys, self.store.outcome)])
        rebuild_manifest(self.store.run_dir, finished=True, interrupted=interrupted)

    def _ended(self, key: CycleKey, state: StateName, reasons: tuple[str, ...]) -> None:
        write_state(self.store.directory(key), self._states[key].ended(state, reasons))
