"""What was set on a GPU counts as held only where the readings of the measure windows say so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DeviceSettings
from pytest_llem.job.gpu_setting import GpuSetting
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.measurement import Measurement, MeteredDevice, Scope
from pytest_llem.job.metric_names import metric_name
from pytest_llem.results.comparability import common_conditions, conditions, differences, settled_by_settings
from pytest_llem.results.derive import derive_result
from pytest_llem.results.judging import judge_in_turn
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.repeatability import Repeatability, machine
from pytest_llem.results.reproduce_command import machine_differences
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.device import derive_device, device_reasons
from pytest_llem.study.limits import Comparison, parse_fail_if
from tests.unit.results.conftest import REPORT, Bench, S

GPU = "GPU-1"
KEY = CycleKey("study", "power_limit_w:400", "0123456789abcdef", 1)
IDLE, POWER_CAP, THERMAL = 0x1, 0x4, 0x20
CODES = {
    "clock_not_held",
    "power_limit_changed",
    "power_limit_not_applied",
    "power_profile_not_active",
    "setting_not_verified",
}


@dataclass
class Board:
    """A GPU's readings: twice a second from 1 s before the two seconds that are measured until 1 s behind them."""

    limit_w: Callable[[float], float] = lambda seconds: 400.0
    clock_mhz: Callable[[float], float] = lambda seconds: 1410.0
    events: int = 0
    mean_w: float = 390.0
    default_w: float = 700.0
    profiles: list[str] | None = None
    memory_mhz: float = 2619.0
    reads: bool = True
    scope: Scope = "gpu_board"
    reads_until_s: float = math.inf
    more: list[dict[str, JsonValue]] = field(default_factory=list)

    def write(self, path: Path) -> Path:
        lines: list[dict[str, Any]] = [
            {"t_ns": 0, "event": "sensor", "device": GPU, "counter": True, "default_limit_w": self.default_w},
            {"t_ns": 0, "event": "profiles", "device": GPU, "active": self.profiles},
        ]
        for step in range(9) if self.reads else ():
            seconds = 1.0 + step / 2
            if seconds > self.reads_until_s:
                break
            sample = {"t_ns": round(seconds * S) + 1000, "device": GPU, "power_w": self.mean_w}
            clocks = {"sm_clock_mhz": self.clock_mhz(seconds), "memory_clock_mhz": self.memory_mhz}
            lines.append({**sample, **clocks, "clock_events": self.events, "power_limit_w": self.limit_w(seconds)})
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *self.more]))
        return path

    def measurement(self, bench: Bench) -> Measurement:
        """Of two seconds at the mean power."""
        measured = bench.measurement(self.mean_w)
        assert measured.energy is not None
        windows = tuple(
            replace(window, devices=tuple(replace(part, id=GPU) for part in window.devices))
            for window in measured.energy.windows
        )
        energy = replace(
            measured.energy, scope=self.scope, devices=(MeteredDevice(GPU, "H100", "gpu"),), windows=windows
        )
        return replace(measured, energy=energy)


def constant(value: float) -> Callable[[float], float]:
    return lambda _: value


Judge = Callable[..., Result]
At = Callable[..., dict[str, JsonValue]]


@pytest.fixture
def judge(bench: Bench, tmp_path: Path) -> Judge:
    def judge(board: Board, set_: tuple[GpuSetting, ...] = (), gathered_w: float = 700.0, **asked: Any) -> Result:
        job = bench.job(KEY)
        config = replace(job.config, device=DeviceSettings(**asked))
        job = replace(job, config=config, devices=DeviceSet("cuda", (GPU,)), gpu_settings=set_)
        measurement = board.measurement(bench)
        device = derive_device(job, measurement, board.write(tmp_path / "samples.jsonl"))
        environment: dict[str, JsonValue] = {"gpus": [{"uuid": GPU, "name": "H100", "power_limit_w": gathered_w}]}
        return derive_result(job, measurement, REPORT, study="study", environment=environment, device=device)

    return judge


def reasons(result: Result) -> list[tuple[str, str]]:
    return [(reason.code, reason.message) for reason in result.validity.reasons if reason.code in CODES]


def test_a_limit_that_held_is_stated_with_what_was_there_before(judge: Judge) -> None:
    made = GpuSetting(GPU, "power_limit_w", 400, applied=400.0, previous=700.0)

    result = judge(Board(events=POWER_CAP), (made,), power_limit_w=400)

    assert reasons(result) == []
    (gpu,) = result.device.gpus
    (setting,) = gpu.settings
    assert (setting.requested, setting.previous, setting.applied, setting.observed) == (400, 700.0, 400.0, 390.0)
    assert (setting.held, setting.reached) == (True, True)
    assert gpu.power_limits_w == (400.0,)
    assert gpu.clock_events == {"sw_power_cap": 1.0}


def test_a_limit_above_what_the_load_draws_holds_and_is_not_reached(judge: Judge) -> None:
    """Such a point of a sweep changes nothing: whoever reads the chart must be able to tell."""
    (gpu,) = judge(Board(mean_w=300.0), power_limit_w=400).device.gpus
    assert (gpu.settings[0].held, gpu.settings[0].reached) == (True, False)


@pytest.mark.parametrize(
    ("board", "told"),
    [
        # The driver acknowledged it and kept its own: joules of 700 W would stand as those of 400 W.
        (Board(limit_w=lambda _: 700.0, mean_w=650.0), "a limit of 700 in force and 650 drawn"),
        # It reads back as asked, and the board draws what it likes.
        (Board(mean_w=450.0), "a limit of 400 in force and 450 drawn"),
        # Another user raised it while it was measured.
        (Board(limit_w=lambda seconds: 400.0 if seconds < 3 else 700.0), "a limit of 400 and 700 in force"),
        # Something beside the driver allows less.
        (Board(limit_w=lambda _: 300.0, mean_w=290.0), "a limit of 300 in force and 290 drawn"),
    ],
)
def test_a_limit_that_did_not_hold_makes_the_cycle_invalid(judge: Judge, board: Board, told: str) -> None:
    made = GpuSetting(GPU, "power_limit_w", 400, applied=400.0, previous=700.0)

    ((code, message),) = reasons(judge(board, (made,), power_limit_w=400))

    assert code == "power_limit_not_applied"
    assert message.startswith("GPU-1: power_limit_w 400 asked, ")
    assert told in message


def test_a_reading_within_the_gain_error_of_the_board_is_no_breach(judge: Judge) -> None:
    assert reasons(judge(Board(mean_w=415.0), power_limit_w=400)) == []


def test_the_power_of_a_module_says_nothing_of_its_gpu_s_limit(judge: Judge) -> None:
    """The sensor of a GH200 has its CPU as well: a limit that held would be refused."""
    result = judge(Board(mean_w=600.0, scope="module"), power_limit_w=400)
    assert reasons(result) == []
    assert result.device.gpus[0].settings[0].reached is False


@pytest.mark.parametrize(("limit_w", "codes"), [(700.0, []), (400.0, ["power_limit_not_applied"])])
def test_the_default_limit_is_verified_as_well(judge: Judge, limit_w: float, codes: list[str]) -> None:
    """A limit that a killed run left behind must not pass for the board's own, even where the setter believed it."""
    made = GpuSetting(GPU, "power_limit_w", "default", applied=limit_w, previous=limit_w)
    result = judge(Board(limit_w=lambda _: limit_w), (made,), power_limit_w="default")
    assert [code for code, _ in reasons(result)] == codes


def test_a_clock_is_held_within_one_step_of_what_was_asked(judge: Judge) -> None:
    """Drivers take the next clock that the board has: 1400 MHz is 1395."""
    result = judge(Board(clock_mhz=lambda _: 1395.0), sm_clock_mhz=1400)
    assert reasons(result) == []
    assert result.device.gpus[0].settings[0].observed == 1395.0


def sinking(seconds: float) -> float:
    return 1410.0 if seconds < 3 else 1200.0


@pytest.mark.parametrize(
    ("board", "told"),
    [
        (
            Board(clock_mhz=sinking, events=THERMAL),
            "1200 in the median while measured (1200 to 1410): sw_thermal_slowdown 100% of the time",
        ),
        (Board(clock_mhz=lambda _: 1110.0, events=POWER_CAP), "sw_power_cap 100% of the time"),
        (Board(clock_mhz=lambda _: 1980.0), "1980 in the median while measured (1980 to 1980)"),
    ],
)
def test_a_clock_that_did_not_hold_makes_the_cycle_invalid_and_says_why(judge: Judge, board: Board, told: str) -> None:
    ((code, message),) = reasons(judge(board, sm_clock_mhz=1410))
    assert code == "clock_not_held"
    assert message.startswith("GPU-1: sm_clock_mhz 1410 asked, ")
    assert message.endswith(told)


def test_clocks_of_an_idle_gpu_say_nothing_of_the_load(judge: Judge) -> None:
    """Between the requests of a server a GPU may go down to its idle clock."""
    board = Board(clock_mhz=lambda _: 1410.0)
    between = range(21, 40)
    board.more = [
        {"t_ns": tenth * S // 10 + 5, "device": GPU, "sm_clock_mhz": 345.0, "clock_events": IDLE} for tenth in between
    ]
    assert reasons(judge(board, sm_clock_mhz=1410)) == []


def test_a_memory_clock_is_judged_by_its_own_readings(judge: Judge) -> None:
    board = Board(clock_mhz=lambda _: 1593.0)
    ((code, message),) = reasons(judge(board, memory_clock_mhz=1593))
    assert code == "clock_not_held"
    assert "memory_clock_mhz 1593 asked, 2619 in the median" in message


@pytest.mark.parametrize(
    ("active", "asked", "codes"),
    [
        (["max_q"], "max_q", []),
        ([], "max_q", ["power_profile_not_active"]),
        ([], "default", []),
        (["max_q"], "default", ["power_profile_not_active"]),
        (None, "max_q", ["setting_not_verified"]),
    ],
)
def test_a_power_profile_must_be_active(judge: Judge, active: list[str] | None, asked: str, codes: list[str]) -> None:
    result = judge(Board(profiles=active), power_profile=asked)
    assert [code for code, _ in reasons(result)] == codes


@pytest.mark.parametrize("asked", [{"power_limit_w": 400}, {"sm_clock_mhz": 1410}, {"memory_clock_mhz": 2619}])
def test_a_setting_without_readings_is_not_taken_for_held(judge: Judge, asked: dict[str, int]) -> None:
    """The setter's word alone would make every cycle of a meter without clocks valid."""
    (name,) = asked
    made = GpuSetting(GPU, name, asked[name], applied=float(asked[name]))  # type: ignore[arg-type]
    assert [code for code, _ in reasons(judge(Board(reads=False), (made,), **asked))] == ["setting_not_verified"]


@pytest.mark.parametrize("asked", [{"power_limit_w": "default"}, {"power_profile": "default"}])
def test_a_default_that_nobody_read_is_not_verified(judge: Judge, asked: dict[str, str]) -> None:
    """It is what the others of a sweep are held against, and a limit that somebody left would pass for it."""
    assert [code for code, _ in reasons(judge(Board(reads=False), **asked))] == ["setting_not_verified"]


@pytest.mark.parametrize(
    "asked", [{"power_limit_w": 400}, {"sm_clock_mhz": 1410}, {"memory_clock_mhz": 2619}, {"power_profile": "max_q"}]
)
def test_readings_that_end_early_tell_nothing_of_the_rest(judge: Judge, asked: dict[str, Any]) -> None:
    """A sensor that fails after the first second of an hour would vouch for all of it."""
    ((code, _),) = reasons(judge(Board(profiles=["max_q"], reads_until_s=2.1), **asked))
    assert code == "setting_not_verified"


def test_a_clock_that_is_left_to_the_board_is_reported_and_not_judged(judge: Judge) -> None:
    result = judge(Board(clock_mhz=sinking), sm_clock_mhz="default")
    assert reasons(result) == []
    (setting,) = result.device.gpus[0].settings
    assert (setting.observed, setting.observed_low, setting.held) == (1200.0, 1200.0, None)


@pytest.fixture
def at(judge: Judge) -> At:
    return lambda limit_w, **asked: conditions(judge(Board(limit_w=lambda _: limit_w, mean_w=100.0), **asked))


def test_the_limit_of_the_cycle_is_the_condition_and_not_that_of_the_run_s_beginning(judge: Judge, at: At) -> None:
    """The environment is gathered once: 400 W joules would else compare with 300 W joules under `700 W`."""
    assert at(400.0, power_limit_w=400)["power_limit_w"] == ["400.0"]
    assert at(500.0)["power_limit_w"] == ["500.0"], "somebody else's limit counts as well"
    result = judge(Board(), power_limit_w=400)
    assert result.environment.host["gpus"] == [{"uuid": GPU, "name": "H100", "power_limit_w": 400.0}]
    assert result.environment.comparable["gpu0_power_limit_w"] == 400


@pytest.mark.parametrize(("later_w", "codes"), [(300.0, ["power_limit_changed"]), (699.5, [])])
def test_a_cycle_under_two_limits_that_somebody_else_set_has_the_joules_of_neither(
    judge: Judge, later_w: float, codes: list[str]
) -> None:
    """It would be valid, and compare with cycles under the lower limit."""
    result = judge(Board(limit_w=lambda seconds: 700.0 if seconds < 2 else later_w))
    found = reasons(result)
    assert [code for code, _ in found] == codes
    assert all("700 and 300" in message for _, message in found)
    assert result.validity.valid == (not codes)


def test_what_a_limit_is_set_to_is_reused_whatever_stood_there_before(judge: Judge) -> None:
    """Or a result of a cycle under its own limit could never be reused."""
    facts = [judge(Board(), gathered_w=before, power_limit_w=400).environment.fingerprint for before in (700.0, 350.0)]
    assert facts[0] == facts[1]


def test_limits_may_differ_where_settings_set_them_and_only_there(at: At) -> None:
    measure = metric_name("energy_j")
    before, now = at(700.0), at(400.0, power_limit_w=400)
    forbidden = ["power_limit_w: 700.0 -> 400.0"]
    assert differences(before, now, measure, 0.05) == forbidden
    follow = settled_by_settings({"device.power_limit_w": None}, {"device.power_limit_w": 400})
    assert differences(before, now, measure, 0.05, allow=follow) == []
    unrelated = settled_by_settings({"settings.batch_size": 1}, {"settings.batch_size": 2})
    assert differences(at(700.0), at(400.0), measure, 0.05, allow=unrelated) == forbidden


@pytest.mark.parametrize(("asked", "status"), [({"power_limit_w": 400}, "pass"), ({}, "not_comparable")])
def test_two_sides_in_turn_may_be_two_limits_that_their_studies_set(
    judge: Judge, asked: dict[str, int], status: str
) -> None:
    """`llem ab` of two limits is what one asks for; of a board that somebody capped in between it is not."""

    def side(limit_w: float, **asked: int) -> list[Result]:
        boards = [Board(limit_w=lambda _: limit_w, mean_w=mean_w) for mean_w in (100.0, 101.0, 102.0)]
        results = [judge(board, **asked) for board in boards]
        return [result.model_copy(update={"cycle": cycle}) for cycle, result in enumerate(results, 1)]

    comparison = Comparison((parse_fail_if("joules_per_output_token", "5%"),))
    (row,) = judge_in_turn(side(700.0), side(400.0, **asked), comparison).rows
    assert row.status == status, row.reason


def test_every_leased_gpu_has_to_hold(bench: Bench, tmp_path: Path) -> None:
    """Of two GPUs the second may be the one that somebody else set."""
    job = bench.job(KEY)
    config = replace(job.config, device=DeviceSettings(sm_clock_mhz=1410))
    job = replace(job, config=config, devices=DeviceSet("cuda", (GPU, "GPU-2")))
    board = Board()
    board.more = [{"t_ns": 3 * S, "device": "GPU-2", "sm_clock_mhz": 1980.0, "power_w": 500.0}]
    device = derive_device(job, board.measurement(bench), board.write(tmp_path / "samples.jsonl"))
    assert [(gpu.id, gpu.settings[0].held) for gpu in device.gpus] == [(GPU, True), ("GPU-2", False)]
    assert [note.message.partition(":")[0] for note in device_reasons(device)] == ["GPU-2"]


def test_the_spread_of_equal_runs_over_a_sweep_of_limits_is_that_of_each_limit(judge: Judge) -> None:
    """Else `llem aa` on such a study would be for nothing, since no experiment has all limits."""
    at = {limit: judge(Board(limit_w=constant(limit)), power_limit_w=limit) for limit in (300.0, 400.0, 700.0)}
    both = machine(common_conditions([at[400.0], at[700.0]]))
    kept = Repeatability("study", "now", ("a", "b", "c"), both, {})
    assert [kept.covers(conditions(at[limit])) for limit in at] == [False, True, True]


@pytest.mark.parametrize(("asked", "told"), [({"power_limit_w": 400}, False), ({}, True)])
def test_a_limit_that_a_package_s_study_sets_is_no_difference_of_the_machine(
    judge: Judge, asked: dict[str, int], told: bool
) -> None:
    """`llem reproduce` sets it here as well: warning of it would hide the differences that matter."""
    found = machine_differences(Results((judge(Board(), **asked),)))
    assert any(text.startswith("power_limit_w: ") for text in found) == told
