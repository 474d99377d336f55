"""Makes the challenge's traces: what a GPU's sensors said over a window, and apart from it what was truly drawn.

`python -m tests.challenge.generate --seed N --out DIR` makes fresh ones. The model of power and sensor is written for
this purpose alone and shares no code with the estimators nor with the simulated NVML. README.md has the format.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

GRID_S = 0.0005
LENGTHS_S = (0.1, 0.3, 1.0, 3.0)
LEAD_S = 2.0
QUIET_S = 0.65
IDLE_W, BURST_W, DECODE_W, RIPPLE_W, RIPPLE_S = 110.0, 620.0, 430.0, 60.0, 0.023


@dataclass(frozen=True)
class Sensor:
    """How a counter and the power readings follow power. Times in seconds."""

    period: float = 0.1
    jitter: float = 0.0005
    delay: float = 0.0
    filter: float = 0.0
    duty: float = 1.0
    drop_share: float = 0.0
    scale: float = 1.0
    late_share: float = 0.01
    late: float = 0.004
    unit_mj: int = 1


@dataclass(frozen=True)
class Load:
    """What the device draws, in watts and seconds; `held` and `step_after` come after the window's end."""

    rise: float = 0.0015
    fall: float = 0.0015
    prefill: float = 0.15
    ripple_period: float = RIPPLE_S
    held: float = 0.0
    step_after: tuple[float, float] | None = None
    low_tail: float = 0.0
    cools: float = 0.0
    busy_sides: bool = False


@dataclass(frozen=True)
class Kind:
    """One row of the score: a sensor under a load, calibrated or not."""

    name: str
    sensor: Sensor = Sensor()
    load: Load = Load()
    calibrated: bool = True
    lengths: tuple[float, ...] = LENGTHS_S


KINDS = (
    Kind("plain"),
    Kind("plain, not calibrated", calibrated=False),
    Kind("busy sides", load=Load(busy_sides=True), lengths=(0.3, 1.0, 3.0)),
    Kind("a step every 20 ms", Sensor(period=0.02, jitter=0.0002)),
    Kind("a step every 500 ms", Sensor(period=0.5, jitter=0.002)),
    Kind("steps 6 ms early or late", Sensor(jitter=0.006)),
    Kind("every fifth read 7 ms late", Sensor(late_share=0.2, late=0.007)),
    Kind("whole joules", Sensor(unit_mj=1000)),
    Kind("delay of 5 ms", Sensor(delay=0.005)),
    Kind("delay of 25 ms", Sensor(delay=0.025)),
    Kind("delay of 100 ms, not calibrated", Sensor(delay=0.1), calibrated=False),
    Kind("filter of 25 ms", Sensor(filter=0.025)),
    Kind("ramps of 20 ms", load=Load(rise=0.02, fall=0.02)),
    Kind("slow fall", load=Load(fall=0.02)),
    Kind("slow rise", load=Load(rise=0.02)),
    Kind("power held for 50 ms after the end", load=Load(held=0.05)),
    Kind("a step 50 ms after the end", load=Load(step_after=(0.05, 40.0))),
    Kind("last 20 ms at a third of the power", load=Load(low_tail=0.02)),
    Kind("idle power that cools down", load=Load(cools=30.0)),
    Kind("a quarter of the time sampled", Sensor(duty=0.25)),
    Kind("a quarter sampled, load in step", Sensor(duty=0.25), Load(ripple_period=0.1)),
    Kind("a quarter sampled, not calibrated", Sensor(duty=0.25), calibrated=False),
    Kind("one interval in ten lost", Sensor(drop_share=0.1)),
    Kind("57 % of the power", Sensor(scale=0.57)),
)


class Power:
    """A course of power on a grid, with its integral."""

    def __init__(self, watts: list[float]) -> None:
        self.watts = watts
        self.joules = [0.0]
        for value in watts:
            self.joules.append(self.joules[-1] + value * GRID_S)

    def energy(self, t_s: float) -> float:
        """Joules drawn up to a time."""
        index = min(max(0, int(t_s / GRID_S + 1e-6)), len(self.watts) - 1)
        return self.joules[index] + self.watts[index] * (t_s - index * GRID_S)

    def mean(self, t_s: float, over_s: float) -> float:
        """Mean watts over the time before."""
        return (self.energy(t_s) - self.energy(t_s - over_s)) / over_s

    def filtered(self, time_constant_s: float) -> Power:
        """What a first-order filter makes of it."""
        if time_constant_s <= 0:
            return self
        share, level, seen = 1 - math.exp(-GRID_S / time_constant_s), self.watts[0], []
        for value in self.watts:
            level += share * (value - level)
            seen.append(level)
        return Power(seen)


def course(load: Load, length_s: float, phase_s: float, total_s: float, start_s: float) -> Power:
    """Power over a whole trace whose window begins at `start_s`: before, inside and after it."""
    end_s = start_s + length_s
    before_s = 2.5 * 0.1 if load.busy_sides else 0.0

    def wanted(t_s: float) -> tuple[float, float]:
        """The level that power moves to, and how fast."""
        idle_w = IDLE_W + load.cools * math.exp(-(t_s % 60 if t_s < start_s else t_s - end_s) / 0.8)
        ripple_w = RIPPLE_W * math.sin(2 * math.pi * (t_s + phase_s) / load.ripple_period)
        if start_s <= t_s < end_s - load.low_tail or (load.busy_sides and start_s - before_s <= t_s < end_s + before_s):
            in_prefill = start_s <= t_s < start_s + min(load.prefill, length_s / 3)
            return (BURST_W if in_prefill else DECODE_W + ripple_w), load.rise
        if start_s <= t_s < end_s:
            return DECODE_W / 3, load.fall
        if end_s <= t_s < end_s + load.held:
            return DECODE_W, load.rise
        if load.step_after is not None and t_s >= end_s + load.step_after[0]:
            return idle_w - load.step_after[1], load.fall
        return idle_w, load.fall

    watts, level = [], wanted(0.0)[0]
    for index in range(round(total_s / GRID_S)):
        target, time_constant = wanted((index + 0.5) * GRID_S)
        level += (1 - math.exp(-GRID_S / time_constant)) * (target - level)
        watts.append(level)
    return Power(watts)


def readings(power: Power, sensor: Sensor, poll_s: float, rng: random.Random) -> dict[str, Any]:
    """The counter's steps as a poller brackets them (low and high in ns, value in mJ), and power readings (ns, W)."""
    seen = power.filtered(sensor.filter)
    total_s = len(power.watts) * GRID_S
    first_s = rng.random() * sensor.period
    sampled_from = rng.random() * (1 - sensor.duty)
    steps: list[list[int]] = []
    counted_j, before_s = rng.random() * 1e4, 0.0
    number = 0
    while (nominal_s := first_s + number * sensor.period) < total_s - 0.01:
        number += 1
        at_s = nominal_s + rng.uniform(-1, 1) * math.sqrt(3) * sensor.jitter
        until_s = at_s - sensor.delay
        if sensor.duty < 1:
            begin_s = before_s + sampled_from * (until_s - before_s)
            drawn_j = seen.mean(begin_s + sensor.duty * (until_s - before_s), sensor.duty * (until_s - before_s)) * (
                until_s - before_s
            )
        else:
            drawn_j = seen.energy(until_s) - seen.energy(before_s)
        before_s = until_s
        if rng.random() >= sensor.drop_share:
            counted_j += sensor.scale * drawn_j
        late_s = rng.random() * (sensor.late if rng.random() < sensor.late_share else 0.00016)
        low_s = at_s - rng.random() * poll_s
        high_s = max(at_s, low_s + poll_s) + late_s
        value_mj = int(counted_j * 1e3) // sensor.unit_mj * sensor.unit_mj
        if not steps or value_mj != steps[-1][2]:
            steps.append([round(low_s * 1e9), round(high_s * 1e9), value_mj])
    powers = [[round(t_s * 1e9), round(seen.mean(t_s - sensor.delay, 0.025))] for t_s in times(0.2, 0.1, total_s)]
    return {"steps": steps, "power": powers}


def on_grid(t_s: float) -> float:
    """The nearest time at which power is computed: an edge between two would be off by half of that."""
    return round(t_s / GRID_S) * GRID_S


def times(first: float, step: float, end: float) -> Iterator[float]:
    """Evenly spaced times."""
    for number in range(int((end - first) / step)):
        yield first + number * step


def trace(kind: Kind, length_s: float, rng: random.Random) -> tuple[dict[str, Any], float]:
    """One window of a kind at random phase: what is known of it, and its true energy."""
    lead_s = max(LEAD_S, 6 * kind.sensor.period)
    start_s = on_grid(lead_s + rng.random() * kind.sensor.period)
    end_s = on_grid(start_s + length_s * rng.uniform(0.95, 1.05))
    power = course(kind.load, end_s - start_s, rng.random(), end_s + lead_s, start_s)
    quiet = None if kind.load.busy_sides else max(QUIET_S, 5 * kind.sensor.period)
    known = {
        "start_ns": round(start_s * 1e9),
        "end_ns": round(end_s * 1e9),
        "quiet_before_s": quiet,
        "quiet_after_s": quiet,
        "load_period_s": kind.load.ripple_period,
        **readings(power, kind.sensor, 0.0005 if kind.calibrated else 0.002, rng),
    }
    return known, power.energy(end_s) - power.energy(start_s)


def calibration(kind: Kind, rng: random.Random) -> dict[str, Any]:
    """A calibration run on the sensor: bursts of steady load at random phase, with their edges."""
    period_s = kind.sensor.period
    edges: list[tuple[float, float]] = []
    now_s = on_grid(30 * period_s)
    for periods in (*[0.5] * 16, *[8.0] * 8):
        edges.append((now_s, on_grid(now_s + periods * period_s)))
        now_s = on_grid(edges[-1][1] + (8 + rng.random()) * period_s)
    total_s, starts, level, watts = now_s, [start for start, _ in edges], IDLE_W, []
    for index in range(round(total_s / GRID_S)):
        now_s = (index + 0.5) * GRID_S
        at = bisect_right(starts, now_s) - 1
        busy = at >= 0 and now_s < edges[at][1]
        time_constant = kind.load.rise if busy else kind.load.fall
        level += (1 - math.exp(-GRID_S / time_constant)) * ((500.0 if busy else IDLE_W) - level)
        watts.append(level)
    seen = readings(Power(watts), replace(kind.sensor, late_share=0.01, late=0.004), 0.0005, rng)
    return {"bursts": [[round(start * 1e9), round(end * 1e9)] for start, end in edges], **seen}


def make(seed: int, per_length: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Calibrations, traces and truths; in random order, so that a trace's name says nothing of its kind."""
    rng = random.Random(seed)
    calibrations: list[dict[str, Any]] = []
    made: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, kind in enumerate(KINDS):
        sensor = f"sensor-{number:02d}" if kind.calibrated else None
        if sensor is not None:
            calibrations.append({"sensor": sensor, **calibration(kind, rng)})
        for length_s in kind.lengths * per_length:
            known, energy_j = trace(kind, length_s, rng)
            made.append(({"sensor": sensor, **known}, {"kind": kind.name, "length_s": length_s, "energy_j": energy_j}))
    rng.shuffle(made)
    traces = [{"trace": f"trace-{number:04d}", **known} for number, (known, _) in enumerate(made)]
    truths = [{"trace": f"trace-{number:04d}", **truth} for number, (_, truth) in enumerate(made)]
    return calibrations, traces, truths


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, compressed without a time stamp, so that the same seed makes the same file."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main(say: Callable[[str], object] = print) -> None:
    """Write calibrations, traces and truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--per-length", type=int, default=5, help="traces of each kind and length")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("calibrations", "traces", "truth")
    for name, lines in zip(names, make(options.seed, options.per_length), strict=True):
        write(options.out / f"{name}.jsonl.gz", lines)
        say(f"{options.out / name}.jsonl.gz: {len(lines)} lines")


if __name__ == "__main__":
    main()
