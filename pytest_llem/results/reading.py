"""Reads results back, whatever version wrote them: `load(path)` gives a typed collection and a table of flat columns.

The commands, exports, baselines, the report, the session and users call it. Columns are added at the end and never
renamed; a newer format is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from pydantic import ValidationError

from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.job.files import read_json
from pytest_llem.results.comparability import flat_settings
from pytest_llem.results.layout import CONFIRM, MANIFEST, RESULT, STATE, cycle_directories, runs_at
from pytest_llem.results.metrics import METRICS, SHIPPED, metrics_of
from pytest_llem.results.schema import RESULT_VERSION, Result
from pytest_llem.results.state import read_state
from pytest_llem.results.terminal import ShowProgress

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame

Cell = str | int | float | bool | None
Migration = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]
MIGRATIONS: Mapping[int, Migration] = {}


class MeasurementId(NamedTuple):
    """Which measurement a result holds, in whatever run: `run` is the one that measured it.

    `configuration` is study and `config_hash`: a reused experiment may be renamed. Baselines hold the text, `RUN/c1/1`.
    """

    run: str
    configuration: tuple[str, str]
    cycle: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.run}/c{self.cycle}/{self.attempt}"


def measurement_id(result: Result) -> MeasurementId:
    """The identity of a result's measurement, the same in every run that reused it."""
    experiment = (result.study, result.experiment.config_hash)
    return MeasurementId(result.source_run or result.run_id, experiment, result.cycle, result.attempt)


def same_measurements(shared: Iterable[MeasurementId]) -> str:
    """`the same measurements on both sides: c1, c2 of run R`, of those that two sides share; empty for none."""
    cycles: dict[str, list[str]] = {}
    for each in sorted(shared):
        cycles.setdefault(each.run, []).append(f"c{each.cycle}")
    text = ", ".join(f"{', '.join(dict.fromkeys(numbers))} of run {run}" for run, numbers in cycles.items())
    return f"the same measurements on both sides: {text}" if text else ""


def read_result(path: Path) -> Result:
    """One `result.json`; `StoreError` when it is absent, broken, or of a newer version than this one reads."""
    data = read_json(path)
    version = data.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"{path}: not a result: no schema_version")
    if version > RESULT_VERSION:
        raise StoreError(
            f"{path}: result format {version} is newer than {RESULT_VERSION}, the newest this version reads",
            fix="read it with the version of pytest-llem that wrote it, or a newer one",
        )
    older = version < RESULT_VERSION
    while version < RESULT_VERSION:
        data = {**MIGRATIONS[version](data), "schema_version": version + 1}
        version += 1
    try:
        return Result.model_validate_json(json.dumps(data) if older else path.read_bytes())
    except ValidationError as problem:
        raise refused(path, problem) from None


def refused(path: Path, problem: ValidationError) -> StoreError:
    """The error of a file that makes no valid result: the first place, and what is wrong there."""
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return StoreError(f"{path}: {where}: {first['msg']} ({problem.error_count()} problems in all)")


def result_files(path: Path) -> list[Path]:
    """The `result.json` files at or below `path`; `StoreError` when there are none.

    Superseded attempts are left out, and cycles that confirm a gate, unless `path` names them.
    """
    if path.is_file() and path.name != MANIFEST:
        return [path]
    runs = runs_at(path)
    if runs:
        files = [directory / RESULT for run in runs for directory in _ended(run)]
    else:
        apart = {*path.rglob(f"attempt-*/{RESULT}"), *path.rglob(f"{CONFIRM}/c*/**/{RESULT}")}
        files = sorted({*path.rglob(RESULT)} - apart)
    if not files and runs:
        which = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
        raise StoreError(
            f"{path}: no cycle of {which} has ended with a result",
            fix="see llem list; pytest --llem-study=FILE --llem-resume measures what is missing",
        )
    if not files:
        raise StoreError(f"{path}: no results here", fix="name a run's directory, a results folder or a result.json")
    return files


def _ended(run: Path) -> Iterator[Path]:
    """The directories of a run's cycles that have a result. `StoreError` for a result whose state is missing."""
    for directory in cycle_directories(run, (STATE, RESULT)):
        state = read_state(directory)
        if state is None and (directory / RESULT).exists():
            fix = "restore it, or name the result.json that is meant"
            raise StoreError(f"{directory / STATE}: missing beside a result", fix=fix)
        if state is not None and state.state in ("valid", "invalid"):
            yield directory


def cycle_seconds(path: Path) -> tuple[str, float] | None:
    """The `config_hash` of a result and the seconds of its cycle, startup included; `None` if it does not say."""
    try:
        timed = _timed(path)
    except StoreError:
        return None
    return None if timed is None else (timed[0].configuration[1], timed[1])


def _timed(path: Path) -> tuple[MeasurementId, float] | None:
    """Not through `Result`: a plan reads thousands. A file that does not say which measurement it is, is its own.

    Raises `StoreError` for a broken file: shards that read the same files must not differ in what they leave out.
    """
    result: dict[str, Any] = read_json(path)
    try:
        timing, full = result["timing"], str(result["experiment"]["config_hash"])
        run = str(result.get("source_run") or result.get("run_id") or path)
        cycle, attempt = int(result.get("cycle") or 1), int(result.get("attempt") or 1)
        windows = int((result.get("search") or {}).get("windows", 1))  # of a search, each about as long as this one
        seconds = windows * (float(timing["cycle_s"]) + float(timing.get("startup_s") or 0.0))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return MeasurementId(run, (str(result.get("study")), full), cycle, attempt), seconds


def recorded_durations(path: Path) -> dict[str, float]:
    """Mean seconds of a cycle by `config_hash`, over any `path`. `StoreError` when none has times, or one is broken."""
    durations: dict[str, list[float]] = {}
    measured = dict(timed for file in result_files(path) if (timed := _timed(file)) is not None)
    for measurement, seconds in measured.items():
        durations.setdefault(measurement.configuration[1], []).append(seconds)
    if not durations:
        raise StoreError(f"{path}: no result here says how long its cycle took", fix="name runs that have ended")
    return {full: sum(times) / len(times) for full, times in durations.items()}


def load(path: str | Path) -> Results:
    """The results of a file, a cycle, a study, a run or a folder of runs, each measurement once (`Results.distinct`).

    Raises `StoreError` when there are none, or when one is broken or of a newer format.
    """
    return load_rows(Path(path)).distinct()


def load_rows(path: Path) -> Results:
    """As `load`, with a row for every run that holds a measurement: for those who tell runs apart."""
    return read_files(result_files(path))


def load_all(paths: Sequence[Path], progress: ShowProgress) -> Results:
    """The results of runs, folders of runs or files, each measurement once; `progress` sees each file as it is read."""
    files = [file for path in paths for file in result_files(path)]
    return read_files(progress(files, "reading")).distinct()


def read_files(files: Iterable[Path]) -> Results:
    """The results of these files."""
    found = [(read_result(file), file.parent) for file in files]
    directories = {measurement_id(result): directory for result, directory in found}
    return Results(tuple(result for result, _ in found), directories)


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Results in the order of their directories: run, study, experiment, cycle.

    `directories` are those of the cycles that were read, where their other files lie.
    """

    items: tuple[Result, ...]
    directories: Mapping[MeasurementId, Path] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return replace(self, items=self.items[index]) if isinstance(index, slice) else self.items[index]

    @property
    def valid(self) -> Results:
        """Those that may be used."""
        return self.where(lambda result: result.validity.valid)

    def distinct(self) -> Results:
        """Each measurement once: of those that `--llem-resume` reused, the row of the newest run that holds it."""
        newest: dict[MeasurementId, Result] = {}
        for result in self.items:
            held = newest.get(which := measurement_id(result))
            if held is None or result.run_id > held.run_id:
                newest[which] = result
        kept = {id(result) for result in newest.values()}
        return self.where(lambda result: id(result) in kept)

    def where(self, condition: Callable[[Result], bool]) -> Results:
        """Those for which `condition` holds."""
        return replace(self, items=tuple(result for result in self.items if condition(result)))

    def of_run(self, run_id: str, *others: str) -> Results:
        """Those of one run, or of several."""
        ids = {run_id, *others}
        return self.where(lambda result: result.run_id in ids)

    def of_study(self, name: str) -> Results:
        """Those of one study."""
        return self.where(lambda result: result.study == name)

    def by_experiment(self) -> dict[tuple[str, str], Results]:
        """Grouped by study and experiment id, in order."""
        groups: dict[tuple[str, str], list[Result]] = {}
        for result in self.items:
            groups.setdefault((result.study, result.experiment.id), []).append(result)
        return {key: replace(self, items=tuple(group)) for key, group in groups.items()}

    def rows(self) -> list[dict[str, Cell]]:
        """A flat row per result: `COLUMNS`, chosen percentiles, other packages' metrics, settings as `config.PATH`."""
        columns = {**{name: of for name, (_, of) in _COLUMNS.items()}, **self._further()}
        return [{**{name: of(result) for name, of in columns.items()}, **_settings(result)} for result in self.items]

    def to_table(self) -> pa.Table:
        """A pyarrow table with one row per result; the `COLUMNS` come first and are always there."""
        import pyarrow as pa

        rows = self.rows()
        kinds = {**COLUMNS, **dict.fromkeys(self._further(), "double")}
        settings = sorted({name for row in rows for name in row} - set(kinds))
        columns = {name: [row.get(name) for row in rows] for name in (*kinds, *settings)}
        types = {"string": pa.string(), "int64": pa.int64(), "bool": pa.bool_(), "double": pa.float64()}
        arrays = {name: pa.array(columns[name], types[kind]) for name, kind in kinds.items()}
        arrays |= {name: typed(columns[name]) for name in settings}
        units = {name: {"unit": METRICS[name].unit} for name in kinds if name in METRICS}
        fields = [pa.field(name, array.type, metadata=units.get(name)) for name, array in arrays.items()]
        return pa.Table.from_arrays([*arrays.values()], schema=pa.schema(fields))

    def _further(self) -> dict[str, Callable[[Result], Cell]]:
        """The columns of percentiles that studies chose, and of other packages' metrics."""
        return {name: metric.of for name, metric in metrics_of(self.items).items() if name not in SHIPPED}

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame with one row per result; `SettingsError` when pandas is not installed."""
        try:
            import pandas as pd
        except ImportError:
            raise SettingsError("pandas is not installed", fix="pip install pandas, or use to_table()") from None
        return pd.DataFrame(self.to_table().to_pylist())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _stated(name: str, result: Result) -> float | None:
    uncertainty: float | None = getattr(result.energy, name)
    return uncertainty


def _of_answers(name: str, result: Result) -> float | None:
    value: float | None = getattr(result.quality, name, None)
    return value


def _of_gpus(name: str, result: Result) -> float | None:
    found: list[float | None] = [getattr(gpu, name) for gpu in result.device.gpus]
    return min((value for value in found if value is not None), default=None)


OF_GPUS = {"sm_clock_mhz": 1}


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _clock_events(result: Result) -> str | None:
    return " ".join(dict.fromkeys(event for gpu in result.device.gpus for event in gpu.clock_events)) or None


UNCERTAINTIES = (
    "gain_uncertainty_rel",
    "energy_above_idle_uncertainty_j",
    "idle_power_uncertainty_w",
    "avg_power_w_uncertainty",
    "joules_per_output_token_uncertainty",
    "joules_per_total_token_uncertainty",
    "joules_per_request_uncertainty",
    "wh_per_1000_queries_uncertainty",
    "tokens_per_joule_uncertainty",
    "joules_per_session_uncertainty",
)
"""What a result states beside its figures of energy, besides `uncertainty_j`."""
OF_ANSWERS = ("accuracy_low", "accuracy_high", "joules_per_correct_answer_uncertainty")
"""The same beside those of scored answers."""

_COLUMNS: dict[str, tuple[str, Callable[[Result], Cell]]] = {
    "run_id": ("string", lambda r: r.run_id),
    "source_run": ("string", lambda r: r.source_run),
    "study": ("string", lambda r: r.study),
    "experiment": ("string", lambda r: r.experiment.id),
    "config_hash": ("string", lambda r: r.experiment.config_hash),
    "cycle": ("int64", lambda r: r.cycle),
    "attempt": ("int64", lambda r: r.attempt),
    "created_at": ("string", lambda r: r.created_at),
    "valid": ("bool", lambda r: r.validity.valid),
    "reasons": ("string", lambda r: " ".join(reason.code for reason in r.validity.reasons) or None),
    "warnings": ("string", lambda r: " ".join(warning.code for warning in r.warnings) or None),
    "model": ("string", lambda r: _text(r.experiment.config.get("model"))),
    "engine": ("string", lambda r: r.engine.name),
    "engine_version": ("string", lambda r: r.engine.version),
    "dtype": ("string", lambda r: _text(r.engine.effective.get("dtype"))),
    "runner": ("string", lambda r: r.runner.name),
    "device_kind": ("string", lambda r: r.runner.device_kind),
    "device_count": ("int64", lambda r: len(r.runner.device_ids)),
    "meter": ("string", lambda r: r.energy.meter),
    "measured": ("bool", lambda r: r.energy.measured),
    "scope": ("string", lambda r: r.energy.scope),
    "uncertainty_j": ("double", lambda r: r.energy.uncertainty_j),
    "input_tokens": ("int64", lambda r: r.tokens.input),
    "output_tokens": ("int64", lambda r: r.tokens.output),
    "repeats": ("int64", lambda r: r.workload.repeats),
    "measure_s": ("double", lambda r: r.timing.get("measure_s")),
    **{name: ("double", metric.of) for name, metric in SHIPPED.items()},
    **{name: ("double", partial(_stated, name)) for name in UNCERTAINTIES},
    **{name: ("double", partial(_of_answers, name)) for name in OF_ANSWERS},
    "gpu_power_limit_w": ("double", lambda r: _least(limit for gpu in r.device.gpus for limit in gpu.power_limits_w)),
    "gpu_sm_clock_mhz": ("double", lambda r: _least(gpu.sm_clock_mhz for gpu in r.device.gpus)),
    "gpu_memory_clock_mhz": ("double", lambda r: _least(gpu.memory_clock_mhz for gpu in r.device.gpus)),
    "gpu_clock_events": ("string", _clock_events),
}
COLUMNS = {name: kind for name, (kind, _) in _COLUMNS.items()}
"""Columns of every table and CSV with pyarrow's names of their types, in order: added to at the end in later versions,
never renamed. pyarrow itself is imported when a table is made: it is large, and collection does not need it."""


def typed(cells: Sequence[JsonValue]) -> pa.Array:
    """The values of a setting in the one type that holds each of them, as texts where there is none."""
    import pyarrow as pa

    types = {type(cell) for cell in cells} - {type(None)}
    if types == {bool}:
        return pa.array(cells, pa.bool_())
    if types == {int}:
        return pa.array(cells, pa.int64())
    if types and types <= {int, float}:
        return pa.array(cells, pa.float64())
    return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())


def _settings(result: Result) -> dict[str, Cell]:
    flat = flat_settings(result).items()
    return {f"config.{path}": value if isinstance(value, Cell) else str(value) for path, value in flat}
